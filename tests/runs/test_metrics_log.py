"""The lines of a run, on disk and in the checkpoint that it resumes from."""

from __future__ import annotations

import json
from pathlib import Path

from ftcli.runs.metrics_log import Records


def test_a_run_resumes_with_the_lines_of_its_checkpoint(tmp_path: Path) -> None:
    file, kept = tmp_path / "metrics.jsonl", tmp_path / "records.jsonl"
    records = Records(file)
    records.begin(None)
    records.add({"step": 0, "eval_loss": 3.0})
    records.add({"step": 1, "loss": 2.5})
    kept.write_text(records.text())
    records.add({"step": 2, "loss": 2.0})
    with file.open("a") as cut:
        cut.write('{"step": 3, "lo')  # a kill in the middle of a line
    again = Records(file)
    again.begin(kept)
    assert file.read_text() == kept.read_text() == again.text()
    assert again.eval_losses() == [(0, 3.0)] and again.train_loss() == 2.5
    assert again.has_eval(0) and not again.has_eval(1)
    again.begin(None)
    assert file.read_text() == "" and again.train_loss() is None


def test_patience_counts_validations_after_the_best(tmp_path: Path) -> None:
    records = Records(tmp_path / "metrics.jsonl")
    records.begin(None)
    counts = []
    # What was measured before the first step is no result of the training.
    for step, loss in enumerate([1.0, 3.0, 2.0, 2.0, 2.5, 1.9]):
        records.add({"step": step, "eval_loss": loss})
        counts.append(records.validations_without_gain())
    assert counts == [0, 0, 0, 1, 2, 0]


def test_the_loss_is_the_mean_of_the_last_tenth(tmp_path: Path) -> None:
    records = Records(tmp_path / "metrics.jsonl")
    records.begin(None)
    for step in range(30):
        records.add({"step": step, "loss": float(step)})
    assert records.train_loss() == 28.0


def test_times_are_in_another_file_and_outlive_a_resume(tmp_path: Path) -> None:
    file, kept, speed = (tmp_path / name for name in ("metrics.jsonl", "kept.jsonl", "speed.jsonl"))
    records = Records(file)
    records.begin(None)
    records.add({"step": 1, "loss": 2.5})
    records.add_time(1, 200, 0.5)
    kept.write_text(records.text())
    assert "seconds" not in file.read_text()
    Records(file).begin(kept)
    assert json.loads(speed.read_text()) == {"step": 1, "tokens": 200, "seconds": 0.5}
    Records(file).begin(None)
    assert not speed.exists()
