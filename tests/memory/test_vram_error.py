from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ftcli.errors import FtcliError
from ftcli.memory.interval import RESIDUALS, residuals
from ftcli.models.architectures import find
from scripts import vram_error
from scripts.measured_runs import TABLE, Row, measured_run, read_rows


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs whose layers ship measured; measuring the others takes seconds each."""

    def measured(*_: Any) -> Any:
        raise ToMeasureError

    kept, rows = [], read_rows(TABLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "_measured", measured)
        patch.setattr("ftcli.models.architectures.ways.Measurer.__init__", measured)
        for row in rows:
            with suppress(ToMeasureError, FtcliError):
                vram_error.score(measured_run(row))
                kept.append(row)
    assert len(kept) > len(rows) / 2
    return save_rows(kept, tmp_path_factory.mktemp("known") / "table.csv")


class ToMeasureError(Exception):
    """An architecture would be measured."""


def save_rows(rows: list[Row], table: Path) -> Path:
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return table


@pytest.fixture(scope="module", params=["known", pytest.param("all", marks=pytest.mark.slow)])
def table(request: pytest.FixtureRequest, known: Path) -> Path:
    return known if request.param == "known" else TABLE


@pytest.fixture(scope="module")
def found(table: Path) -> dict[str, Any]:
    return vram_error.report(table)


def test_every_row_is_scored_or_named(found: dict[str, Any], table: Path) -> None:
    named = [row["row_id"] for row in found["per_row"] + found["left_out"]]
    assert sorted(named) == sorted(row["row_id"] for row in read_rows(table))
    assert len(found["left_out"]) <= 5


def test_estimates_of_similar_versions_are_close(found: dict[str, Any], table: Path) -> None:
    like_ours = found["same_stack"]
    assert like_ours["rows"] >= (90 if table == TABLE else 70)
    assert like_ours["median"] <= 0.015
    assert like_ours["p90"] <= 0.09
    assert like_ours["coverage"] >= 0.85
    assert like_ours["median_width"] <= 0.35
    assert abs(like_ours["bias"]) < 0.01


def test_estimates_of_all_runs_are_close(found: dict[str, Any]) -> None:
    assert found["median"] <= 0.04
    assert found["per_measure"]["allocated"]["median"] <= 0.015


def test_no_run_is_underestimated_without_its_interval_saying_so(found: dict[str, Any]) -> None:
    for row in found["per_row"]:
        if row["estimate_gib"] < 0.9 * row["measured_gib"]:
            assert row["high_gib"] >= row["measured_gib"], row


@pytest.mark.slow
def test_the_residuals_that_ship_are_those_of_the_table() -> None:
    assert RESIDUALS.read_text(encoding="utf-8") == vram_error.residuals_text(TABLE)


def test_intervals_hold_for_runs_they_were_not_made_from(table: Path) -> None:
    """The interval of every second run with similar versions contains the other runs."""
    scored = [each for each in vram_error.score_table(table)[0] if each.like_ours]
    for half in (0, 1):
        made_from, held_back = scored[half::2], scored[1 - half :: 2]
        covered = 0
        for figure in ("allocated", "card"):
            kind = residuals(
                figure,  # type: ignore[arg-type]
                "all",
                like_ours=True,
                ratios=[each.ratio for each in made_from if each.figure == figure],
            )
            covered += sum(
                kind.low <= each.ratio <= kind.high for each in held_back if each.figure == figure
            )
        assert covered / len(held_back) >= 0.85


def test_a_row_that_cannot_be_expressed_is_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(TABLE)[:3]
    rows[0]["optimizer"] = "muon"
    rows[1]["model"] = "no-such-model"
    table = save_rows(rows, tmp_path / "table.csv")
    vram_error.main([str(table), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 1
    reasons = {row["row_id"]: row["reason"] for row in report["left_out"]}
    assert "muon" in reasons[rows[0]["row_id"]]
    assert "no-such-model" in reasons[rows[1]["row_id"]]
