"""The policy on the validation rows, decoded as rollout.val_kwargs says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r1ranker.data.prompt_store import Prompt
from r1ranker.progress import report_progress
from r1ranker.rollout.engine import SamplingParams
from r1ranker.trainer.experience.collect import build_requests
from r1ranker.trainer.experience.sampler import Sampler
from r1ranker.trainer.monitoring.metrics import timed, validation_metrics
from r1ranker.trainer.scoring.outcome import Outcome
from r1ranker.trainer.workers.cluster import Cluster


def validate(
    cluster: Cluster, sampler: Sampler, prompts: Sequence[Prompt], policy_version: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Mean reward and parts of each task; `say` takes lines on how far it is, and on rewards that failed."""
    data, val = sampler.config.data, sampler.config.actor_rollout_ref.rollout.val_kwargs
    free = sampler.config.actor_rollout_ref.rollout.constrain == "none"
    params = SamplingParams(
        temperature=val.temperature,
        top_p=val.top_p,
        top_k=val.top_k,
        max_tokens=data.max_response_length,
        end_loops=free or any(prompt.answer_format.think for prompt in prompts),
    )
    requests = build_requests(sampler.config, sampler.tokenizer, prompts, 0)
    size = data.val_batch_size or len(prompts)
    outcomes: list[Outcome] = []
    timing: dict[str, float] = {}
    # lines also on a terminal: the run's own bar is there, which moves by steps
    with timed(timing, "testing"), report_progress("validation", len(prompts), "rows", say) as count:
        for start in range(0, len(prompts), size):
            chosen = slice(start, start + size)
            batch = sampler.send(cluster, prompts[chosen], requests[chosen], params, policy_version)
            batch.receive({}, count)
            outcomes += batch.outcomes({})
            batch.report_failures("validation", say)
    metrics = validation_metrics([prompt.task for prompt in prompts], outcomes)
    return metrics | {"timing_s/testing": timing["testing"]}
