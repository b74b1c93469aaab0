"""Write docs/vram.md from its template, the tables in docs/data/ and the estimate itself.

python scripts/build_vram_docs.py [--check]    # --check: exit 1 where the page is not current
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measured_runs import DATA, TABLE, Row
from vram_error import Scored, grouped, score_table, summary
from vram_figures import Rows, example_values, markdown, textbook_values

from ftcli.memory import LOSS_CHUNK_POSITIONS, estimate
from ftcli.memory.hardware import GIB
from ftcli.memory.head import HEAD_TILE_TOKENS
from ftcli.memory.static import static_bytes

PAGE = DATA.parent / "vram.md"
TEMPLATE = DATA.parent / "vram.template.md"
CAUSES = DATA / "causes.json"
OWN_RUNS = DATA / "own_runs.csv"
NOTE = "<!-- written by scripts/build_vram_docs.py from vram.template.md -->"
WORST = 10

# Where a fitted or assumed number stands, and what it rests on.
CONSTANTS = (
    (
        "ftcli.memory.activations",
        "_TEMPORARIES_ALIVE",
        "share of a layer's backward temporaries that are alive together",
        "fitted on half of the published runs of like stacks",
    ),
    (
        "ftcli.memory.reserve",
        "_OF_ALL",
        "reserve of the allocator, of all that is allocated",
        "fitted on the like runs that state reserved or nvidia-smi figures",
    ),
    ("ftcli.memory.reserve", "_OF_ACTIVATIONS", "… of the activations", "the same runs"),
    ("ftcli.memory.reserve", "_OF_16_BIT_LOGITS", "… of logits that fp32 copies", "the same runs"),
    ("ftcli.memory.reserve", "_OF_FP32_LOGITS", "… of logits in fp32 throughout", "the same runs"),
    ("ftcli.memory.interval", "_WIDEST_LOW", "lower end of an interval, at most", "chosen"),
    ("ftcli.memory.interval", "_LEAST_HIGH", "upper end of an interval, at least", "chosen"),
    (
        "measured_runs",
        "_FEWEST_CHARACTERS_PER_TOKEN",
        "characters of a token, for runs that limit texts by characters (PEFT's)",
        "assumed; one number for all of them",
    ),
    (
        "ftcli.memory.hardware",
        "_CONTEXT_BYTES",
        "CUDA context",
        "T4 and A100 from logs, others assumed",
    ),
)

# LLaMA-Factory's README, "Hardware Requirement": GB for these billions of parameters.
_TABLE_BILLIONS = (0, 7, 14, 30, 70)
_TABLE_GB = {
    "full": (0, 60, 120, 300, 600),
    "16 bits": (0, 16, 32, 64, 160),
    "8 bits": (0, 10, 20, 40, 80),
    "4 bits": (0, 6, 12, 24, 48),
}


def main(check: bool) -> int:
    return settle(PAGE, page(), check)


def settle(path: Path, text: str, check: bool) -> int:
    """Write a page that is not current, or say that it is not: the exit code."""
    name = path.relative_to(path.parents[1])
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    if check:
        print(f"{name} is not current: make docs", file=sys.stderr)
        return 1
    path.write_text(text, encoding="utf-8")
    print(f"wrote {name}")
    return 0


def page() -> str:
    return filled(TEMPLATE.read_text(encoding="utf-8"), values())


def filled(template: str, found: dict[str, str]) -> str:
    """The template with each {{name}} replaced; every name is used, and every mark has a value."""
    marks = set(re.findall(r"\{\{(\w+)\}\}", template))
    if marks != found.keys():
        raise ValueError(f"marks without a value, or values without: {marks ^ found.keys()}")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: found[mark[1]], template)


def values() -> dict[str, str]:
    scored, left_out = score_table(TABLE)
    return {
        "note": NOTE,
        "rows": str(len(scored)),
        "errors": error_table(scored),
        "left_out": _left_out(left_out),
        "worst": worst_table(scored),
        "rules": rules_table(scored),
        "constants": constants_table(),
        "chunk": f"{LOSS_CHUNK_POSITIONS:,}",
        "tile": f"{HEAD_TILE_TOKENS:,}",
        "own_runs": own_runs(),
        **example_values(),
        **textbook_values(),
    }


def share(number: float) -> str:
    return f"{number:.1%}".replace("-0.0%", "0.0%")


def error_table(scored: Sequence[Scored]) -> str:
    like = [each for each in scored if each.like_ours]
    rows = [_error_row("**all**", summary(scored)), _error_row("**like stack**", summary(like))]
    keys: dict[str, Callable[[Scored], str]] = {
        "method": lambda each: each.run.row["method"],
        "figure": lambda each: each.run.measure,
        "source": source_of,
    }
    for name, key in keys.items():
        for group, found in grouped(scored, key).items():
            rows.append(_error_row(f"{name}: {group}", found))
        if name == "method":
            rows += [
                _error_row(f"like stack, {name}: {group}", found)
                for group, found in grouped(like, key).items()
            ]
    return markdown(["", "rows", "median", "9 in 10", "bias", "inside", "width"], rows)


def source_of(each: Scored) -> str:
    """Owner and name of the repository, or the package."""
    first, _, rest = each.run.row["source"].partition(" ")
    return rest.split(" ")[0] if first == "PyPI" else first


def _error_row(name: str, found: dict[str, Any]) -> list[str]:
    keys = ("median", "p90", "bias", "coverage", "median_width")
    return [name, str(found["rows"]), *(share(found[key]) for key in keys)]


def _left_out(left_out: list[dict[str, str]]) -> str:
    if not left_out:
        return "No row is left out."
    rows = [f"{row['row_id']} ({row['reason']})" for row in left_out]
    return f"Left out, for the estimate has no words for them: {'; '.join(rows)}."


def worst(scored: Sequence[Scored]) -> list[Scored]:
    return sorted(scored, key=lambda each: -abs(each.error))[:WORST]


def worst_table(scored: Sequence[Scored]) -> str:
    """The rows furthest off, each with its cause; raises KeyError where none is known."""
    known = json.loads(CAUSES.read_text(encoding="utf-8"))
    rows: Rows = []
    first: dict[str, str] = {}
    for each in worst(scored):
        row_id = each.run.row["row_id"]
        key = known["rows"][row_id]
        cause = f"as row {first[key]}" if key in first else known["causes"][key]
        first.setdefault(key, row_id)
        sizes = f"{each.run.measured_bytes / GIB:.1f} | {each.estimated_bytes / GIB:.1f}"
        rows.append([row_id, _what(each.run.row), sizes, f"{each.error:+.0%}", cause])
    head = ["row", "what", "measured, GiB | estimate", "off", "cause"]
    lines = markdown(head, rows).splitlines()
    lines[1] = "| ---: | --- | ---: | ---: | ---: | --- |"
    return "\n".join(lines)


def _what(row: Row) -> str:
    source = row["source"].split(" ")[0].split("/")[-1]
    bits = "" if row["weights_dtype"] == "bf16" else f" {row['weights_dtype']}"
    words = row["targets"].split(" ")
    method = words[0] if row["method"] == "adapter" and len(words) > 1 else row["method"]
    return f"{source}: {row['model']} {method}{bits}, {row['micro_batch']} × {row['seq_len']}"


def rules_table(scored: Sequence[Scored]) -> str:
    rules: dict[str, Callable[[Scored], float]] = {
        "ftcli": lambda each: each.estimated_bytes,
        "weights × 4": lambda each: 4 * _weights_bytes(each),
        "16 bytes a parameter": lambda each: 16 * each.run.shape.parameters,
        "LLaMA-Factory's table": _llama_factory_bytes,
        "every item added up": _added_up_bytes,
    }
    groups = {
        "all": list(scored),
        "like stack": [each for each in scored if each.like_ours],
        "full": [each for each in scored if each.run.row["method"] == "full"],
        "LoRA": [each for each in scored if each.run.row["method"] == "lora"],
        "QLoRA": [each for each in scored if each.run.row["method"] == "qlora"],
    }
    rows = []
    for name, rule in rules.items():
        cells = [_rule_errors(rule, group) for group in groups.values()]
        if name.startswith("16 bytes"):  # said of full fine-tuning only
            cells = [
                cell if group == "full" else "" for group, cell in zip(groups, cells, strict=True)
            ]
        rows.append([name, *cells])
    return markdown(["median / 9 in 10", *(f"{n} ({len(g)})" for n, g in groups.items())], rows)


def _rule_errors(rule: Callable[[Scored], float], group: Sequence[Scored]) -> str:
    errors = sorted(abs(rule(each) / each.run.measured_bytes - 1) for each in group)
    most = errors[round(0.9 * (len(errors) - 1))]
    return f"{statistics.median(errors):.0%} / {most:.0%}"


def _weights_bytes(each: Scored) -> int:
    static = static_bytes(each.run.shape, each.run.choices)
    return static.weights + static.quantization


def _llama_factory_bytes(each: Scored) -> float:
    """Between the table's columns in a straight line, beyond the last one in proportion."""
    held = each.run.choices.quantization
    bits = {None: "16 bits", "int8": "8 bits", "nf4": "4 bits", "gptq4": "4 bits"}[held]
    figures = _TABLE_GB["full" if each.run.choices.mode == "full" else bits]
    billions = each.run.shape.parameters / 1e9
    if billions >= _TABLE_BILLIONS[-1]:
        return GIB * figures[-1] * billions / _TABLE_BILLIONS[-1]
    right = max(1, bisect_left(_TABLE_BILLIONS, billions))
    low, high = _TABLE_BILLIONS[right - 1], _TABLE_BILLIONS[right]
    part = (billions - low) / (high - low)
    return GIB * (figures[right - 1] + part * (figures[right] - figures[right - 1]))


