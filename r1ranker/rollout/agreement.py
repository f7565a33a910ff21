"""Whether a model is computed here as transformers computes it: packed, with shared prompts, and with the engine's cache.

An architecture is not taken on trust. Its small twin (model/twin.py) answers two prompts with the engine's cache. The
log-probabilities of the engine, and the trainer's of the same answers, are held against transformers' eager attention over
one sequence at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from r1ranker.errors import UserError, first_line
from r1ranker.model.attention import PACKED, SETTING, register_packed
from r1ranker.model.layout import RowLayout
from r1ranker.model.policy_model import PolicyModel
from r1ranker.model.twin import VOCABULARY, build_twin, has_windows, narrow_config, sketch_twin
from r1ranker.pretrained import load_model_config, silence_transformers
from r1ranker.rollout.engine import Request, SamplingParams
from r1ranker.rollout.hf_batch import ContinuousBatch
from r1ranker.rollout.hf_cache import GROUPED, register_grouped

TOLERANCE = 1e-3
"""nats in float32: between ways to compute the same, up to 5e-5 was seen; what is left out makes tenths and more"""
WINDOW = 4
"""tokens, of a twin whose windows are tried"""
NO_BLOCKS = "it has no list of transformer blocks named layers; one shaped like Qwen2 or Llama is wanted"
NOT_BUILT = "it cannot be built small to be tried"
_TOKENS, _SAMPLES = 5, 2
"""of a response, and responses to a prompt"""

Sequences = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
"""prompt and response"""

_faults: dict[str, str | None] = {}
"""what was found of each config in this process"""


def check_architecture(path: str) -> None:
    """Raise UserError, which names the type and the layer, for a model that is not computed here as transformers does.

    Reads the config of a directory or hub id, and no weights.
    """
    config = load_model_config(path)
    key = json.dumps(config.to_dict() | {"_name_or_path": ""}, sort_keys=True, default=str)
    if key not in _faults:
        _faults[key] = find_fault(config)
    if _faults[key] is not None:
        raise UserError(f"{path}: a model of type {config.model_type} cannot be used: {_faults[key]}")


def find_fault(config: PretrainedConfig) -> str | None:
    """In what a model with `config` is not computed as transformers computes it; None where all agrees."""
    register_packed()
    register_grouped()
    silence_transformers()
    narrow = narrow_config(config)
    try:
        layers = getattr(sketch_twin(narrow).base_model, "layers", None)
        if layers is None:
            return NO_BLOCKS
        plain = build_twin(narrow, "eager")
        fault = _compare(plain, narrow, type(layers[0]).__name__)
    except _CannotBeTriedError as error:
        return f"{NOT_BUILT} ({error})"
    except Exception as error:
        return f"{NOT_BUILT} ({_said(error)})"
    return fault or (_try_windows(config) if has_windows(config) else None)


class _CannotBeTriedError(Exception):
    """transformers' own computation fails."""


def _try_windows(config: PretrainedConfig) -> str | None:
    """A window may be refused, sequence by sequence; it may not go unseen."""
    narrow = narrow_config(config, WINDOW)
    try:
        plain = build_twin(narrow, "eager")
        fault = _compare(plain, narrow, "attention", windowed=True)
    except Exception:  # no window of a few tokens can be had: what was seen without one stands
        return None
    return None if fault is None else f"a window of attention goes unseen: {fault}"


def _compare(plain: PreTrainedModel, config: PretrainedConfig, block: str, windowed: bool = False) -> str | None:
    size = int(getattr(config.get_text_config(), "vocab_size", VOCABULARY))
    prompts = _draw((7, 11), size)
    pairs = ((prompt, _draw((_TOKENS, _TOKENS), size, seed=len(prompt))) for prompt in prompts)
    sequences = [(prompt, response) for prompt, responses in pairs for response in responses]
    expected = _plain_logprobs(plain, sequences)  # first: what transformers cannot do itself is not our fault
    packed = build_twin(config, PACKED)

    def answer() -> tuple[Tensor, Tensor]:
        answers, logprobs = _answer(config, prompts)
        return _plain_logprobs(plain, answers), logprobs

    ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "of sequences in one row": lambda: (expected, _packed_logprobs(packed, sequences, shares=False)),
        "of responses that share a prompt": lambda: (expected, _packed_logprobs(packed, sequences, shares=True)),
        "with the engine's cache": answer,
    }
    for way, compute in ways.items():
        try:
            wanted, found = compute()
        except UserError as error:
            return None if windowed else str(error).removeprefix(SETTING)
        except _CannotBeTriedError:
            raise
        except Exception as error:
            return f"the log-probabilities {way} cannot be computed with layers of type {block} ({_said(error)})"
        difference = (found - wanted).abs().max().item()
        if not difference <= TOLERANCE:  # nor is it where it is not a number
            layer = _first_different(plain, packed, sequences) or block
            return (
                f"the log-probabilities {way} differ from those of transformers by up to {difference:.2g}; "
                f"layers of type {layer} are not plain attention"
            )
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error, 200)}"


