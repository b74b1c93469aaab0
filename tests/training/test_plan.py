"""Decisions of a plan, each with its reason."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.errors import FtcliError, ModelError
from ftcli.memory.fit.search import estimate_on, needed_bytes
from ftcli.memory.hardware import Hardware
from ftcli.models.architectures.find import find_architecture
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import Plan, RowStatistics
from tests.conftest import prepared_data
from tests.training.planning import (
    MODES,
    PROFILE,
    SMALL,
    card,
    card_with,
    cpu,
    decided,
    recipe,
)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "precision", "fp32"),
        ("training", "precision", "pure-bf16"),
        ("training", "optimizer", "adamw-8bit"),
        ("training", "optimizer", "paged-adamw-8bit"),
        ("training", "micro_batch_size", 2),
        ("training", "gradient_checkpointing", True),
        ("training", "gradient_checkpointing", False),
        ("training", "learning_rate", 1e-3),
        ("training", "eval_steps", 7),
        ("training", "save_steps", 5),
        ("model", "attention", "flash"),
        ("model", "dtype", "fp32"),
    ],
)
def test_what_the_recipe_sets_stands(section: str, key: str, value: object) -> None:
    plan = make_plan(recipe(**{section: {key: value}}), SMALL, PROFILE, card())
    assert decided(plan, f"{section}.{key}") == (value, "set in the recipe")


# Precision and types


@pytest.mark.parametrize(
    ("hardware", "precision", "reason"),
    [
        (cpu(), "fp32", "a CPU has no bf16 matrix units and emulates it slowly"),
        (cpu(fast_bf16=True), "bf16", "this CPU supports it: fast, with the range of fp32"),
        (card("4090"), "bf16", "compute capability 8.9 supports it: fast, with the range of fp32"),
        (card("A100"), "bf16", "compute capability 8.0 supports it: fast, with the range of fp32"),
        (card("T4"), "fp16", "T4 16GB has no bf16; fp16 with loss scaling"),
        (card("V100"), "fp16", "V100 16GB has no bf16; fp16 with loss scaling"),
    ],
)
def test_precision_follows_the_machine(hardware: Hardware, precision: str, reason: str) -> None:
    assert decided(make_plan(recipe(), SMALL, PROFILE, hardware), "training.precision") == (
        precision,
        reason,
    )


@pytest.mark.fault(33)
@pytest.mark.parametrize("hardware", [cpu(), card("4090"), card("T4")], ids=["cpu", "4090", "T4"])
@pytest.mark.parametrize("precision", ["auto", "half", "fp32"])
def test_full_training_keeps_fp32_weights(hardware: Hardware, precision: str) -> None:
    if precision == "half":
        precision = "fp16" if hardware.kind == "cuda" and not hardware.fast_bf16 else "bf16"
    plan = make_plan(recipe("full", training={"precision": precision}), SMALL, PROFILE, hardware)
    assert plan.model.dtype == "fp32"
    assert "small updates count" in plan.reasons["model.dtype"]
    assert plan.estimate.breakdown["weights"] == 4 * SMALL.parameters


@pytest.mark.fault(33)
def test_only_pure_bf16_gives_the_masters_up() -> None:
    plan = make_plan(recipe("full", training={"precision": "pure-bf16"}), SMALL, PROFILE, card())
    assert plan.model.dtype == "bf16"
    assert "small updates round to zero" in plan.reasons["model.dtype"]
    assert plan.estimate.breakdown["weights"] == 2 * SMALL.parameters


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(
    ("hardware", "dtype"), [(cpu(), "fp32"), (card("4090"), "bf16"), (card("T4"), "fp16")]
)
def test_frozen_weights_follow_the_arithmetic(mode: str, hardware: Hardware, dtype: str) -> None:
    assert make_plan(recipe(mode), SMALL, PROFILE, hardware).model.dtype == dtype
    asked = make_plan(recipe(mode, model={"dtype": "fp32"}), SMALL, PROFILE, hardware)
    assert decided(asked, "model.dtype") == ("fp32", "set in the recipe")


# Method, attention, optimizer, rate


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
def test_a_mixture_of_experts_is_planned(mode: str) -> None:
    mixture = find_architecture("qwen3-30b-a3b")
    large = replace(card("H200"), free_bytes=10**12)
    plan = make_plan(recipe(mode), mixture, PROFILE, large)
    assert plan.steps == 188
    experts = 2 * mixture.expert_parameters
    weights = plan.estimate.breakdown["weights"]
    assert weights < experts / 3 if mode == "qlora" else weights > experts


def test_a_bottleneck_needs_a_layer_that_it_can_follow() -> None:
    mixture = find_architecture("mixtral-8x7b")
    with pytest.raises(ModelError, match=r"the MLP of a layer has none; set method\.placement"):
        make_plan(recipe("bottleneck"), mixture, PROFILE, card("H200"))


def test_a_prefix_needs_keys_and_values_in_every_layer() -> None:
    with pytest.raises(ModelError, match="layers without keys and values"):
        make_plan(recipe("prefix-tuning"), find_architecture("lfm2-1.2b"), PROFILE, card())


@pytest.mark.fault(19)
def test_an_unknown_target_is_refused_before_any_download() -> None:
    wrong = recipe(method={"target_modules": ["q_prj"]})
    with pytest.raises(ModelError, match=r"no linear layer 'q_prj'; did you mean q_proj\?"):
        make_plan(wrong, SMALL, PROFILE, card())


def test_attention_follows_the_model() -> None:
    assert make_plan(recipe(), SMALL, PROFILE, card()).model.attention == "sdpa"
    capped = make_plan(recipe(), find_architecture("gemma-2-2b"), PROFILE, card())
    assert capped.model.attention == "eager"
    assert capped.reasons["model.attention"] == "transformers has no sdpa attention for this model"


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("hardware", [cpu(), card()], ids=["cpu", "4090"])
def test_adapters_keep_exact_states(hardware: Hardware, mode: str) -> None:
    assert make_plan(recipe(mode), SMALL, PROFILE, hardware).training.optimizer == "adamw"


@pytest.mark.parametrize(
    ("mode", "rate"), [("full", 2e-5), ("lora", 2e-4), ("qlora", 2e-4), ("bottleneck", 1e-3)]
)
def test_the_rate_follows_the_method(mode: str, rate: float) -> None:
    assert make_plan(recipe(mode), SMALL, PROFILE, card()).training.learning_rate == rate
    asked = recipe(mode, training={"learning_rate": "1e-3"})
    assert make_plan(asked, SMALL, PROFILE, card()).training.learning_rate == 1e-3


# Steps


@pytest.mark.parametrize(
    ("rows", "training", "steps", "epochs"),
    [
        (1000, {"epochs": 3, "batch_size": 16}, 188, 3),
        (1000, {"epochs": 1, "batch_size": 1000}, 1, 1),
        (1000, {"epochs": 0.5, "batch_size": 10}, 50, 0.5),
        (3, {"epochs": 1, "batch_size": 16}, 1, 1),
        (1, {"epochs": 0.01, "batch_size": 16}, 1, 0.01),
        (1000, {"max_steps": 32, "batch_size": 8}, 32, 0.256),
        (1000, {"max_steps": 1, "epochs": 3, "batch_size": 16}, 1, 0.016),
    ],
)
def test_steps_are_rows_times_epochs_over_batch(
    rows: int, training: dict[str, Any], steps: int, epochs: float
) -> None:
    profile = replace(PROFILE, rows=rows, tokens=200 * rows)
    plan = make_plan(recipe(training=training), SMALL, profile, card())
    assert plan.steps == steps
    assert plan.epochs == pytest.approx(epochs)


@given(st.integers(1, 10_000), st.integers(1, 64), st.floats(0.01, 20))
def test_every_row_is_seen_and_no_step_is_empty(rows: int, size: int, epochs: float) -> None:
    profile = replace(PROFILE, rows=rows, tokens=200 * rows)
    training = {"epochs": epochs, "batch_size": size}
    steps = make_plan(recipe(training=training), SMALL, profile, cpu()).steps
    wanted_rows = max(1, round(rows * epochs))
    assert (steps - 1) * size < wanted_rows <= steps * size


@pytest.mark.parametrize(
    ("ratio", "steps", "warmup"), [(0.03, 188, 6), (0, 188, 0), (0.1, 32, 4), (0.03, 1, 1)]
)
def test_warm_up_is_a_share_of_the_steps(ratio: float, steps: int, warmup: int) -> None:
    training = {"warmup_ratio": ratio, "max_steps": steps}
    plan = make_plan(recipe(training=training), SMALL, PROFILE, card())
    assert plan.warmup_steps == warmup


@given(
    steps=st.integers(1, 5000),
    validation_tokens=st.integers(1, 10**7),
    tokens_a_row=st.integers(1, 2000),
)
def test_validations_are_affordable_or_few(
    steps: int, validation_tokens: int, tokens_a_row: int
) -> None:
    profile = replace(PROFILE, tokens=1000 * tokens_a_row, validation_tokens=validation_tokens)
    plan = make_plan(recipe(training={"max_steps": steps}), SMALL, profile, cpu())
    count = math.ceil(steps / plan.training.eval_steps)
    assert 1 <= count <= 10
    assert count >= min(2, steps)
    share = count * validation_tokens / 3 / (steps * 16 * tokens_a_row)
    assert share <= 0.1 + 1e-9 or count <= 2
    assert plan.training.save_steps == plan.training.eval_steps


def test_without_validation_rows_a_tenth_is_saved() -> None:
    profile = replace(PROFILE, validation_tokens=0)
    plan = make_plan(recipe(training={"max_steps": 95}), SMALL, profile, cpu())
    assert plan.training.eval_steps == 10
    assert "no validation rows" in plan.reasons["training.eval_steps"]


# The plan as a whole


PLANS = [
    make_plan(recipe(mode), SMALL, PROFILE, hardware)
    for mode in MODES
    for hardware in (cpu(), cpu(fast_bf16=True), card("4090"), card("T4"))
]


@pytest.mark.parametrize("plan", PLANS)
def test_every_choice_has_a_reason(plan: Plan) -> None:
    made = ["shared_prefix"] if plan.training.packing else []
    made += ["fused_lora"] if plan.estimated.has_lora else []
    made += ["liger"] if plan.hardware.kind == "cuda" else []
    made += ["dequantised"] if plan.estimated.quantization else []
    assert list(plan.reasons) == [
        "training.precision",
        "model.dtype",
        "model.attention",
        "training.optimizer",
        "training.learning_rate",
        "training.micro_batch_size",
        "training.packing",
        *(f"optimizations.{name}" for name in made),
        "training.gradient_checkpointing",
        "steps",
        "training.eval_steps",
        "training.save_steps",
    ]
    for key, value, reason in plan.decisions():
        assert value is not None and value != "auto", key
        assert len(reason) > 10 or reason == "exact states", key


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_is_read_back_as_it_was_written(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path / "plan.json")
    found = Plan.read(tmp_path / "plan.json")
    assert found == plan
    assert found.estimated == plan.estimated
    assert estimate_on(SMALL, found.estimated, plan.hardware) == plan.estimate


@given(
    mode=st.sampled_from(MODES),
    model=st.sampled_from(["smollm2-135m", "7b", "gemma-2-2b", "mixtral-8x7b"]),
    hardware=st.sampled_from([cpu(), cpu(fast_bf16=True), card(), card("T4"), card_with(1)]),
    longest=st.integers(1, 40_000),
    rows=st.integers(1, 100_000),
    size=st.integers(1, 64),
)
def test_any_question_gets_a_plan_that_fits_or_a_reason(
    mode: str, model: str, hardware: Hardware, longest: int, rows: int, size: int
) -> None:
    profile = RowStatistics(rows, rows * longest, longest, 1.0, 0)
    wanted = recipe(mode, training={"batch_size": size})
    try:
        plan = make_plan(wanted, find_architecture(model), profile, hardware)
    except FtcliError as error:
        assert error.code in ("memory", "method_refused")
        return
    assert needed_bytes(plan.estimate, hardware) <= hardware.free_bytes
    assert plan.training.micro_batch_size * plan.accumulation == size


def test_the_profile_of_prepared_data() -> None:
    found = RowStatistics.of(prepared_data())
    assert found == RowStatistics(10, 2000, 321, 0.25, 300)
    assert found.mean_tokens == 200
