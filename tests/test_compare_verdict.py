"""Which method a comparison says to take, from records made by hand; and how that is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ftcli.stages.compare.page import page
from ftcli.stages.compare.picture import draw
from ftcli.stages.compare.record import BaseRecord, FailedCell
from ftcli.stages.compare.verdict import best_rates, judge
from ftcli.stages.compare.work import was_resumed
from tests.compared import BASE, cell, comparison, scored, side


def test_the_clearly_best_is_taken_with_its_margin() -> None:
    found = judge([cell("full", scored(1.5)), cell("lora", scored(1.4))], BASE)
    assert found.take == "lora-0.001" and found.among == ("lora-0.001",)
    assert "below that of full at 1e-3, the next, by 0.100 (95% interval 0.100 to" in found.text
    assert "60 steps" in found.text


def test_of_those_that_cannot_be_told_apart_the_lightest_is_taken() -> None:
    near = cell("adapter", scored(1.41, wobble=0.5), trained_parameters=5_000)
    lora = cell("lora", scored(1.40))
    far = cell("prompt", scored(2.5), trained_parameters=10)
    found = judge([far, near, lora], BASE)
    assert found.take == "adapter-0.001"
    assert found.among == ("lora-0.001", "adapter-0.001")
    assert "cannot be told apart by their held-out loss on 30 rows" in found.text
    assert "5,000 trained parameters" in found.text and "prompt" not in found.text


def test_of_equal_size_the_one_that_takes_less_memory_is_the_lightest() -> None:
    lora = cell("lora", scored(1.40, wobble=0.5))
    qlora = cell("qlora", scored(1.40), peak_memory_bytes=1_000_000_000)
    assert judge([lora, qlora], BASE).take == "qlora-0.001"


def test_a_method_that_does_not_beat_the_base_is_not_taken_for_its_lightness() -> None:
    base = BaseRecord("b", four_bit=False, side=side(scored(1.5), 20.0))
    idle = cell("prompt", scored(1.45, wobble=0.9), trained_parameters=10)
    found = judge([cell("lora", scored(1.4)), idle], base)
    assert found.among == ("lora-0.001", "prompt-0.001") and found.take == "lora-0.001"


def test_none_is_taken_where_none_beats_the_base() -> None:
    found = judge([cell("lora", scored(2.99, wobble=0.5))], BASE)
    assert found.take is None
    assert "not below the base on these 30 rows by more than chance gives" in found.text
    assert "train for longer than 60 steps" in found.text


def test_few_rows_tell_nothing_apart() -> None:
    base = BaseRecord("b", four_bit=False, side=side(scored(3.0, rows=9), 20.0))
    found = judge([cell("lora", scored(1.4, rows=9)), cell("full", scored(1.9, rows=9))], base)
    assert found.take is None and len(found.among) == 2
    assert "9 held-out rows tell nothing apart; hold out at least 10 (data.test)" in found.text


def test_one_method_alone_is_judged_by_the_base() -> None:
    found = judge([cell("lora", scored(1.4))], BASE)
    assert found.take == "lora-0.001"
    assert "below the base's by 1.600" in found.text
    assert judge([cell("lora", scored(1.4))], None).take == "lora-0.001"


def test_validation_chooses_the_rate_though_the_held_out_loss_says_otherwise() -> None:
    slow = cell("lora", scored(1.2), rate=1e-4, eval_loss=1.3)
    fast = cell("lora", scored(1.5), rate=1e-2, eval_loss=1.1)
    full = cell("full", scored(1.4), rate=1e-4, eval_loss=2.0)
    assert best_rates([slow, fast, full]) == (fast, full)
    assert judge([slow, fast, full], BASE).take == "full-0.0001"


def test_the_page_has_every_figure_and_every_reason(tmp_path: Path) -> None:
    failed = FailedCell("full", "full", None, "memory", "one row needs 60 GB,\nand there is 24")
    lora = cell("lora", scored(1.4), rate=2e-4)
    text = page(comparison(tmp_path, failed, lora))
    assert "| lora | 2e-4 | 1." in text and "20.0 → 21.0 +5.0%" in text
    assert "1.0 M (1.00%)" in text and "2.0 GB | 800 | 20 MB | 1 min 00 s |" in text
    assert "- full: one row needs 60 GB, and there is 24" in text
    assert "![held-out loss against trained parameters](compare.png)" in text
    assert "30 held-out rows (test), 60 steps each, seed 42" in text


def test_notes_say_what_a_figure_is_not(tmp_path: Path) -> None:
    lora = replace(cell("lora", scored(1.4)), held_out="validation", resumed=True, one_process=True)
    full = replace(cell("full", scored(1.5)), machine="another card")
    notes = "\n".join(comparison(tmp_path, lora, full).notes())
    for words in ("chose the checkpoints", "≥ stopped", "≤ several cells", "several machines"):
        assert words in notes
    assert "4 bits" not in notes
    assert "≥ 1 min 00 s" in page(comparison(tmp_path, lora)) and "≤ 2.0 GB" in page(
        comparison(tmp_path, lora)
    )


def test_a_base_in_4_bits_beside_one_in_16_is_said_to_be_rounded(tmp_path: Path) -> None:
    lora, qlora = cell("lora", scored(1.4)), cell("qlora", scored(1.5))
    both = comparison(tmp_path, lora, qlora)
    assert f"forgetting of {qlora.name} is against the base in 16" in "\n".join(both.notes())
    alone = comparison(tmp_path, qlora, base=replace(BASE, four_bit=True))
    assert "4 bits" not in "\n".join(alone.notes())


def test_the_picture_is_drawn_of_a_grid_and_of_one_point(tmp_path: Path) -> None:
    grid = [cell("lora", scored(1.4), rate=rate, eval_loss=rate) for rate in (1e-4, 1e-3)]
    small = cell("prompt", scored(2.0), trained_parameters=11_520)
    for name, cells in (("many.png", [*grid, small]), ("one.png", [small])):
        draw(comparison(tmp_path, *cells), tmp_path / name)
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize(("finished", "resumed"), [("12:01:01", False), ("12:05:00", True)])
def test_a_run_that_took_longer_than_it_reports_was_resumed(finished: str, resumed: bool) -> None:
    manifest = {
        "started": "2025-01-01T12:00:00+0100",
        "finished": f"2025-01-01T{finished}+0100",
        "result": {"seconds": 60.5},
    }
    assert was_resumed(manifest) is resumed
