"""The time of a step: by formula against what is counted, and against published figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftcli.cli import run
from ftcli.errors import MachineError
from ftcli.memory import Choices, speed
from ftcli.memory.hardware import GPU_SPEEDS, KNOWN_CARDS, find_card, gpu_name
from ftcli.memory.speed import (
    COEFFICIENTS,
    coefficients,
    rates_of,
    run_time,
    stated_rates,
    step_time,
    step_work,
    store,
)
from ftcli.models.architectures.find import find_architecture
from ftcli.training.plan.decide import make_plan
from scripts import bench_card, speed_error
from scripts.measured_runs import read_rows
from scripts.speed_error import PAGE, TABLE, halves, page, score, timed_run, timed_runs
from tests.training.planning import LARGE, PROFILE, SMALL, cpu, recipe

LLAMA = find_architecture("llama-3.1-8b")
QLORA = Choices(mode="qlora", optimized=True, liger=True, seq_len=2048)
RTX_4090 = stated_rates(GPU_SPEEDS["RTX 4090"])


@pytest.fixture(scope="module")
def runs() -> list[speed_error.TimedRun]:
    return timed_runs(read_rows(TABLE))[0]


def test_the_table_has_many_gpus_and_stacks(runs: list[speed_error.TimedRun]) -> None:
    assert len(runs) >= 120
    assert len({each.row["gpu"] for each in runs}) >= 6
    assert len({each.row["framework"].split()[0] for each in runs}) >= 5
    assert all(each.row["source"] and each.row["derivation"] for each in runs)


def test_the_estimate_holds_on_runs_that_it_was_not_fitted_on(
    runs: list[speed_error.TimedRun],
) -> None:
    found = score(halves(runs)[1], coefficients())
    assert found.median <= 0.20
    assert found.within_half >= 0.90
    assert found.covered >= 0.85


@pytest.mark.slow
def test_the_coefficients_are_fitted_on_the_other_half(runs: list[speed_error.TimedRun]) -> None:
    fitted_on, _ = halves(runs)

    def mean_error(fitted: Any) -> float:
        return float(np.mean([abs(each.error(fitted)) for each in fitted_on]))

    again = mean_error(speed_error.fit(fitted_on))
    assert mean_error(coefficients()) == pytest.approx(again, rel=0.02)


def test_the_page_shows_this_error() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "python -m scripts.speed_error --write"


@pytest.mark.parametrize(
    "slower",
    [
        {"gradient_checkpointing": True},
        {"liger": False},
        {"optimized": False},
        {"seq_len": 4096},
        {"mode": "full"},
        {"attention": "eager"},
        {"rank": 256},
    ],
    ids=str,
)
def test_more_work_takes_longer(slower: dict[str, Any]) -> None:
    choices = replace(QLORA, gradient_checkpointing=False)
    base = step_time(LLAMA, choices, RTX_4090)
    assert step_time(LLAMA, replace(choices, **slower), RTX_4090).seconds > base.seconds
    assert base.low < base.seconds < base.high


def test_a_step_of_several_micro_batches_is_their_sum() -> None:
    one, four = (replace(QLORA, gradient_accumulation=n) for n in (1, 4))
    work = [step_work(LLAMA, each) for each in (one, four)]
    assert work[1].product_flops == 4 * work[0].product_flops
    assert work[1].tokens == 4 * work[0].tokens == 4 * 2048


def test_every_known_gpu_has_a_speed() -> None:
    for card in KNOWN_CARDS:
        assert gpu_name(card.name) is not None, card.name
    assert gpu_name("NVIDIA GeForce RTX 4090") == "RTX 4090"
    assert gpu_name("NVIDIA A100-SXM4-80GB") == "A100"
    assert gpu_name("NVIDIA H100 80GB HBM3") == "H100"
    assert gpu_name("NVIDIA A100-PCIE-40GB") == "A100 40GB"
    assert gpu_name("Tesla T4") == "T4"
    for other in ("GPU of 24GB", "NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 3080 Ti", "A1000"):
        assert gpu_name(other) is None, other


@pytest.mark.parametrize(
    ("model", "keys", "reason"),
    [
        ("mixtral-8x7b", {}, "how many experts see a token"),
        ("llama-3.1-8b", {"precision": "fp32", "mode": "lora"}, "in fp32"),
    ],
)
def test_what_no_formula_counts_is_refused(model: str, keys: dict[str, Any], reason: str) -> None:
    hardware = find_card("4090").hardware
    with pytest.raises(MachineError, match=reason):
        run_time(find_architecture(model), replace(QLORA, **keys), hardware, None)


def test_rows_that_say_too_little_are_left_out() -> None:
    row = read_rows(TABLE)[0]
    with pytest.raises(speed_error.NotExpressible):
        timed_run(row | {"gpu": "some GPU"})


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code = run(["estimate-vram", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_says_tokens_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--model", "llama-3.1-8b", "--mode", "qlora", "--gpu", "4090")
    code, found = ask(capsys, *flags, "--time")
    low, high = found["time"]["tokens_per_second_interval"]
    assert code == 0 and low < found["time"]["tokens_per_second"] < high
    assert found["time"]["seconds"] is None and "cost" not in found["time"]
    assert "time" not in ask(capsys, *flags)[1]
    for wrong, words in (
        (("--model", "7b", "--time"), "--time needs a GPU"),
        ((*flags, "--cost-per-hour", "1"), "add --time"),
        (("--model", "7b", "--gpu", "24GB", "--time"), "speed of GPU of 24GB is not known"),
    ):
        code, found = ask(capsys, *wrong)
        assert code in (1, 2) and words in found["error"]["message"]


def test_with_prepared_rows_it_says_hours_and_cost(
    write_recipe: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe())
    code, found = ask(capsys, recipe, "--gpu", "4090", "--time", "--cost-per-hour", "2")
    assert code == 0 and found["time"]["seconds"] is None, "no rows are prepared"
    assert run(["prepare", recipe]) == 0
    capsys.readouterr()
    code, found = ask(capsys, recipe, "--gpu", "4090", "--time", "--cost-per-hour", "2")
    time = found["time"]
    assert time["cost"] == pytest.approx(time["seconds"] / 3600 * 2)
    low, high = time["seconds_interval"]
    assert low < time["seconds"] < high
    assert run(["estimate-vram", recipe, "--gpu", "4090", "--time", "--cost-per-hour", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tokens per second (" in said and "at 2 per hour" in said


def test_what_was_measured_of_a_gpu_takes_the_place_of_what_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "speed.json"
    file.write_text(COEFFICIENTS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(speed, "COEFFICIENTS", file)
    speed._stored.cache_clear()
    try:
        before = coefficients()
        rates = bench_card.measure(torch.device("cpu"), (64, 64, 64), 2**16, 10)
        assert min(asdict(rates).values()) > 0
        store("measured", {"RTX 4090": asdict(rates)})
        assert rates_of("NVIDIA GeForce RTX 4090") == rates != RTX_4090
        assert rates_of("RTX 3090") == stated_rates(GPU_SPEEDS["RTX 3090"])
        assert coefficients() == before
        work = step_work(LLAMA, QLORA)
        assert step_time(LLAMA, QLORA, rates).seconds > work.product_flops / rates.product_flops
    finally:
        speed._stored.cache_clear()


def test_a_machine_without_a_known_gpu_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match="is no GPU that ftcli knows the speed of"):
        bench_card.main()


def test_a_plan_says_what_each_choice_saves_or_costs() -> None:
    rows = replace(PROFILE, longest_tokens=400, common_tokens=50)
    reasons = make_plan(recipe("qlora"), LARGE, rows, find_card("4090").hardware).reasons
    assert "; padded rows would have up to 2.0 times the tokens" in reasons["training.packing"]
    assert "fewer tokens in a step" in reasons["optimizations.shared_prefix"]
    for key in ("optimizations.fused_lora", "optimizations.liger"):
        assert re.search(r"; about \d+% less time a step \(estimated\)$", reasons[key]), key
    long = make_plan(
        recipe("qlora"), LARGE, replace(rows, longest_tokens=70_000), find_card("4090").hardware
    )
    for key in ("training.tiled_mlp", "training.activation_offload"):
        assert re.search(r"; about \d+% more time a step \(estimated\)$", long.reasons[key]), key
    unknown = make_plan(recipe("qlora"), LARGE, rows, find_card("24GB").hardware)
    on_cpu = make_plan(recipe("lora"), SMALL, PROFILE, cpu())
    for plan in (unknown, on_cpu):
        assert not any("estimated)" in reason for reason in plan.reasons.values())
