"""Continuous batching: responses under way leave when they are finished, and waiting requests take their places."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1ranker.model.layout import RowLayout
from r1ranker.rollout.constraint import ConstraintState
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.rollout.hf_cache import Attend, Decode, KVCache, Prefill
from r1ranker.rollout.hf_kept import Extend, Kept, KeptSequences, copy_sequence
from r1ranker.rollout.hf_rows import DecodeLayout, Group, OpenRequest, Row
from r1ranker.rollout.loops import ends_in_loop
from r1ranker.rollout.sampling import sample_tokens, uniform_stream, weigh_tokens

PREFILL_TOKENS = 4096
"""of one forward pass over prompts"""
PROMPT_TOKENS = 2**16
"""of all prompts whose keys and values are kept at once: 1.5 GB of a model of 135M in bfloat16, 8 GB of one of 7B"""
_PROMPT_STEP = 128
"""tokens that the room for prompts is a multiple of, so that it does not grow with every longer one"""
_RESPONSE_TOKENS = 128
"""that responses have room for at first; doubled when they need more"""

Done = list[tuple[int, list[Completion]]]


class ContinuousBatch:
    """Responses under way and requests that wait, all with the same sampling parameters.

    Rows (responses) and groups (prompts) leave no gaps: where one ends, the last one moves into its place.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop: Collection[int],
        token_text: Callable[[int], str],
        max_num_seqs: int,
        params: SamplingParams,
        kept: KeptSequences | None = None,
        fair: bool = False,
    ) -> None:
        """`kept`: what requests go on with, and leave for others; `fair`: what was added first begins first."""
        self.params, self._fair, self._kept = params, fair, KeptSequences() if kept is None else kept
        self._model, self._stop, self._token_text = model, stop, token_text
        self._capacity = max(max_num_seqs, params.n)  # the samples of a prompt begin together
        self._waiting: list[tuple[int, int, OpenRequest]] = []
        self._added = 0
        self._step = 0
        self._rows: list[Row] = []
        self._groups: list[Group] = []
        self._layout: DecodeLayout | None = None
        self._prompts, self._responses = KVCache(self._capacity // params.n), KVCache(self._capacity)
        self._room = min(params.max_tokens, _RESPONSE_TOKENS)
        shape, device = (self._capacity, params.max_tokens), model.device
        self._stop_ids = torch.tensor(sorted(stop), dtype=torch.long, device=device)
        # of each row: what was sampled, what it is sampled with, its prompt's length and its first step
        self._tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(shape, device=device)
        self._uniforms = torch.zeros(shape, dtype=torch.float64, device=device)
        self._starts = torch.zeros(self._capacity, dtype=torch.long, device=device)
        self._born = torch.zeros(self._capacity, dtype=torch.long, device=device)

    @property
    def is_empty(self) -> bool:
        """Nothing is under way and nothing waits."""
        return not self._rows and not self._waiting

    def add(self, key: int, request: Request) -> None:
        """Have a request wait; the longest prompts go first, so that none of them is what all wait for in the end.

        Where nothing is decoded there is no end to wait for: the lowest keys go first, so that what was begun is done early.
        """
        self._added += 1
        opened = OpenRequest(key, request, [None] * self.params.n)
        first = self._added if self._fair else key if self.params.choices else -len(request.token_ids)
        heapq.heappush(self._waiting, (first, self._added, opened))

    @torch.inference_mode()
    def cancel(self, key: int) -> None:
        """Drop a request, with its responses under way."""
        kept = [waiting for waiting in self._waiting if waiting[-1].key != key]
        if len(kept) < len(self._waiting):
            self._waiting = kept
            heapq.heapify(kept)
        ended = [place for place, row in enumerate(self._rows) if row.open.key == key]
        for place in ended:
            self._rows[place].group.live -= 1
        if ended:
            self._close_gaps(ended)

    @torch.inference_mode()
    def step(self) -> Done:
        """Let in requests there is room for and sample a token of every row; (key, completions) of what is complete."""
        done = self._admit()
        return done + self._decode() if self._rows else done

    def _admit(self) -> Done:
        if not self._waiting:
            return []
        n = self.params.n
        if self.params.choices:
            # nothing is decoded: more prompts than a pass takes would only wait for one another
            longest, budget = max(len(one.request.token_ids) for *_, one in self._waiting), 2 * PREFILL_TOKENS
        else:
            budget, longest = PROMPT_TOKENS, -self._waiting[0][0]
            if self._fair:
                longest = max(len(one.request.token_ids) for *_, one in self._waiting)
        longest = max(self._prompts.length, _round_up(longest))
        self._prompts.most = max(1, min(self._capacity // n, budget // longest))
        free = min((self._capacity - len(self._rows)) // n, self._prompts.most - len(self._groups))
        # several at a time where more wait: a forward pass over one short prompt costs more than a row idle for a while
        if free < min(len(self._waiting), max(1, self._prompts.most // 8)):
            return []
        prompts: dict[tuple[int, ...], list[OpenRequest]] = {}
        for _ in range(min(len(self._waiting), free)):
            opened = heapq.heappop(self._waiting)[-1]
            prompts.setdefault(tuple(opened.request.token_ids), []).append(opened)
        first_row, first_group = len(self._rows), len(self._groups)
        begun: list[Kept | None] = []
        for ids, alike in prompts.items():
            before = [(found.shared_with(ids), found) for one in alike if (found := self._kept.take(one.key))]
            cached, sequence = max(before, key=itemgetter(0), default=(0, None))
            begun.append(sequence)
            group = Group(len(self._groups), len(ids), live=n * len(alike), cached=cached)
            self._groups.append(group)
            for opened in alike:
                self._rows += [
                    Row(opened, sample, group, self._step, self._state(opened.request)) for sample in range(n)
                ]
        self._layout = None
        self._responses.reserve(len(self._rows), self._room)
        rows, new = self._rows[first_row:], slice(first_row, len(self._rows))
        streams = [uniform_stream(row.open.request.seed, row.sample, self.params.max_tokens) for row in rows]
        self._uniforms[new] = torch.from_numpy(np.stack(streams))
        self._starts[new] = torch.tensor([row.group.length for row in rows])
        self._born[new] = self._step
        logits = self._prefill(list(prompts), first_group, begun)
        allowed = self._allowed(first_row)
        of_rows = torch.tensor([row.group.slot - first_group for row in rows], device=logits.device)
        if self.params.choices:
            for row, of_row, some in zip(rows, of_rows.tolist(), allowed, strict=True):
                row.choices = weigh_tokens(logits[of_row], some, self.params)
        return self._take(*sample_tokens(logits[of_rows], self._uniforms[new, 0], allowed, self.params), allowed)

    def _state(self, request: Request) -> ConstraintState | None:
        return ConstraintState(request.constraint, self._token_text) if request.constraint else None

    def _prefill(self, prompts: Sequence[tuple[int, ...]], first_slot: int, begun: Sequence[Kept | None]) -> Tensor:
        """Logits after each prompt [G, V]; the prompts' keys and values go into the slots from `first_slot` on.

        What a prompt shares with the sequence it has in `begun` is copied from there.
        """
        longest = max(len(prompt) for prompt in prompts)
        self._prompts.reserve(len(self._groups), _round_up(longest))
        cached = [group.cached for group in self._groups[first_slot:]]
        for slot, (sequence, shared) in enumerate(zip(begun, cached, strict=True), first_slot):
            if sequence is not None:
                self._prompts.fill(slot, sequence.layers, shared)
        logits: list[Tensor] = []
        for start, end in _chunks([len(prompt) - shared for prompt, shared in zip(prompts, cached, strict=True)]):
            starts, some = cached[start:end], prompts[start:end]
            layout = RowLayout.from_lengths([len(one) - shared for one, shared in zip(some, starts, strict=True)])
            layout = layout.to(self._model.device)
            slots = range(first_slot + start, first_slot + end)
            ids = torch.tensor([token for one, shared in zip(some, starts, strict=True) for token in one[shared:]])
            positions = torch.cat([torch.arange(shared, len(one)) for one, shared in zip(some, starts, strict=True)])
            attend: Attend = Prefill(self._prompts, slots, layout)
            if any(starts):
                attend = Extend(self._prompts, slots, starts, layout)
            logits.append(self._forward(ids, positions, attend, layout.cu_seqlens_q[1:].long() - 1))
        return torch.cat(logits)

    def _forward(self, ids: Tensor, positions: Tensor, attend: Attend, keep: Tensor | int) -> Tensor:
        """Logits [K, V] of a row of tokens [T] at the places `keep` [K] (0: at all)."""
        device = self._model.device
        logits: Tensor = self._model(
            input_ids=ids.to(device)[None],
            position_ids=positions.to(device)[None],
            use_cache=False,
            attend=attend,
            logits_to_keep=keep,
        ).logits[0]
        return logits

    def _decode(self) -> Done:
        self._step += 1
        self._layout = layout = self._layout or self._arranged()
        count = len(self._rows)
        length = self._step - layout.oldest
        if length > self._room:
            self._room = min(2 * self._room, self.params.max_tokens)
            self._responses.reserve(count, self._room)
        written = self._step - self._born[:count] - 1
        # where all began together, their places are one slice: an index of tensors takes several times as long
        alike = layout.oldest == layout.newest
        attend = Decode(
            self._prompts,
            self._responses,
            layout.members,
            layout.places,
            layout.prompt_bias,
            None if alike else _bias(written + 1, length, self._model.dtype),
            (slice(count), slice(None), length - 1) if alike else (layout.rows, slice(None), written),
            length,
            self._step + layout.reach,
        )
        ids = self._tokens[:count].gather(1, written[:, None])[:, 0]
        positions = self._starts[:count] + written
        allowed = self._allowed(0)
        uniforms = self._uniforms[:count].gather(1, written[:, None] + 1)[:, 0]
        # where one token alone is allowed there is nothing to be computed
        open_rows = [row for row, some in enumerate(allowed) if len(some) != 1]
        if len(open_rows) == count:
            logits = self._forward(ids, positions, attend, 0)
            return self._take(*sample_tokens(logits, uniforms, allowed, self.params), allowed)
        tokens = torch.tensor([some[0] if len(some) == 1 else 0 for some in allowed], device=ids.device)
        logprobs = torch.zeros(count, device=ids.device)
        keep = torch.tensor(open_rows, dtype=torch.long, device=ids.device)
        logits = self._forward(ids, positions, attend, keep)
        if open_rows:
            tokens[keep], logprobs[keep] = sample_tokens(
                logits, uniforms[keep], [allowed[row] for row in open_rows], self.params
            )
        return self._take(tokens, logprobs, allowed)

    def _allowed(self, first: int) -> list[list[int]]:
        """The ids that may come next, of the rows from `first` on; empty: any."""
        return [row.state.allowed_token_ids() if row.state else [] for row in self._rows[first:]]

    def _arranged(self) -> DecodeLayout:
        members: list[list[int]] = [[] for _ in self._groups]
        inside = []
        for place, row in enumerate(self._rows):
            inside.append(len(members[row.group.slot]))
            members[row.group.slot].append(place)
        most = max(len(of_group) for of_group in members)
        places = [row.group.slot * most + place for row, place in zip(self._rows, inside, strict=True)]
        in_order = places == list(range(len(self._groups) * most))
        lengths = torch.tensor([group.length for group in self._groups])
        device = self._model.device
        return DecodeLayout(
            rows=torch.arange(len(places), device=device),
            members=torch.tensor([of_group + [0] * (most - len(of_group)) for of_group in members], device=device),
            places=None if in_order else torch.tensor(places, device=device),
            prompt_bias=_bias(lengths, int(lengths.max()), self._model.dtype).to(device),
            oldest=min(row.born for row in self._rows),
            newest=max(row.born for row in self._rows),
            reach=max(row.group.length - row.born for row in self._rows),
        )

    def _take(self, tokens: Tensor, logprobs: Tensor, allowed: Sequence[list[int]]) -> Done:
        """Put tokens [K] and their log-probabilities [K] to the last K rows, and end those that are finished."""
        first, count = len(self._rows) - len(tokens), len(self._rows)
        rows = torch.arange(first, count, device=tokens.device)
        columns = self._step - self._born[first:count]
        self._tokens[rows, columns] = tokens
        self._logprobs[rows, columns] = logprobs
        stopped = (tokens[:, None] == self._stop_ids).any(dim=1) | (columns + 1 == self.params.max_tokens)
        ended = (stopped.nonzero()[:, 0] + first).tolist()
        if self.params.end_loops:
            ended = sorted({*ended, *self._looping(first, tokens.tolist())})
        if any(row.state for row in self._rows[first:]):
            over = set(ended)
            for place, token, ids in zip(range(first, count), tokens.tolist(), allowed, strict=True):
                row = self._rows[place]
                if row.state:
                    row.allowed.append(ids)
                    if place not in over:
                        row.state.accept_token(token)
                        if self._finished(place, row, row.state.forced_token_ids()):
                            over.add(place)
            ended = sorted(over)
        return self._end(ended) if ended else []

    def _looping(self, first: int, tokens: Sequence[int]) -> Iterator[int]:
        """Places, from `first` on, of rows that repeat themselves with these tokens."""
        for place, token in enumerate(tokens, first):
            row = self._rows[place]
            row.ids.append(token)
            if ends_in_loop(row.ids):
                yield place

    def _finished(self, place: int, row: Row, rest: tuple[int, ...] | None) -> bool:
        """Put down the rest of a response where it is certain: no forward pass says more about it."""
        if rest is None:
            return False
        length = self._step - row.born + 1
        stop = next((end for end, token in enumerate(rest, start=1) if token in self._stop), len(rest))
        rest = rest[: min(stop, self.params.max_tokens - length)]
        row.rest = len(rest)
        row.allowed += [[token] for token in rest]
        after = slice(length, length + row.rest)
        self._tokens[place, after] = torch.tensor(rest, dtype=torch.long, device=self._tokens.device)
        self._logprobs[place, after] = 0.0
        return True

    def _end(self, ended: Sequence[int]) -> Done:
        done: Done = []
        for place in ended:
            row = self._rows[place]
            length = self._step - row.born + 1 + row.rest
            ids = self._tokens[place, :length].tolist()
            row.open.completions[row.sample] = Completion(
                token_ids=ids,
                logprobs=self._logprobs[place, :length].tolist(),
                finish_reason="stop" if ids[-1] in self._stop else "length",
                allowed=row.allowed,
                choices=row.choices,
                cached_tokens=row.group.cached,
            )
            complete = [one for one in row.open.completions if one is not None]
            if len(complete) == self.params.n:
                done.append((row.open.key, complete))
                self._keep(place, row, ids)
            row.group.live -= 1
        self._close_gaps(ended)
        return done

    def _keep(self, place: int, row: Row, response: Sequence[int]) -> None:
        """Keep what was computed of a request that is gone on with, and of the response in that place, where there is room."""
        computed = (*row.open.request.token_ids, *response[: self._step - row.born])
        if row.open.request.is_continued and self._kept.has_room(len(computed)):
            copied = copy_sequence(computed, self._prompts, row.group.slot, row.group.length, self._responses, place)
            self._kept.put(row.open.key, copied)

    def _close_gaps(self, ended: Sequence[int]) -> None:
        """Take ended rows out, and the groups that have none left."""
        self._layout = None
        written = max(self._step - row.born for row in self._rows)
        sources, targets = _moves(ended, len(self._rows))
        if sources:
            for tensor in (self._tokens, self._logprobs, self._uniforms, self._starts, self._born):
                tensor[targets] = tensor[sources]
            self._responses.move(sources, targets, written)
        for source, target in zip(sources, targets, strict=True):
            self._rows[target] = self._rows[source]
        del self._rows[len(self._rows) - len(ended) :]
        empty = [group.slot for group in self._groups if not group.live]
        sources, targets = _moves(empty, len(self._groups))
        if sources:
            self._prompts.move(sources, targets, max(self._groups[source].length for source in sources))
        for source, target in zip(sources, targets, strict=True):
            self._groups[target] = self._groups[source]
            self._groups[target].slot = target
        del self._groups[len(self._groups) - len(empty) :]


def _round_up(tokens: int) -> int:
    """The room for a prompt."""
    return -(-tokens // _PROMPT_STEP) * _PROMPT_STEP


def _moves(gone: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """Which of `count` places move, and where to, so that what is left without `gone` (ascending) has no gaps."""
    left, leaving = count - len(gone), set(gone)
    return [place for place in range(left, count) if place not in leaving], [place for place in gone if place < left]


def _bias(lengths: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """[N, longest]: 0 at the first lengths [N] places of each row, -inf after them."""
    after = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return torch.zeros(after.shape, dtype=dtype, device=lengths.device).masked_fill_(after, -torch.inf)


def _chunks(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Bounds of runs of prompts that make up a forward pass each."""
    start = total = 0
    for place, length in enumerate(lengths):
        if place > start and total + length > PREFILL_TOKENS:
            yield start, place
            start, total = place, 0
        total += length
    yield start, len(lengths)
