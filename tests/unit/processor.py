"""Marks of tests that need instructions which not every processor has."""

from __future__ import annotations

import pytest
import torch

from r1ranker.rollout.hf_packed import is_packed

needs_bfloat16 = pytest.mark.skipif(
    not is_packed(torch.bfloat16, 64), reason="this processor has no instructions for bfloat16"
)
needs_avx = pytest.mark.skipif(
    not is_packed(torch.float32, 256), reason="this processor has no AVX, or torch no oneDNN"
)
