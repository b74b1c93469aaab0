"""Write docs/compare.md from its template and the comparisons that docs/data keeps.

python scripts/build_compare_docs.py [--check]           # --check: exit 1 where it is not current
python scripts/build_compare_docs.py --keep NAME FOLDER  # take over what `ftcli compare` found
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from build_vram_docs import filled, settle

from ftcli.console import megabytes
from ftcli.evaluation.compare.page import draw
from ftcli.evaluation.compare.page import page as compare_page
from ftcli.runs.results import ComparedCell, CompareResult

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEMPLATE, PAGE = DOCS / "compare.template.md", DOCS / "compare.md"
NOTE = "<!-- written by scripts/build_compare_docs.py from compare.template.md -->"
NAMES = ("shop", "retail")


def main(check: bool) -> int:
    return settle(PAGE, page(), check)


def page() -> str:
    tables = {name: body(name) for name in NAMES}
    # Files are as large on any data.
    saved = {cell.method: cell.saved_bytes for cell in kept(NAMES[0]).finished}
    sizes = {
        "full_ratio": f"{saved['full'] / saved['lora']:.0f}",
        "prefix_file": megabytes(saved["prefix"]),
        "prompt_file": megabytes(saved["prompt"]),
    }
    return filled(TEMPLATE.read_text(encoding="utf-8"), {"note": NOTE, **tables, **sizes})


def body(name: str) -> str:
    """compare.md without its heading."""
    return compare_page(kept(name), picture(name)).partition("\n\n")[2].rstrip()


def data_file(name: str) -> Path:
    return DOCS / "data" / f"compare-{name}.json"


def picture(name: str) -> str:
    """Address of the picture, from the page."""
    return f"figures/compare-{name}.png"


def kept(name: str) -> CompareResult:
    return CompareResult.read(data_file(name))


def keep(name: str, folder: Path) -> None:
    """Copy a finished comparison without the paths of the machine it ran on, and draw it."""
    found = CompareResult.read(folder / "compare.json")
    shown = Path("runs") / folder.name

    def moved(cell: ComparedCell) -> ComparedCell:
        return cell.model_copy(update={"run_dir": str(shown / cell.name)})

    cells = tuple(moved(c) if isinstance(c, ComparedCell) else c for c in found.cells)
    places = {"folder": str(shown), "recipe": Path(found.recipe).name, "cells": cells}
    found.model_copy(update=places).write(data_file(name))
    draw(kept(name), DOCS / picture(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--keep", nargs=2, metavar=("NAME", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.keep:
        keep(arguments.keep[0], Path(arguments.keep[1]))
    sys.exit(main(arguments.check))
