"""Curves say in a sentence what they show, and are small pictures however long they are."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from ftcli.report.charts import Chart, charts_of, draw
from ftcli.runs.folder import RunFolder
from tests.reported import save_run


def charts(run: RunFolder, metrics: str | None = None, speed: str = "") -> dict[str, Chart]:
    if metrics is not None:
        run.metrics.write_text(metrics)
        run.speed.write_text(speed)
    return {chart.title: chart for chart in charts_of(run, [])}


def test_a_long_training_is_a_small_picture_and_its_one_peak_stays(tmp_path: Path) -> None:
    random.seed(0)
    lines = [{"step": step, "loss": 1 + random.random() / 10} for step in range(1, 20_001)]
    lines[7_776]["loss"] = 40.0
    chart = charts(save_run(tmp_path), "".join(f"{json.dumps(line)}\n" for line in lines))["Loss"]
    assert "highest 40.00 (step 7,777)" in chart.summary
    picture = draw(chart)
    assert len(picture) < 80_000
    curve = max(re.findall(r'<path d="([^"]*)" clip-path', picture), key=len)
    heights = [float(height) for height in re.findall(r"[ML] [\d.]+ ([\d.]+)", curve)]
    assert max(heights) - min(heights) > 100  # of 173 pt, without axis and margins


def test_what_the_charts_say(tmp_path: Path) -> None:
    found = charts(save_run(tmp_path))
    assert list(found) == ["Loss", "Learning rate", "Gradient norm", "Speed"]
    assert found["Loss"].summary.startswith("Training 2.30 → 0.86, median 1.04, lowest 0.84 (step ")
    assert "; validation 2.31 → 0.92, " in found["Loss"].summary
    assert "highest 30.00 (step 31)" in found["Gradient norm"].summary
    assert found["Speed"].curves["speed"][0] == (1, 2010 / 25)


def test_repeated_steps_and_unreadable_lines(tmp_path: Path) -> None:
    metrics = '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": NaN}\n{"step": 2, "loss": "much"}\n'
    metrics += '{"step": 3, "loss": 2.0}\n{"step": 3, "loss": 2.5}\n[]\n{"step": 4, "lo'
    speed = '{"step": 1, "tokens": 100, "seconds": 1.0}\n{"step": 1, "tokens": 100, "seconds": 2.0}'
    speed += '\n{"step": 3, "tokens": 100, "seconds": 0}\n{"step": 9, "tokens": 1, "seconds": 1.0}'
    run, problems = save_run(tmp_path), list[str]()
    found = charts(run, metrics, speed)
    assert found["Loss"].curves == {"training": [(1, 3.0), (3, 2.5)]}
    assert found["Speed"].curves == {"speed": [(1, 50.0)]}
    charts_of(run, problems)
    assert problems == ["metrics.jsonl: 4 unreadable lines left out"]
    assert charts(run, "", "") == {}


def test_the_same_chart_gives_the_same_picture(tmp_path: Path) -> None:
    for chart in charts(save_run(tmp_path)).values():
        picture = draw(chart)
        assert picture == draw(chart) and len(picture) < 30_000
