"""scripts/forgetting.py: what is measured was not replayed, and a tiny experiment as a whole."""

from __future__ import annotations

import argparse
import html
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import forgetting  # noqa: E402
import forgetting_cells  # noqa: E402
import forgetting_figure  # noqa: E402

from tests.conftest import save_rows  # noqa: E402


@pytest.fixture
def general(tmp_path: Path) -> list[Path]:
    """Two files of passages; the last of one stands in both parts' way."""
    files = [tmp_path / "wiki.jsonl", tmp_path / "c4.jsonl"]
    for file in files:
        texts = [f"{file.stem} {n}: of rivers and of hills, told at length." for n in range(30)]
        texts[0] = texts[-1]
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return files


def test_what_is_measured_is_never_replayed(
    general: list[Path], tiny_model: Path, tmp_path: Path
) -> None:
    asked = argparse.Namespace(
        model=tiny_model, general=general, measured_tokens=600, work=tmp_path / "work"
    )
    found = forgetting_cells.split_general(asked)
    replayed = [json.loads(line)["text"] for line in found.replayed.open()]
    assert replayed and not set(replayed) & set(found.measured)
    assert {text.split()[0] for text in replayed} == {"wiki", "c4"}
    assert {text.split()[0] for text in found.measured} == {"wiki", "c4"}
    asked.measured_tokens = 10**6
    with pytest.raises(SystemExit, match="all general text is measured"):
        forgetting_cells.split_general(asked)


@pytest.mark.slow
def test_a_tiny_experiment_is_done_once(
    general: list[Path],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """About a minute: five trainings in processes of their own."""
    out, figure = tmp_path / "found.json", tmp_path / "found.svg"
    words = ["--model", tiny_model, "--data", save_rows(tmp_path), "--general", *general]
    words += ["--output", out, "--figure", figure, "--work", tmp_path / "work"]
    words += ["--steps", 4, "--batch-size", 4, "--validation", 8, "--test", 8, "--answers", 2]
    words += ["--measured-tokens", 600, "--rates", "1e-3", "--probe-steps", 2]
    words += ["--shares", 0.2, "--holds", 0.5]
    monkeypatch.setattr(sys, "argv", ["forgetting.py", *map(str, words)])
    assert forgetting.main() == 0
    first = capsys.readouterr()
    found = json.loads(out.read_text())
    cells = {cell["name"]: cell for cell in found["cells"]}
    assert list(cells) == ["full", "full + replay 20%", "full + hold 0.5", "LoRA"]
    assert cells["full"]["rise_left"] == 1 and cells["full"]["test_loss_change"] == 0
    assert cells["full + replay 20%"]["steps"] == 5, "as many rows of the task as without"
    assert cells["full + replay 20%"]["replay_rows"] == 8
    assert cells["full + hold 0.5"]["hold"] == 250
    assert found["general_tokens"] >= 600 and str(tmp_path) not in out.read_text()
    assert figure.read_text().count("full + replay 20%") >= 2, "in the picture and in its words"
    monkeypatch.setattr(forgetting_cells, "_train", lambda _: pytest.fail("trained again"))
    assert forgetting.main() == 0
    assert capsys.readouterr().out == first.out
    assert json.loads(out.read_text()) == found


def test_table_and_picture_tell_the_same(tmp_path: Path) -> None:
    cell = {
        "name": "full",
        "method": "full",
        "replay": 0.0,
        "hold": 0.0,
        "general": {"before": 20.0, "after": 26.0, "change": 0.3, "change_interval": [0.28, 0.32]},
        "test_loss": 1.9,
        "test_loss_interval": [1.8, 2.0],
        "test_loss_change": 0.0,
        "test_loss_change_interval": [0.0, 0.0],
        "validation_loss": 1.85,
        "rise_left": 1.0,
        "stop_rate": 0.95,
    }
    held = cell | {"name": "full + hold 2", "hold": 125.0, "rise_left": 0.5}
    base = {"perplexity": 20.0, "test_loss": 2.9, "stop_rate": 0.3}
    result = {"base": base, "cells": [cell, held]}
    lines = forgetting_figure.table(result).splitlines()
    assert lines[3].startswith("| full | 26.00 | +30.0% (+28.0% to +32.0%) |  | 1.850 | 1.900 ")
    assert "| full + hold, strength 125 |" in lines[4] and "| 50% |" in lines[4]
    assert "full: rise +30.0%, task loss 1.900" in forgetting_figure.alternative(result)
    pictures = []
    for name in ("one.svg", "other.svg"):
        forgetting_figure.draw(result, tmp_path / name)
        pictures.append((tmp_path / name).read_text())
    assert pictures[0] == pictures[1], "nothing of the time or of chance"
    assert "strength 125" in pictures[0] and "#ffffff" in pictures[0]


def test_the_page_is_that_of_the_kept_figures() -> None:
    assert forgetting_figure.PAGE.read_text("utf-8") == forgetting_figure.page(), "make docs"
    picture = forgetting_figure.FIGURE.read_text("utf-8")
    assert forgetting_figure.alternative(json.loads(forgetting_figure.FOUND.read_text())) in (
        html.unescape(picture)
    )
