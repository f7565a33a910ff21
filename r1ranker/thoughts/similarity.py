"""How requests are compared; apart from the comparing, which waits for large imports."""

from __future__ import annotations

from typing import Literal

Similarity = Literal["tfidf", "bm25", "random"]
"""random: any thoughts of the task, for comparison; always the same ones of a request"""
