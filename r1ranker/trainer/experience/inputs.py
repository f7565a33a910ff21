"""What a run begins with: its tokenizer and its prompts."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from r1ranker.data.loader import load_prompts
from r1ranker.data.prompt_store import PromptStore
from r1ranker.errors import UserError
from r1ranker.pretrained import load_tokenizer
from r1ranker.rollout.context import check_fits
from r1ranker.trainer.config.checks import list_files
from r1ranker.trainer.config.schema import Config


def load_shared_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The actor's tokenizer; raises UserError where the critic has another vocabulary."""
    tokenizer = load_tokenizer(str(config.actor_rollout_ref.model.path))
    if config.needs_critic and load_tokenizer(str(config.critic.model.path)).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"critic.model.path: {config.critic.model.path} has another vocabulary than the actor's "
            f"{config.actor_rollout_ref.model.path}; the same tokenizer is wanted"
        )
    return tokenizer


def load_split(
    config: Config, tokenizer: PreTrainedTokenizerBase, files: object, key: str, say: Callable[[str], None]
) -> PromptStore:
    """The prompts of the files that `key` names, as data.* asks for them; says how many were too long.

    Raises UserError where a model that computes them does not hold the longest and a response.
    """
    data = config.data
    prompts, left_out = load_prompts(
        list_files(files, key),
        tokenizer,
        data.max_prompt_length,
        data.filter_overlong_prompts,
        data.answer_style,
        data.think,
        data.cache_dir,
    )
    if left_out:
        say(f"{key}: {left_out} prompts over {data.max_prompt_length} tokens left out, {len(prompts)} kept")
    # a conversation goes on until its prompt is as long as may be
    longest = data.max_prompt_length if data.rounds == "conversation" else int(prompts.lengths.max())
    for model in (config.actor_rollout_ref.model, *([config.critic.model] if config.needs_critic else [])):
        check_fits(
            str(model.path), longest, data.max_response_length,
            f"{key}: a smaller data.max_prompt_length (found {data.max_prompt_length:,}), which leaves longer prompts out, or a "
            "smaller data.max_response_length is wanted",
        )  # fmt: skip
    return prompts
