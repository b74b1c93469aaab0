"""Faults 24, 25 and 27 at size: a million rows are prepared in 1.5 GB, streamed and all counted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MOST_BYTES = 1.5e9
MILLION = 1_000_000
# Among more rows no more are compared for near duplicates (20,000 at most): from here on memory
# grows by the row.
FEW = 25_000
# Of 1,000 rows in each case: what cannot be used, and what comes twice.
BAD_EVERY, AGAIN_EVERY = 500, 100
# Linux counts in kilobytes, and that of the largest child; so each run has a parent of its own.
MEASURED = """
import resource, subprocess, sys
found = subprocess.run([sys.executable, "-m", "ftcli", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)
sys.exit(found.returncode)
"""

pytestmark = [pytest.mark.slow, pytest.mark.fault(25, 27)]


@dataclass(frozen=True)
class Seen:
    """Output of `ftcli prepare --json`, with its memory and time."""

    output: dict[str, Any]
    peak_bytes: int
    seconds: float
    progress: list[str]


def row(number: int) -> str:
    """A row of about 100 tokens; rows are distinct unless they are meant to be duplicates."""
    if number % BAD_EVERY == 7:
        return json.dumps({"prompt": f"Product {number}", "completion": None})
    if number % AGAIN_EVERY == 3:
        number -= 1
    words = [("linen", "steel", "walnut", "cotton")[number // 4**place % 4] for place in range(10)]
    prompt = f"Product: kettle {number}\nMaterial: {' '.join(words)}\nPrice: {number % 997} EUR"
    answer = f"# Kettle {number}\n- {' '.join(words[:5])}\n- {' '.join(words[5:])}\nNow {number}."
    return json.dumps({"prompt": prompt, "completion": answer})


def prepared(home: Path, model: Path, rows: int) -> Seen:
    with (home / f"rows-{rows}.jsonl").open("w") as file:
        file.writelines(row(number) + "\n" for number in range(rows))
    recipe = home / f"many-{rows}.yaml"
    keys = {
        "name": f"many-{rows}",
        "model": {"id": str(model)},
        "method": {"mode": "lora"},
        "data": {"train": f"rows-{rows}.jsonl", "validation": 0.01, "test": 100},
    }
    recipe.write_text(yaml.safe_dump(keys))
    start = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, "prepare", str(recipe), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - start
    assert found.returncode == 0, found.stderr
    *progress, peak = found.stderr.splitlines()
    return Seen(json.loads(found.stdout), int(peak), seconds, progress)


def test_a_million_rows_take_little_memory(
    tmp_path: Path, tiny_model: Path, complete: bool, observed: Callable[[str], None]
) -> None:
    """In the short version 100,000 rows, and what a million would take by their growth."""
    few = prepared(tmp_path, tiny_model, FEW)
    rows = MILLION if complete else 100_000
    many = prepared(tmp_path, tiny_model, rows)
    output, bad, again = many.output, rows // BAD_EVERY, rows // AGAIN_EVERY
    assert output["rows_read"] == rows
    assert (output["rows_rejected"], output["duplicates"]) == (bad, again)
    assert output["rows_accepted"] == rows - bad - again
    assert len(output["rejected"]) == bad
    assert [output["rejected"][-1][key] for key in ("line", "reason")] == [
        rows - BAD_EVERY + 8,
        "completion is null, where text is expected",
    ]
    lines = [line for line in many.progress if line.startswith(("read", "prepare"))]
    assert any(line.endswith("rows/s") for line in lines)
    growth = (many.peak_bytes - few.peak_bytes) / (rows - FEW)
    of_a_million = many.peak_bytes + growth * (MILLION - rows)
    assert of_a_million < MOST_BYTES
    rate = (rows - FEW) / (many.seconds - few.seconds)
    observed(
        f"{rows:,} rows: {many.peak_bytes / 1e9:.2f} GB at most ({growth * 1000 / 1e6:.2f} MB a "
        f"thousand rows), {rate:,.0f} rows/s"
    )
