"""The table of `ftcli compare` at the widths of real terminals."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.cli import compare_view
from ftcli.cli.compare_view import comparison_lines
from ftcli.stages.compare.record import FailedCell
from ftcli.stages.compare.result import Comparison
from tests.compared import cell, comparison, scored

MEMORY = "one row of 1024 tokens needs 60.1 GB, and NVIDIA RTX 4090 has 22.9 GB free; take lora"


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    """Figures as wide as they come."""
    parts = {
        "lora": {"trained_parameters": 4_884_480, "tokens_per_second": 12_345.6},
        "qlora": {"trained_parameters": 4_884_480, "seconds": 7_384.0},
        "adapter": {"trained_parameters": 8_890_560, "peak_memory_bytes": 12_345_678_901},
        "prompt": {"trained_parameters": 11_520, "saved_bytes": 52_000},
    }
    cells = [
        cell(name, scored(1.0 + place / 10), rate=2e-4, total_parameters=134_515_008, **changes)
        for place, (name, changes) in enumerate(parts.items())
    ]
    failed = FailedCell("full", "full", None, "memory", MEMORY)
    return comparison(tmp_path, failed, *cells)


def lines(found: Comparison, columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(compare_view, "width", lambda: columns)
    return list(comparison_lines(found))


def heading(shown: list[str]) -> list[str]:
    return next(line for line in shown if line.startswith("  method")).split()


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 160])
def test_no_line_is_longer_than_the_terminal_is_wide(
    found: Comparison, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = lines(found, columns, monkeypatch)
    paths = [line for line in shown if str(found.folder) in line]
    assert max(len(line) for line in shown if line not in paths) <= columns
    for name in ("base", "lora", "qlora", "adapter", "prompt", "full: not trained:"):
        assert sum(line.startswith(f"  {name}") for line in shown) == 1


def test_a_wide_terminal_has_everything(found: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(lines(found, 160, monkeypatch))
    for figure in ("held-out loss", "20.0 → 21.0 +5.0%", "4.9 M (3.63%)", "12,346", "2 h 03 min"):
        assert figure in text


def test_eighty_columns_keep_quality_cost_and_forgetting(
    found: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = lines(found, 80, monkeypatch)
    names = heading(shown)
    assert names[:7] == ["method", "rate", "loss", "form", "stops", "ROUGE", "forgot"]
    assert {"trained", "peak"} <= set(names)
    row = next(line for line in shown if line.startswith("  lora "))
    assert "+5.0%" in row and "4.9 M" in row


def test_reasons_are_told_whole_and_the_verdict_comes_last(
    found: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = lines(found, 80, monkeypatch)
    text = " ".join(" ".join(shown).split())
    assert f"full: not trained: {MEMORY}" in text
    assert text.index("Take lora at 2e-4") > text.index("held-out rows (test)")
    assert found.verdict.text in text


def test_a_grid_has_a_mark_at_the_best_rate_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = cell("lora", scored(1.4), rate=1e-4, eval_loss=1.4)
    fast = cell("lora", scored(1.2), rate=1e-2, eval_loss=1.2)
    shown = lines(comparison(tmp_path, slow, fast), 120, monkeypatch)
    assert [line.split()[2] == "*" for line in shown if line.startswith("  lora")] == [False, True]
    alone = lines(comparison(tmp_path, fast), 120, monkeypatch)
    assert "*" not in "\n".join(alone)
