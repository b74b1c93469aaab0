"""`--cost-per-hour`: time and cost of a run, and when its short prompt has paid for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import validate

from ftcli.cli import run
from ftcli.evaluation.advice.cost import Call, Calls, Cost, RunCost
from tests.json_shapes import SHAPES


@pytest.mark.parametrize(
    ("tokens", "long", "short", "calls"),
    [
        # 1.5 s less a call: 3,600 s are 2,400 calls, and one more for the rest.
        (7_200_000, 4.0, 2.5, 2400),
        (7_202_000, 4.0, 2.5, 2401),
        (7_200_000, 2.5, 2.5, None),
        (7_200_000, 2.5, 4.0, None),
    ],
)
def test_the_shorter_prompt_pays_with_the_time_it_saves(
    tokens: int, long: float, short: float, calls: int | None
) -> None:
    timed = Calls(5, 50, Call(1792, long), Call(256, short))
    ran = RunCost(tokens, 2000, "timed", tokens / 2000, 0.4)
    priced = Cost(0.4, ran, timed)
    assert priced.calls_to_pay_back == calls
    paid = "after about 2,400 calls" if calls else "saves no time here"
    assert paid in priced.sentences()[2]
    without = Cost(0.4, ran, None)
    assert without.calls_to_pay_back is None and len(without.sentences()) == 1


def test_the_run_and_its_calls_are_priced(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe())
    assert run(["prepare", recipe, "--cost-per-hour", "0.4", "--shots", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    validate(shown, SHAPES["prepare"])
    price = shown["cost"]
    ran, call = price["run"], price["call"]
    assert (price["per_hour"], ran["measured"]) == (0.4, "4 steps timed here")
    # 32 training rows in 8 steps of 4.
    assert ran["tokens"] == shown["train_tokens"]
    assert ran["seconds"] == pytest.approx(ran["tokens"] / ran["tokens_per_second"])
    assert ran["cost"] == pytest.approx(ran["seconds"] / 3600 * 0.4)
    assert call["shots"] == 2
    assert call["long"]["prompt_tokens"] > call["short"]["prompt_tokens"] > 0
    assert call["long"]["seconds"] > 0 < call["short"]["seconds"]
    left = {path.name for path in Path(shown["run_dir"]).iterdir()}
    assert left == {"data", ".lock"}, "what was timed is thrown away"


def test_the_speed_is_that_of_a_finished_run_of_the_recipe(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()
    command = ["train", str(recipe), "--set", "training.max_steps=2"]
    assert run([*command, "--json"]) == 0
    speed = json.loads(capsys.readouterr().out)["tokens_per_second"]
    dry = ["train", str(recipe), "--dry-run", "--cost-per-hour", "2"]
    assert run([*dry, "--json"]) == 0
    price = json.loads(capsys.readouterr().out)["cost"]
    assert price["run"]["tokens_per_second"] == speed
    assert price["run"]["measured"].endswith("runs/tiny")
    assert run(dry) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "at 2 per hour" in out and "one call at a time" in out
    # Another rank is another speed.
    assert run([*dry, "--json", "--set", "method.rank=8"]) == 0
    found = json.loads(capsys.readouterr().out)["cost"]["run"]
    assert found["measured"] == "4 steps timed here"


def test_a_price_goes_with_a_dry_run(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(write_recipe()), "--cost-per-hour", "1"]) == 2
    assert "--cost-per-hour goes with --dry-run" in capsys.readouterr().err
