"""Curves are thinned without losing a peak, and say in a sentence what they show."""

from __future__ import annotations

import json
import math
import random
from typing import Any
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from ftcli.stages.report.curves import MOST_POINTS, charts_of, thinned
from ftcli.stages.report.pictures import draw
from tests.reported import records, speeds

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400)


@given(VALUES, st.integers(4, 60))
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(values: list[float], most: int) -> None:
    points = list(enumerate(values))
    kept = thinned(points, most)
    assert len(kept) <= max(most, 4)
    assert set(kept) <= set(points) and list(kept) == sorted(kept)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    shown = [value for _, value in kept]
    assert min(shown) == min(values) and max(shown) == max(values)


def test_a_long_training_is_thinned_and_its_one_peak_stays() -> None:
    random.seed(0)
    lines = [{"step": step, "loss": 1 + random.random() / 10} for step in range(1, 100_001)]
    lines[77_776]["loss"] = 40.0
    chart = charts_of(lines, [], None)[0]
    assert len(chart.curves[0].points) <= MOST_POINTS
    assert (77_777, 40.0) in chart.curves[0].points
    assert "over 100,000 steps" in chart.summary


def test_what_the_charts_say() -> None:
    charts = {chart.key: chart for chart in charts_of(records(), speeds(), 60)}
    assert list(charts) == ["loss", "rate", "norm", "speed"]
    assert charts["loss"].summary == (
        "Training loss 2.30 → 0.86 over 60 steps; validation loss 2.31 → 0.92, the best at step 60."
    )
    assert charts["norm"].logarithmic and "greatest 30.00 (step 31)" in charts["norm"].summary
    assert charts["speed"].curves[0].points[0] == (1, 2010 / 25)
    steps = [step for step, _ in charts["loss"].table()]
    assert steps[0] == 0 and steps[-1] == 60 and len(steps) <= 24


def test_steps_done_again_and_figures_that_are_none() -> None:
    lines: list[dict[str, Any]] = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": math.nan},
        {"step": 2, "loss": "much"},
        {"step": 3, "loss": 2.0},
        {"step": 3, "loss": 2.5},
    ]
    times = [
        {"step": 1, "tokens": 100, "seconds": 1.0},
        {"step": 1, "tokens": 100, "seconds": 2.0},  # after a resume
        {"step": 3, "tokens": 100, "seconds": 0},
        {"step": 9, "tokens": 100, "seconds": 1.0},  # of no step that counts
    ]
    charts = {chart.key: chart for chart in charts_of(lines, times, None)}
    assert charts["loss"].curves[0].points == ((1, 3.0), (3, 2.5))
    assert charts["speed"].curves[0].points == ((1, 50.0),)
    assert charts_of([], [], None) == []


def test_pictures_bring_no_style_and_are_the_same_each_time() -> None:
    charts = charts_of(records(), speeds(), 60)
    pictures = [draw(chart) for chart in charts]
    assert pictures == [draw(chart) for chart in charts]
    whole = "".join(pictures)
    for unwanted in (
        "style=",
        "<style",
        "font-family",
        "#0",
        "http://www.w3.org/1999",
        "<metadata",
    ):
        assert unwanted not in whole.replace('href="#', ""), unwanted
    ids = [each.get("id") for svg in pictures for each in ElementTree.fromstring(svg).iter()]
    named = [each for each in ids if each is not None]
    assert named and len(named) == len(set(named))
    for svg, chart in zip(pictures, charts, strict=True):
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == f"{chart.key}-title {chart.key}-summary"
        pointed = [each.get("href") for each in root.iter() if each.get("href")]
        own = {f"#{each.get('id')}" for each in root.iter()}
        assert set(pointed) <= own
    assert len(json.dumps(pictures)) < 120_000
