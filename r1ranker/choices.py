"""Names that settings take, where nothing has to be loaded to know them."""

from __future__ import annotations

AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16")
"""of what a model is computed in; auto: bfloat16 on GPUs, float32 on the CPU"""
ENGINES = ("hf", "vllm")
"""that generate; auto: vllm where it is installed"""
