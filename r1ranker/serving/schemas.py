"""Bodies as the OpenAPI page shows them. They are read leniently (dialects.py), so no model checks them."""

from __future__ import annotations

from typing import Any

_TEXTS = {
    "type": "array",
    "items": {"oneOf": [{"type": "string"}, {"type": "object", "properties": {"text": {"type": "string"}}}]},
}
RERANK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["query"],
                    "properties": {
                        "query": {"type": "string"},
                        "documents": _TEXTS | {"description": "Cohere, Jina, Voyage, vLLM, Infinity, Weaviate"},
                        "texts": _TEXTS | {"description": "TEI"},
                        "model": {"type": "string", "description": "any name: what is loaded answers"},
                        "top_n": {"type": "integer", "description": "documents wanted back; 0: all"},
                        "top_k": {"type": "integer", "description": "the same, by Voyage's clients"},
                        "return_documents": {"type": "boolean"},
                        "return_thoughts": {
                            "type": "boolean",
                            "description": "what the model thought, beside the items",
                        },
                    },
                },
                "example": {
                    "query": "how are glacier caves formed?",
                    "documents": ["A glacier cave is a cave formed within the ice of a glacier.", "Bread rises."],
                },
            }
        },
    }
}
RANK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["candidates"],
                    "properties": {
                        "query": {"type": "string"},
                        "history": {"type": "array", "items": {"type": "string"}, "description": "recommendation"},
                        "candidates": {
                            "type": "array",
                            "items": {
                                "oneOf": [
                                    {"type": "string"},
                                    {
                                        "type": "object",
                                        "properties": {"name": {"type": "string"}, "text": {"type": "string"}},
                                    },
                                ]
                            },
                        },
                        "task": {"type": "string", "description": "such as Rec-Movie"},
                        "strategy": {"type": "string", "description": "another one than the service has"},
                        "stream": {"type": "boolean", "description": "server-sent events: round, then ranking"},
                    },
                },
                "example": {"task": "Rec-Movie", "history": ["Alien"], "candidates": ["Aliens", "Heidi"]},
            }
        },
    }
}
