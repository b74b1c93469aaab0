"""docs/benchmarks.md shows what the studies have found."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import kept_rows
import schedules
import studies_page

from ftcli.config.training import Training

TEXT = studies_page.PAGE.read_text(encoding="utf-8")


def test_the_page_is_current() -> None:
    assert studies_page.page(TEXT) == TEXT, "python scripts/studies_page.py"


def test_the_default_is_the_setting_that_learns_most() -> None:
    """Of the trainings by LoRA, summed over rows, lengths and seeds; rows come shuffled."""
    trainings = kept_rows.read(studies_page.DOCS / "data/schedules.csv", schedules.Training)
    sums: dict[tuple[str, str], float] = {}
    for each in trainings:
        if (each.method, each.rate, each.shuffle) == ("lora", "auto", "True"):
            key = (each.scheduler, each.warmup_ratio)
            sums[key] = sums.get(key, 0.0) + float(each.loss)
    best = min(sums, key=lambda key: sums[key])
    default = Training()
    assert best == (default.scheduler, str(default.warmup_ratio))