def _answer(config: PretrainedConfig, prompts: Sequence[Sequence[int]]) -> tuple[Sequences, Tensor]:
    """Responses that the engine samples, and the log-probabilities that it samples them with."""
    params = SamplingParams(_SAMPLES, temperature=1.0, top_p=1.0, max_tokens=_TOKENS)
    batch = ContinuousBatch(build_twin(config, GROUPED), (), str, _SAMPLES * len(prompts), params)
    for key, prompt in enumerate(prompts):
        batch.add(key, Request(list(prompt), seed=key))
    sequences: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    logprobs: list[float] = []
    while not batch.is_empty:
        for key, completions in batch.step():
            for one in completions:
                sequences.append((tuple(prompts[key]), tuple(one.token_ids)))
                logprobs += one.logprobs
    return sequences, torch.tensor(logprobs)


def _draw(lengths: Sequence[int], vocabulary: int, seed: int = 1) -> list[tuple[int, ...]]:
    """Token sequences of these lengths, of a `vocabulary` of so many."""
    generator = torch.Generator().manual_seed(seed)
    # the first ids are those of padding, beginning and end
    return [
        tuple(torch.randint(min(3, vocabulary - 1), vocabulary, (length,), generator=generator).tolist())
        for length in lengths
    ]


@torch.no_grad()
def _plain_logprobs(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Log-probabilities of the responses' tokens, one sequence at a time, as transformers has them."""
    logprobs = []
    for prompt, response in sequences:
        try:
            logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0].float()
        except Exception as error:
            raise _CannotBeTriedError(_said(error)) from error
        if not logits.isfinite().all():
            raise _CannotBeTriedError("its logits are not finite")
        targets = torch.tensor(response)[:, None]
        logprobs.append(logits[len(prompt) - 1 : -1].log_softmax(dim=1).gather(1, targets)[:, 0])
    return torch.cat(logprobs)


@torch.no_grad()
def _packed_logprobs(model: PreTrainedModel, sequences: Sequences, shares: bool) -> Tensor:
    """The same as the trainer computes them, of all sequences in one row."""
    row, predicting = _row(sequences, shares)
    targets = torch.tensor([token for _, response in sequences for token in response])
    none = torch.zeros(0, dtype=torch.long)
    policy = PolicyModel(model)
    found, _ = policy(torch.tensor(predicting), targets, none, none[:, None], 1.0, False, False, **row)
    return torch.as_tensor(found)


def _row(sequences: Sequences, shares: bool) -> tuple[dict[str, Any], list[int]]:
    """Inputs of a packed row, and the places that predict the responses' tokens. `shares`: a prompt stands once."""
    segments: list[tuple[tuple[int, ...], int, int]] = []  # tokens, first position, segment that it continues
    places: list[tuple[int, int]] = []  # segments that predict a response's first token and the others
    beginnings: dict[tuple[int, ...], int] = {}
    for prompt, response in sequences:
        if not shares:
            segments.append((prompt + response[:-1], 0, -1))
            places.append((len(segments) - 1, len(segments) - 1))
            continue
        if prompt not in beginnings:
            beginnings[prompt] = len(segments)
            segments.append((prompt, 0, -1))
        segments.append((response[:-1], len(prompt), beginnings[prompt]))
        places.append((beginnings[prompt], len(segments) - 1))
    starts = list(accumulate((len(tokens) for tokens, _, _ in segments), initial=0))
    predicting: list[int] = []
    for (first, others), (prompt, response) in zip(places, sequences, strict=True):
        after = starts[others] + (0 if shares else len(prompt))
        predicting += [starts[first] + len(prompt) - 1, *range(after, after + len(response) - 1)]
    inputs = {
        "input_ids": torch.tensor([[token for tokens, _, _ in segments for token in tokens]]),
        "position_ids": torch.cat([torch.arange(at, at + len(tokens)) for tokens, at, _ in segments])[None],
        "layout": RowLayout.from_lengths(
            [len(tokens) for tokens, _, _ in segments], [prefix for *_, prefix in segments]
        ),
    }
    return inputs, predicting


def _first_different(plain: PreTrainedModel, packed: PreTrainedModel, sequences: Sequences) -> str | None:
    """The class of the first part of a block whose output for the last sequence differs behind others in a row."""
    prompt, response = sequences[-1]
    alone = torch.tensor([prompt + response[:-1]])
    row, _ = _row(sequences, shares=False)
    expected = _outputs(plain, {"input_ids": alone})
    found = _outputs(packed, row)
    length, whole = alone.shape[1], row["input_ids"].shape[1]
    for name, (kind, output) in expected.items():
        other = found[name][1] if name in found else output
        for dim in range(output.ndim):
            if output.shape[dim] == length and other.ndim == output.ndim and other.shape[dim] == whole:
                own = other.narrow(dim, whole - length, length)
                if own.shape == output.shape and not torch.allclose(own, output, atol=TOLERANCE, rtol=TOLERANCE):
                    return kind
    return None


@torch.no_grad()
def _outputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, tuple[str, Tensor]]:
    """Class and output of each part of each block, in the order in which they are computed."""
    outputs: dict[str, tuple[str, Tensor]] = {}

    def keep(name: str, module: torch.nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        if isinstance(first, Tensor):
            outputs[name] = type(module).__name__, first

    trunk: Any = model.base_model
    hooks = [
        part.register_forward_hook(partial(keep, f"{number}.{name}"))
        for number, block in enumerate(trunk.layers)
        for name, part in block.named_children()
    ]
    try:
        trunk(use_cache=False, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
