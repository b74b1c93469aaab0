"""Which method a comparison says to take, from losses made by hand; and how that is shown."""

from __future__ import annotations

from pathlib import Path

from ftcli.evaluation.compare.compare_page import draw, page
from ftcli.runs.results import CompareResult, FailedCell
from tests.compared import comparison, decided, losses, made


def test_the_best_is_taken_with_its_margin_and_the_seed() -> None:
    found = decided(made("full", losses(1.5)), made("lora", losses(1.4)))
    assert found.take == "lora-0.001" and found.among == ("lora-0.001",)
    assert "with this seed (42) it has the lowest held-out loss (" in found.text
    assert "the next, full at 1e-3, is worse by 0.100 (95% interval 0.100 to" in found.text
    assert "60 steps" in found.text and "another seed" in found.text
    full, lora = found.cells
    assert full.vs_best is not None and full.vs_best.verdict == "worse"
    assert lora.vs_best is None and lora.vs_base is not None and lora.vs_base.verdict == "better"
    assert (lora.vs_base.rows_better, lora.vs_base.rows_worse) == (30, 0)


def test_of_methods_that_are_not_significantly_worse_the_smallest_is_taken() -> None:
    near = made("bottleneck", losses(1.41, wobble=0.5), trainable_parameters=5_000)
    far = made("prompt-tuning", losses(2.5), trainable_parameters=10)
    found = decided(far, near, made("lora", losses(1.40)))
    assert found.take == "bottleneck-0.001"
    assert found.among == ("lora-0.001", "bottleneck-0.001")
    assert "bottleneck at 1e-3 is not significantly worse than lora at 1e-3" in found.text
    assert "fewest trainable parameters (5,000)" in found.text and "prompt-tuning" not in found.text


def test_of_equally_small_methods_the_one_with_less_memory_is_taken() -> None:
    lora = made("lora", losses(1.40, wobble=0.5))
    qlora = made("qlora", losses(1.40), peak_memory_bytes=1_000_000_000)
    assert decided(lora, qlora).take == "qlora-0.001"


def test_a_small_method_that_does_not_beat_the_base_is_not_taken() -> None:
    idle = made("prompt-tuning", losses(1.45, wobble=0.9), trainable_parameters=10)
    found = decided(made("lora", losses(1.4)), idle, base=losses(1.5))
    assert found.among == ("lora-0.001", "prompt-tuning-0.001") and found.take == "lora-0.001"


def test_none_is_taken_where_none_beats_the_base() -> None:
    found = decided(made("lora", losses(2.99, wobble=0.5)))
    assert found.take is None
    assert "no method is significantly better than the base on 30 rows" in found.text
    assert "Train for longer than 60 steps" in found.text


def test_few_rows_have_no_verdict() -> None:
    found = decided(made("lora", losses(1.4, rows=9)), made("full", losses(1.9, rows=9)))
    assert found.take is None and len(found.among) == 2
    assert "9 held-out rows are too few for a verdict; take at least 10" in found.text


def test_one_method_alone_is_compared_with_the_base() -> None:
    found = decided(made("lora", losses(1.4)))
    assert found.take == "lora-0.001"
    assert "better than the base's by 1.600 (95% interval 1.600 to 1.600" in found.text


def test_verdicts_are_corrected_for_the_number_of_methods() -> None:
    lora, near = made("lora", losses(1.4)), made("bottleneck", losses(1.6, wobble=0.4))
    alone = decided(lora, near).cells[1].vs_best
    assert alone is not None and alone.verdict == "worse" and 0.01 < alone.p_value < 0.05
    others = [made(m, losses(1.6, wobble=0.5)) for m in ("full", "prefix-tuning", "prompt-tuning")]
    among_five = decided(lora, near, *others).cells[1].vs_best
    assert among_five is not None and among_five.p_value == alone.p_value
    assert among_five.verdict == "not significant"


def test_validation_chooses_the_rate_though_the_held_out_loss_says_otherwise() -> None:
    slow = made("lora", losses(1.2), learning_rate=1e-4, validation_loss=1.3)
    fast = made("lora", losses(1.5), learning_rate=1e-2, validation_loss=1.1)
    full = made("full", losses(1.4), learning_rate=1e-4, validation_loss=2.0)
    found = decided(slow, fast, full)
    assert [cell.chosen for cell in found.cells] == [False, True, True]
    assert found.cells[0].vs_base is None and found.take == "full-0.0001"


def test_the_page_has_every_figure_and_every_reason(tmp_path: Path) -> None:
    reason = "one row needs 60 GB,\nand there is 24"
    failed = FailedCell(name="full", method="full", code="memory", reason=reason)
    found = comparison(tmp_path, made("lora", losses(1.4), learning_rate=2e-4), failed=[failed])
    text = page(found, "compare.png")
    assert "| base |  | 3." in text and "| 90% | 100% | 20.0 |" in text
    assert "| lora | 2e-4 | 1." in text and "| +5.0% | 1.0 M | 1.9 GiB | 800 | 19 MiB |" in text
    assert "- full failed: one row needs 60 GB, and there is 24" in text
    assert found.verdict in text and "](compare.png)" in text
    assert "30 held-out rows (test), 60 steps each, seed 42" in text
    assert "intervals do not cover what another training seed would change" in text


def test_notes_say_what_a_figure_is_not(tmp_path: Path) -> None:
    grid = [
        made("lora", losses(1.4), learning_rate=rate, validation_loss=rate, resumed=True)
        for rate in (1e-4, 1e-3)
    ]
    text = page(comparison(tmp_path, *grid, data="validation", steps=None), "compare.png")
    for words in ("chose the checkpoints", "- ≥ stopped", "- * the rate", "recipe's own length"):
        assert words in text
    assert "≥ 1 min 00 s" in text and "| 1e-4 * |" in text and "| 1e-3 |" in text
    assert "4 bits" not in text


def test_a_base_in_16_bits_and_a_method_in_4_are_said_to_differ(tmp_path: Path) -> None:
    both = comparison(tmp_path, made("lora", losses(1.4)), made("qlora", losses(1.5)))
    assert "general text of qlora-0.001: change from the base in 16 bits" in page(both, "x")


def test_the_picture_is_drawn_and_what_is_written_is_read_again(tmp_path: Path) -> None:
    grid = [made("lora", losses(1.4), learning_rate=rate) for rate in (1e-4, 1e-3)]
    found = comparison(
        tmp_path, *grid, made("prompt-tuning", losses(2.0), trainable_parameters=11_520)
    )
    draw(found, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    found.write(tmp_path / "compare.json")
    assert CompareResult.read(tmp_path / "compare.json") == found
