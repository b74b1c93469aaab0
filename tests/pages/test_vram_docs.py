"""docs/vram.md is current, its ten worst rows have causes, and its verdicts hold."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import build_vram_docs  # noqa: E402
import vram_figures as figures  # noqa: E402
from build_vram_docs import CAUSES, PAGE, filled, page, rules_table, worst  # noqa: E402
from measured_runs import TABLE, read_rows  # noqa: E402
from vram_error import Scored, score_table  # noqa: E402

from ftcli.memory.hardware import find_card  # noqa: E402

FIX = "make docs"


@pytest.fixture(scope="module")
def scored() -> list[Scored]:
    return score_table(TABLE)[0]


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), FIX
    assert build_vram_docs.main(check=True) == 0


def test_the_page_is_short_enough_to_read() -> None:
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 270  # with a table of own runs


def test_each_of_the_ten_worst_has_a_cause(scored: list[Scored]) -> None:
    known = json.loads(CAUSES.read_text(encoding="utf-8"))
    for each in worst(scored):
        row_id = each.run.row["row_id"]
        assert row_id in known["rows"], f"docs/data/causes.json: row {row_id} is among the worst"


def test_causes_name_rows_that_exist_and_each_is_used() -> None:
    known = json.loads(CAUSES.read_text(encoding="utf-8"))
    assert set(known["rows"].values()) == set(known["causes"])
    assert set(known["rows"]) <= {row["row_id"] for row in read_rows(TABLE)}


def test_a_mark_without_a_value_is_an_error_and_the_other_way_round() -> None:
    assert filled("a {{b}} c", {"b": "B"}) == "a B c"
    for found in ({}, {"b": "", "c": ""}):
        with pytest.raises(ValueError, match="marks"):
            filled("{{b}}", found)


def test_every_rule_is_further_off_than_the_estimate(scored: list[Scored]) -> None:
    """The column of all rows: medians."""
    lines = rules_table(scored).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    medians = {name: text for _, name, text, *_ in cells}
    ours = int(medians.pop("ftcli").split("%")[0])
    others = [int(text.split("%")[0]) for text in medians.values() if text]
    assert others and all(ours < other for other in others)


def test_the_verdicts_on_textbook_claims_hold() -> None:
    seven, thirteen, seventy = ("7b", "13b", "70b")
    card = find_card("RTX 4090")
    methods = figures.METHODS
    mixed, fp32 = (figures.on_card(seven, methods[name]) for name in ("bf16 mixed", "fp32"))
    assert mixed == pytest.approx(fp32, rel=0.02)
    assert mixed / figures.shape_of(seven).parameters == pytest.approx(16, abs=1)
    assert 50e9 < figures.on_card(seven, figures.PURE) < 60e9
    assert 100e9 < figures.on_card(thirteen, figures.PURE) < 115e9
    assert figures.on_card(seventy, figures.PURE) > 500e9
    assert figures.on_card(seven, methods["QLoRA"]) < 6.5e9
    assert figures.on_card(seven, methods["LoRA"]) > 12e9
    assert figures.fits(seven, methods["LoRA"], card)
    assert figures.fits(seven, methods["QLoRA"], card)
    assert figures.fits(thirteen, methods["QLoRA"], card)
    assert not figures.fits(thirteen, methods["LoRA"], card)
    assert not any(figures.fits(seven, figures.FITTED[name], card) for name in ("full", "full-16"))


def test_the_longest_row_fits_and_the_next_does_not() -> None:
    card = find_card("RTX 4090")
    choices = figures.FITTED["LoRA"]
    longest = figures.longest_tokens("7b", choices, card)
    assert longest > 0
    assert figures.fits("7b", replace(choices, seq_len=longest), card)
    longer = replace(choices, seq_len=longest + figures.STEP_TOKENS)
    assert not figures.fits("7b", longer, card)


def test_a_method_that_fits_brings_the_cheaper_ones_along() -> None:
    """What the table of cards says of its order."""
    for model in figures.FITTED_MODELS:
        for name in figures.FITTED_CARDS.values():
            card = find_card(name)
            fitting = [figures.fits(model, choices, card) for choices in figures.FITTED.values()]
            assert fitting == sorted(fitting), f"{model} on {name}: {fitting}"


def test_what_no_published_run_covers() -> None:
    rows = read_rows(TABLE)
    assert not [row for row in rows if row["method"] == "full" and row["weights_dtype"] == "fp32"]
    assert not [row for row in rows if "H100" in row["gpu"] or "dora" in row["notes"].lower()]
    assert sum(row["opt_impl"] == "fused" for row in rows) == 1
    assert sum("A100" in row["gpu"] for row in rows) > len(rows) / 2


def test_own_runs_are_shown_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "own_runs.csv"
    monkeypatch.setattr(build_vram_docs, "OWN_RUNS", table)
    assert "No run of ftcli itself" in build_vram_docs.own_runs()
    table.write_text("\n".join(TABLE.read_text(encoding="utf-8").splitlines()[:6]) + "\n")
    assert "| **own runs** | 5 |" in build_vram_docs.own_runs()
