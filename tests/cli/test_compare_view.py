"""The table of `ftcli compare` at the widths of real terminals."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.cli.compare import show
from ftcli.runs.results import CompareResult, FailedCell
from tests.compared import comparison, losses, made

MEMORY = "one row of 1024 tokens needs 56.0 GiB, and NVIDIA RTX 4090 has 21.3 GiB free; take lora"


@pytest.fixture
def found(tmp_path: Path) -> CompareResult:
    """The widest figures of each column."""
    parts: dict[str, dict[str, object]] = {
        "lora": {"trainable_parameters": 4_884_480, "tokens_per_second": 12_345.6},
        "qlora": {"trainable_parameters": 134_515_008, "seconds": 7_384.0},
        "bottleneck": {"peak_memory_bytes": 12_345_678_901, "seconds": 601.0},
        "prompt-tuning": {"trainable_parameters": 11_520, "saved_bytes": 52_000},
    }
    cells = [
        made(name, losses(1.0 + place / 10), learning_rate=2e-4, **changes)
        for place, (name, changes) in enumerate(parts.items())
    ]
    failed = FailedCell(name="full", method="full", code="memory", reason=MEMORY)
    return comparison(tmp_path, *cells, failed=[failed])


def lines(
    found: CompareResult,
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    show(found)
    shown = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in shown if found.run_dir not in line) <= columns
    for name in ("base", "lora", "qlora", "bottleneck", "prompt-tuning", "full failed:"):
        assert sum(line.startswith(f"  {name}") for line in shown) == 1
    text = " ".join(" ".join(shown).split())
    assert f"full failed: {MEMORY}" in text
    assert text.index("Take lora at 2e-4") > text.index("held-out rows (test)")
    assert found.verdict in text
    return shown


def test_120_columns_have_everything(
    found: CompareResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = lines(found, 120, monkeypatch, capsys)
    heads = next(line for line in shown if line.startswith("  method"))
    for head in ("loss", "format", "EOS", "general", "tokens/s", "file"):
        assert head in heads
    text = "\n".join(shown)
    assert "1.039 (0." in text
    for figure in ("+5.0%", "4.9 M", "12,346", "2 h 03 min", "11.5 GiB", "51 KiB"):
        assert figure in text


def test_80_columns_keep_quality_cost_and_forgetting(
    found: CompareResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = lines(found, 80, monkeypatch, capsys)
    heads = next(line for line in shown if line.startswith("  method")).split()
    names = ["method", "rate", "loss", "format", "EOS", "general", "trainable", "peak", "time"]
    assert heads == names
    row = next(line for line in shown if line.startswith("  lora "))
    assert "+5.0%" in row and "4.9 M" in row


def test_40_columns_keep_quality(
    found: CompareResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = lines(found, 40, monkeypatch, capsys)
    heads = next(line for line in shown if line.startswith("  method")).split()
    assert heads[:4] == ["method", "loss", "format", "EOS"]


def test_a_mark_stands_at_the_chosen_rate_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    slow = made("lora", losses(1.4), learning_rate=1e-4, validation_loss=1.4)
    fast = made("lora", losses(1.2), learning_rate=1e-2, validation_loss=1.2)
    show(comparison(tmp_path, slow, fast))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  lora")]
    assert ["*" in row for row in rows] == [False, True]
    show(comparison(tmp_path, fast))
    assert "*" not in capsys.readouterr().out
