"""python benchmarks/model_types.py [TYPE ...] [--write]: which of the installed transformers' causal language models can be used.

Each type is built small from its default config, and held against transformers as every model is before it is used
(r1ranker/rollout/agreement.py). `--write` puts the table of all types into docs/models.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from textwrap import shorten
from typing import Any

from transformers import __version__
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from r1ranker.atomic import atomic_path
from r1ranker.rollout.agreement import NO_BLOCKS, NOT_BUILT, find_fault

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- types: begin -->", "<!-- types: end -->"
AGREES, REFUSED, UNBUILT = "agrees", "refused", "cannot be built small"
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SETTINGS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 64},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
"""what default configs lack that the published models of the type have"""
_LAYER = re.compile(r"layers of type (\w+)")
_HANDED = re.compile(r"attends with ([^;]+)")


def try_type(name: str) -> tuple[str, str]:
    """(verdict, why) of a model type with its default config."""
    try:
        fault = find_fault(CONFIG_MAPPING[name](**SETTINGS.get(name, {})))
    except Exception as error:
        return UNBUILT, f"its default config cannot be made ({type(error).__name__})"
    if fault is None:
        return AGREES, ""
    if fault.startswith(NOT_BUILT):
        return UNBUILT, shorten(fault.removeprefix(NOT_BUILT).strip(" ()"), 70, placeholder=" ...")
    if fault == NO_BLOCKS:
        return REFUSED, "no list of blocks named `layers`"
    handed, layer = _HANDED.search(fault), _LAYER.search(fault)
    if handed:
        return REFUSED, f"attends with {handed[1]}"
    return REFUSED, f"`{layer[1]}`" if layer else shorten(fault, 70, placeholder=" ...")


def render_table(verdicts: dict[str, tuple[str, str]]) -> str:
    """Lines of the page between its marks."""
    count = Counter(verdict for verdict, _ in verdicts.values())
    counts = f"{count[AGREES]} agree, {count[REFUSED]} are refused, {count[UNBUILT]} cannot be built small"
    lines = [
        f"transformers {__version__}, {len(verdicts)} types: {counts}.",
        "",
        "| model type | | why |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {name} | {verdict} | {why} |" for name, (verdict, why) in sorted(verdicts.items())]
    return "\n".join(lines)


def read_table(text: str) -> dict[str, tuple[str, str]]:
    """The inverse of `render_table`, from the page's text."""
    rows = text.split(BEGIN)[1].split(END)[0].splitlines()
    cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("|"))
    return {name: (verdict, why) for name, verdict, why in cells if verdict in (AGREES, REFUSED, UNBUILT)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("types", nargs="*", help="model types; all of them by default")
    parser.add_argument("--write", action="store_true", help="put the table of all types into docs/models.md")
    options = parser.parse_args()
    unknown = sorted(set(options.types) - set(TYPES))
    if unknown or (options.write and options.types):
        parser.error(f"no such types: {', '.join(unknown)}" if unknown else "--write takes all types; name none")
    verdicts = {}
    for name in options.types or TYPES:
        verdicts[name] = try_type(name)
        print(f"{name}: {': '.join(filter(None, verdicts[name]))}", flush=True)
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        with atomic_path(PAGE) as temporary:
            table = render_table(verdicts)
            temporary.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
