"""How sequences lie in one packed row: segments one after another, some of which continue an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowLayout:
    """S segments of a row. Each attends to itself, causally, and to the whole of the segment that it continues."""

    bounds: tuple[int, ...]
    """[S + 1] from 0 to the row's length; no segment is empty"""
    prefixes: tuple[int, ...]
    """[S] the segment that each continues, itself a beginning; -1 for a beginning"""
    device: torch.device | None = None
    """where the tensors are wanted; None: on the CPU"""

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], prefixes: Sequence[int] | None = None) -> RowLayout:
        """Segments of these lengths; without `prefixes` each is a sequence by itself."""
        return cls(tuple(accumulate(lengths, initial=0)), tuple(prefixes or [-1] * len(lengths)))

    def to(self, device: torch.device) -> RowLayout:
        """The same for tensors on `device`."""
        return RowLayout(self.bounds, self.prefixes, device)

    @cached_property
    def has_prefixes(self) -> bool:
        """Whether any segment continues another."""
        return any(prefix >= 0 for prefix in self.prefixes)

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Start and end of each segment."""
        return tuple(pairwise(self.bounds))

    @cached_property
    def prefix_groups(self) -> tuple[tuple[tuple[int, int], tuple[tuple[int, int], ...]], ...]:
        """Each beginning with the segments that continue it, which follow it without a gap."""
        members: dict[int, list[tuple[int, int]]] = {}
        for segment, prefix in enumerate(self.prefixes):
            if prefix < 0:
                members[segment] = []
            else:
                members[prefix].append(self.spans[segment])
        for first, rest in members.items():
            ends = [self.spans[first], *rest]
            assert all(one[1] == following[0] for one, following in pairwise(ends)), "a family has a gap"
        return tuple((self.spans[first], tuple(rest)) for first, rest in members.items())

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """[S] tokens of each segment with the one that it continues: what its last token attends to."""
        own = [end - start for start, end in self.spans]
        return tuple(
            length + (own[prefix] if prefix >= 0 else 0) for length, prefix in zip(own, self.prefixes, strict=True)
        )

    @cached_property
    def max_seqlen_k(self) -> int:
        """Tokens that the longest sequence has with its prefix."""
        return max(self.lengths)

    @cached_property
    def max_seqlen_q(self) -> int:
        """Tokens of the longest segment."""
        return max(end - start for start, end in self.spans)

    @cached_property
    def cu_seqlens_q(self) -> Tensor:
        """`bounds` as int32 on the device."""
        return torch.tensor(self.bounds, dtype=torch.int32, device=self.device)

    @cached_property
    def cu_seqlens_k(self) -> Tensor:
        """[S + 1] int32: bounds of each segment's keys in `key_indices`."""
        return torch.tensor(list(accumulate(self.lengths, initial=0)), dtype=torch.int32, device=self.device)

    @cached_property
    def key_indices(self) -> Tensor:
        """Places in the row of the keys of every segment: those of its prefix, then its own."""
        places = []
        for (start, end), prefix in zip(self.spans, self.prefixes, strict=True):
            if prefix >= 0:
                places.append(torch.arange(*self.spans[prefix]))
            places.append(torch.arange(start, end))
        return torch.cat(places).to(self.device)
