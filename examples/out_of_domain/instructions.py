"""Whether an answer follows its instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def follows(question: Mapping[str, str], answers: Sequence[str]) -> dict[str, float]:
    """1 where the answer keeps the question's rule; `value` is what the rule is about."""
    answer, value = answers[0].strip(), question["value"]
    words = [word.strip(".,;:!?\"'()") for word in answer.split()]
    kept = {
        "capitals": answer.isupper() and value.upper() in answer,
        "words": len(words) == int(value) if value.isdigit() else False,
        "ends with": answer.rstrip(".").endswith(value),
        "one of": len(words) == 1 and words[0].lower() in value.split("|"),
        "without": bool(words) and value not in [word.lower() for word in words],
    }
    return {"followed": float(kept[question["rule"]])}