def _added_up_bytes(each: Scored) -> float:
    """The greatest of each item over all moments, and the context where it is measured."""
    found = estimate(each.run.shape, each.run.choices, each.run.capability)
    moments = list(found.timeline.values())
    items = sum(max(moment[item] for moment in moments) for item in moments[0])
    beyond = {"allocated": found.peak_bytes, "reserved": found.reserved_bytes}
    return items + beyond.get(each.run.measure, found.device_bytes) - found.peak_bytes


def constants_table() -> str:
    rows = []
    for module, name, meaning, origin in CONSTANTS:
        value = getattr(importlib.import_module(module), name)
        if isinstance(value, dict):
            sizes = sorted(size / GIB for size in value.values())
            value = f"{sizes[0]:.2f}–{sizes[-1]:.2f} GiB"
        where = f"`{module.removeprefix('ftcli.').replace('.', '/')}.py`"
        rows.append([meaning, str(value), where, origin])
    lines = markdown(["number", "value", "where", "origin"], rows).splitlines()
    lines[1] = "| --- | ---: | --- | --- |"
    return "\n".join(lines)


def own_runs() -> str:
    if not OWN_RUNS.is_file():
        return "No run of ftcli itself on a card is in the tables yet."
    scored, left_out = score_table(OWN_RUNS)
    keys: dict[str, Callable[[Scored], str]] = {
        "method": lambda each: each.run.row["method"],
        "card": lambda each: each.run.row["gpu"],
        "figure": lambda each: each.run.measure,
    }
    rows = [_error_row("**own runs**", summary(scored))]
    for name, key in keys.items():
        rows += [_error_row(f"{name}: {n}", found) for n, found in grouped(scored, key).items()]
    table = markdown(["", "rows", "median", "9 in 10", "bias", "inside", "width"], rows)
    intro = "ftcli's own runs on cards, [own_runs.csv](data/own_runs.csv), which no constant is"
    return f"{intro} fitted on. {_left_out(left_out)}\n\n{table}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    sys.exit(main(parser.parse_args().check))
