"""What can be asked of a search for similar requests; apart from the search, which waits for large imports."""

from __future__ import annotations

from typing import Literal

Similarity = Literal["tfidf", "bm25", "embeddings", "random"]
"""random: any requests, for comparison; always the same ones of a request"""
Within = Literal["task", "scenario"]
"""whose requests are looked at: the task's own, or those of all tasks of its scenario, such as routing"""
ShotContent = Literal["thoughts", "answers"]
"""what is shown of a similar request: what was thought of it or, for comparison, which candidate was best"""
