"""Write docs/compare.md from its template and the comparisons that docs/data keeps.

python scripts/build_compare_docs.py [--check]           # --check: exit 1 where it is not current
python scripts/build_compare_docs.py --keep NAME FOLDER  # take over what `ftcli compare` found
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from build_vram_docs import filled, settle

from ftcli.console import megabytes
from ftcli.disk import write_json
from ftcli.stages.compare.page import body
from ftcli.stages.compare.picture import draw
from ftcli.stages.compare.record import BASE_FILE, CELL_FILE, BaseRecord, CellRecord, parsed
from ftcli.stages.compare.result import Budget, Comparison
from ftcli.stages.compare.verdict import judge

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEMPLATE, PAGE = DOCS / "compare.template.md", DOCS / "compare.md"
NOTE = "<!-- written by scripts/build_compare_docs.py from compare.template.md -->"
NAMES = ("shop", "retail")
# Of compare.json: what all cells share.
SHARED = ("model", "budget", "seed", "general_text")


def main(check: bool) -> int:
    return settle(PAGE, page(), check)


def page() -> str:
    tables = {name: body(kept(name), picture(name)).rstrip() for name in NAMES}
    values = {"note": NOTE, **tables, **sizes()}
    return filled(TEMPLATE.read_text(encoding="utf-8"), values)


def sizes() -> dict[str, str]:
    """What the text says of the files, which are as large on any data."""
    saved = {cell.method: cell.training["saved_bytes"] for cell in kept(NAMES[0]).finished}
    return {
        "full_ratio": f"{saved['full'] / saved['lora']:.0f}",
        "prefix_file": megabytes(saved["prefix"]),
        "prompt_file": megabytes(saved["prompt"]),
    }


def data_file(name: str) -> Path:
    return DOCS / "data" / f"compare-{name}.json"


def picture(name: str) -> str:
    """Address of the picture, from the page."""
    return f"figures/compare-{name}.png"


def kept(name: str) -> Comparison:
    """The comparison of this name, judged by the code of today."""
    found = json.loads(data_file(name).read_text(encoding="utf-8"))
    base = parsed(found["base"], BaseRecord)
    cells = tuple(parsed(cell, CellRecord) for cell in found["cells"])
    return Comparison(
        folder=Path(found["folder"]),
        recipe=Path(found["recipe"]),
        model=found["model"],
        budget=Budget(**found["budget"]),
        seed=found["seed"],
        general_text=found["general_text"],
        base=base,
        cells=cells,
        kept=(),
        verdict=judge(cells, base),
    )


def keep(name: str, folder: Path) -> None:
    """Copy the figures of a finished comparison, without the paths of the machine it ran on."""
    told = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    cells = [_read(Path(cell["run_dir"]) / CELL_FILE, CellRecord) for cell in told["cells"]]
    base = _read(folder / BASE_FILE, BaseRecord)
    shown = Path("runs") / folder.name
    write_json(
        data_file(name),
        {key: told[key] for key in SHARED}
        | {
            "folder": str(shown),
            "recipe": Path(told["recipe"]).name,
            "base": base,
            "cells": [_moved(cell, shown) for cell in cells],
        },
    )
    draw(kept(name), DOCS / picture(name))


def _read(file: Path, kind: type[BaseRecord] | type[CellRecord]) -> dict[str, Any]:
    return asdict(parsed(json.loads(file.read_text(encoding="utf-8")), kind))


def _moved(cell: dict[str, Any], folder: Path) -> dict[str, Any]:
    run = str(folder / cell["name"])
    paths = {key: run for key in ("run_dir",) if key in cell["training"]}
    return cell | {"run_dir": run, "training": cell["training"] | paths}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--keep", nargs=2, metavar=("NAME", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.keep:
        keep(arguments.keep[0], Path(arguments.keep[1]))
    sys.exit(main(arguments.check))
