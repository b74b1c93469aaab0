"""Run the tests of the faults and print the table: injected, observed, required, verdict.

python -m scripts.faults [--short] [--write] [--report FILE | --read FILE]

A terminal gets columns, a file or pipe one line per fault. Exits with 1 if a fault fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tests.faults.lines import Line, lines_of

ROOT = Path(__file__).resolve().parent.parent

PAGE = ROOT / "docs" / "faults.md"
# Tests of one file share their trained runs.
PYTEST = (sys.executable, "-m", "pytest", "-p", "tests.faults.report", "-m", "fault", "-rfE")
WORKERS = ("-n", "2", "--dist", "loadfile")


def main(arguments: argparse.Namespace) -> int:
    code, report = 0, read(arguments.read) if arguments.read else None
    if report is None:
        code, report = run_tests(arguments.report, short=arguments.short)
    if report is None:
        print(f"pytest ended with {code} and no report", file=sys.stderr)
        return 1
    lines, counts = lines_of(report), summary(report)
    show(lines)
    print(f"\n{counts}")
    for name in report["broken"]:
        print(f"not part of the table: {name} broke", file=sys.stderr)
    if arguments.write:
        PAGE.write_text(page(lines, counts), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
    return 1 if code or any(line.verdict == "FAILS" for line in lines) else 0


def read(file: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return report


def run_tests(kept: Path | None, *, short: bool) -> tuple[int, dict[str, Any] | None]:
    """pytest's exit code and its report, also in `kept`; its output goes to stderr."""
    words = {name: value for name, value in os.environ.items() if name != "FTCLI_FAULTS"}
    if not short:
        words["FTCLI_FAULTS"] = "complete"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "faults.json"
        command = [*PYTEST, *WORKERS, "--faults-report", str(file)]
        ended = subprocess.run(command, cwd=ROOT, env=words, stdout=sys.stderr, check=False)
        if not file.is_file():
            return ended.returncode, None
        if kept is not None:
            shutil.copyfile(file, kept)
        return ended.returncode, read(file)


def show(lines: Sequence[Line]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        for line in lines:
            print(line.plain())
        return
    table = Table(box=box.HORIZONTALS, show_lines=True, padding=(0, 1, 0, 0))
    table.add_column("", justify="right")
    for name in ("injected", "observed", "required"):
        table.add_column(name, ratio=1, overflow="fold")
    table.add_column("verdict", max_width=12)
    for line in lines:
        style = {"holds": "", "FAILS": "bold red"}.get(line.verdict, "yellow")
        cells = (line.injected, line.observed, line.required, line.verdict)
        table.add_row(str(line.number), *(cell.replace("[", r"\[") for cell in cells), style=style)
    console.print(table)


def summary(report: dict[str, Any]) -> str:
    """What ran, where, and the result."""
    lines = lines_of(report)
    tests = {test.name: test.outcome for line in lines for test in line.tests}
    count = Counter(tests.values())
    holding = sum(line.verdict == "holds" for line in lines)
    kind = "complete run (make faults)" if report["complete"] else "short run, as in make test-all"
    return (
        f"{holding} of {len(lines)} faults hold. A {kind}: {count['passed']} tests passed, "
        f"{count['failed']} failed, {count['skipped']} not run; {report['machine']}."
    )


# The page


def page(lines: Sequence[Line], counts: str) -> str:
    """docs/faults.md: one table per group."""
    parts = [
        "<!-- written by make faults FAULTS=--write -->\n# Faults\n",
        "What is injected into ftcli, what must be seen then, and what was seen. `make faults` "
        "runs it all and prints this table; `make test-all` runs the same tests with smaller "
        "counts. The tests of line 28 are marked `fault(28)`: `grep -rn 'fault(.*28' tests`.\n",
        f"{counts}\n",
    ]
    for group in dict.fromkeys(line.group for line in lines):
        parts.append(f"## {group}\n\n{_markdown([x for x in lines if x.group == group])}\n")
    return "\n".join(parts)


def _markdown(lines: Sequence[Line]) -> str:
    rows: list[tuple[str, ...]] = [("#", "injected", "required", "observed", "verdict")]
    rows.append(("--:", "---", "---", "---", "---"))
    for line in lines:
        cells = (line.injected, line.required, line.observed, line.verdict)
        rows.append((str(line.number), *map(_cell, cells)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(text: str) -> str:
    """Escape Markdown and HTML."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text).replace("\n", " ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="smaller counts, as make test-all has")
    parser.add_argument("--write", action="store_true", help="write docs/faults.md too")
    parser.add_argument("--report", type=Path, metavar="FILE", help="keep what the run found")
    parser.add_argument("--read", type=Path, metavar="FILE", help="run nothing: show a kept run")
    sys.exit(main(parser.parse_args()))
