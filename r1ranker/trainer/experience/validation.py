"""The policy on the validation rows, decoded as rollout.val_kwargs says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from r1ranker.data.prompt_store import Prompt
from r1ranker.progress import report_progress
from r1ranker.rollout.engine import SamplingParams
from r1ranker.trainer.experience.collect import build_requests
from r1ranker.trainer.experience.conversing import build_episodes
from r1ranker.trainer.experience.sampler import Sampler
from r1ranker.trainer.monitoring.metrics import timed, validation_metrics, validation_turns
from r1ranker.trainer.monitoring.rollouts import RolloutLog
from r1ranker.trainer.scoring.outcome import Outcome
from r1ranker.trainer.workers.cluster import Cluster


def validate(
    cluster: Cluster,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    policy_version: int,
    say: Callable[[str], None],
    rollouts: RolloutLog,
    step: int,
) -> dict[str, float]:
    """Mean reward and parts of each task, over the turns where rounds are conversations; `say` takes lines on how far it is, and on
    rewards that failed. A few responses go to `rollouts` as those of `step`."""
    data, val = sampler.config.data, sampler.config.actor_rollout_ref.rollout.val_kwargs
    free = sampler.config.actor_rollout_ref.rollout.constrain == "none"
    params = SamplingParams(
        temperature=val.temperature,
        top_p=val.top_p,
        top_k=val.top_k,
        max_tokens=data.max_response_length,
        end_loops=free or any(prompt.answer_format.think for prompt in prompts),
    )
    size, is_conversation = data.val_batch_size or len(prompts), data.rounds == "conversation"
    outcomes: list[Outcome] = []
    tasks: list[str] = []
    turns: list[int] = []
    read, rows = rollouts.choose_validated(len(prompts)), list[dict[str, Any]]()
    timing: dict[str, float] = {}
    config, tokenizer = sampler.config, sampler.tokenizer
    if is_conversation:
        episodes = build_episodes(config, tokenizer, prompts, 1, 0)
    else:
        requests = build_requests(config, tokenizer, prompts, 0)
    # lines also on a terminal: the run's own bar is there, which moves by steps
    with timed(timing, "testing"), report_progress("validation", len(prompts), "rows", say) as count:
        for start in range(0, len(prompts), size):
            chosen = slice(start, start + size)
            if is_conversation:
                batch = sampler.send_episodes(cluster, prompts[chosen], episodes[chosen], params, policy_version)
            else:
                batch = sampler.send(cluster, prompts[chosen], requests[chosen], params, policy_version)
            batch.receive({}, count)
            outcomes += batch.outcomes({})
            tasks += [prompt.task for prompt in batch.answered()]
            turns += batch.turns_each()
            shown = {place - start for place in read}
            rows += rollouts.describe(step, prompts[chosen], batch.trajectories({})[0], batch.parts, shown)
            batch.report_failures("validation", say)
    rollouts.write_validation(step, rows)
    metrics = validation_metrics(tasks, outcomes)
    if is_conversation:
        metrics |= validation_turns([prompt.task for prompt in prompts], turns)
    return metrics | {"timing_s/testing": timing["testing"]}
