from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.config.recipe import Recipe
from ftcli.errors import FtcliError, MachineError, ModelError
from ftcli.memory import Choices, estimate
from ftcli.memory.fit.search import estimate_on, needed_bytes
from ftcli.memory.hardware import Hardware, find_card
from ftcli.memory.shapes import find_shape
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import Plan, RowStatistics
from tests.conftest import prepared_data

GB = 10**9
MODES = ("full", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning")
SMALL, LARGE = find_shape("smollm2-135m"), find_shape("7b")
# 1,000 rows of 200 tokens, half of which is answers; the longest row has 512.
PROFILE = RowStatistics(
    rows=1000, tokens=200_000, longest_tokens=512, label_share=0.5, validation_tokens=20_000
)


def recipe(mode: str = "lora", /, **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "shop",
            "model": {"id": "7b"} | sections.pop("model", {}),
            "method": {"mode": mode} | sections.pop("method", {}),
            "data": {"train": "shop.jsonl"},
            **sections,
        }
    )


def cpu(gigabytes: float = 16, *, fast_bf16: bool = False) -> Hardware:
    size = int(gigabytes * GB)
    return Hardware("cpu", "a CPU", size, size, None, fast_bf16, cores=2)


def card(name: str = "4090") -> Hardware:
    """A card of which all is free but what the display and the context take."""
    found = find_card(name)
    capability = found.compute_capability
    assert capability is not None
    return Hardware(
        "cuda",
        found.name,
        found.memory_bytes,
        found.usable_bytes - found.context_bytes,
        capability,
        fast_bf16=capability >= (8, 0),
        cores=16,
        kernels=frozenset({"triton"}),
    )


def card_with(gigabytes: float) -> Hardware:
    return replace(card(), free_bytes=int(gigabytes * GB))


def decided(plan: Plan, wanted: str) -> tuple[Any, str]:
    """A value that was left open, and the reason for it."""
    return next((value, reason) for key, value, reason in plan.decisions() if key == wanted)


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
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_full_training_keeps_fp32_weights(hardware: Hardware, precision: str) -> None:
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


@pytest.mark.parametrize("mode", MODES[1:])
def test_adapters_on_a_mixture_are_refused(mode: str) -> None:
    mixture = find_shape("mixtral-8x7b")
    with pytest.raises(ModelError) as caught:
        make_plan(recipe(mode), mixture, PROFILE, card("H200"))
    assert str(caught.value) == (
        "mixtral-8x7b is a mixture of experts: its experts are 3-D tensors, which 4-bit "
        f"quantisation skips and {mode} is not tested on; take method.mode: full, or a dense "
        "model"
    )


def test_a_mixture_may_be_trained_whole() -> None:
    mixture = replace(find_shape("mixtral-8x7b"), layers=1, hidden=256, intermediate=512)
    assert make_plan(recipe("full"), mixture, PROFILE, card("H200")).steps == 188


@pytest.mark.fault(19)
def test_an_unknown_target_is_refused_before_any_download() -> None:
    wrong = recipe(method={"target_modules": ["q_prj"]})
    with pytest.raises(ModelError, match=r"no linear layer 'q_prj'; did you mean q_proj\?"):
        make_plan(wrong, SMALL, PROFILE, card())


def test_attention_follows_the_model() -> None:
    assert make_plan(recipe(), SMALL, PROFILE, card()).model.attention == "sdpa"
    capped = make_plan(recipe(), find_shape("gemma-2-2b"), PROFILE, card())
    assert capped.model.attention == "eager"
    assert "softcap" in capped.reasons["model.attention"]


def test_tight_full_training_pages_its_optimizer() -> None:
    """Between what AdamW's fp32 states take and what the rest takes, 8 bits decide."""
    choices = Choices("full", seq_len=512, gradient_accumulation=16, label_share=0.5)
    exact, paged = (
        estimate(SMALL, replace(choices, optimizer=name)).device_bytes / GB
        for name in ("adamw", "paged-adamw-8bit")
    )
    assert paged < exact - 0.5
    roomy = make_plan(recipe("full"), SMALL, PROFILE, card_with(exact / 0.9))
    assert decided(roomy, "training.optimizer") == ("adamw", "its fp32 states fit")
    tight = make_plan(recipe("full"), SMALL, PROFILE, card_with((exact + paged) / 2))
    assert decided(tight, "training.optimizer") == (
        "paged-adamw-8bit",
        "fp32 states do not fit on this GPU",
    )
    assert tight.estimate.managed_bytes > 0


@pytest.mark.parametrize("micro_batch", ["auto", 4])
@pytest.mark.parametrize("gigabytes", [2.6, 2.9, 3.2, 3.5, 3.8, 4.1, 4.4])
def test_exact_states_are_kept_wherever_they_fit(gigabytes: float, micro_batch: object) -> None:
    hardware, training = card_with(gigabytes), {"micro_batch_size": micro_batch}

    def plan(**keys: Any) -> Plan:
        return make_plan(recipe("full", training=training | keys), SMALL, PROFILE, hardware)

    try:
        plan(optimizer="adamw")
        exact_fits = True
    except MachineError:
        exact_fits = False
    assert (plan().training.optimizer == "adamw") == exact_fits


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


# Memory


@given(st.integers(1, 512), st.sampled_from([cpu(), card("3060"), card("A100")]))
def test_micro_batch_times_accumulation_is_the_batch(size: int, hardware: Hardware) -> None:
    plan = make_plan(recipe(training={"batch_size": size}), SMALL, PROFILE, hardware)
    assert plan.training.micro_batch_size * plan.accumulation == size
    assert needed_bytes(plan.estimate, hardware) <= hardware.free_bytes


def test_a_cpu_takes_few_rows_and_a_card_many() -> None:
    padded = recipe(training={"packing": False})
    assert make_plan(padded, SMALL, PROFILE, cpu()).training.micro_batch_size == 4
    assert make_plan(recipe(), SMALL, PROFILE, card()).training.micro_batch_size == 16
    short = replace(PROFILE, longest_tokens=64)
    wide = recipe(training={"batch_size": 512})
    assert make_plan(wide, SMALL, short, card()).training.micro_batch_size == 16_384 // 64
    long = replace(PROFILE, longest_tokens=20_000)
    assert make_plan(recipe(), SMALL, long, card()).training.micro_batch_size == 1


def test_checkpointing_is_off_where_memory_allows() -> None:
    plan = make_plan(recipe(), SMALL, PROFILE, card())
    assert decided(plan, "training.gradient_checkpointing") == (
        False,
        "activations fit; computing them again would take a third more time",
    )


def test_checkpointing_is_on_where_it_does_not() -> None:
    """A 7B model on 16 GB: one row fits only with checkpointing."""
    long = replace(PROFILE, longest_tokens=2048)
    plan = make_plan(recipe("qlora"), LARGE, long, card_with(12))
    assert decided(plan, "training.gradient_checkpointing") == (
        True,
        "activations do not fit without it; takes about a third more time",
    )
    with pytest.raises(MachineError):
        asked = recipe("qlora", training={"gradient_checkpointing": False})
        make_plan(asked, LARGE, long, card_with(12))


@pytest.mark.parametrize("name", ["4090", "3090", "L4"])
@pytest.mark.parametrize("model", ["7b", "qwen2.5-7b", "mistral-7b"])
def test_qlora_of_7b_fits_a_24_gb_card(name: str, model: str) -> None:
    rows = replace(PROFILE, longest_tokens=1024)
    plan = make_plan(recipe("qlora"), find_shape(model), rows, card(name))
    assert plan.training.micro_batch_size * plan.accumulation == 16
    assert plan.estimate.fits[find_card(name).name]


@pytest.mark.parametrize(
    ("mode", "advice"),
    [
        ("full", "take method.mode: lora"),
        ("lora", "take method.mode: qlora"),
        ("qlora", "lower method.rank"),
        ("bottleneck", "take method.quantization: nf4"),
        ("prefix-tuning", "take method.quantization: nf4"),
        ("prompt-tuning", "take method.quantization: nf4"),
    ],
)
def test_where_nothing_fits_the_error_says_what_to_do(mode: str, advice: str) -> None:
    with pytest.raises(MachineError) as caught:
        make_plan(recipe(mode), LARGE, PROFILE, card_with(2))
    needed, text = str(caught.value).split(", and ")
    assert needed.startswith("one row of 512 tokens needs ")
    assert float(needed.split()[-2]) > 2
    assert text == (
        f"RTX 4090 24GB has 1.9 GiB free; {advice}, lower data.max_length, or take a smaller model"
    )
    assert (caught.value.code, caught.value.exit_code) == ("memory", 1)


def test_where_a_wanted_micro_batch_does_not_fit_the_error_names_it() -> None:
    asked = recipe("qlora", training={"micro_batch_size": 16})
    with pytest.raises(MachineError, match=r"16 rows of 512 tokens need .*micro_batch_size"):
        make_plan(asked, LARGE, PROFILE, card_with(6))


def test_where_checkpointing_was_refused_the_error_names_it() -> None:
    asked = recipe("qlora", training={"gradient_checkpointing": False})
    with pytest.raises(MachineError, match=r"training\.gradient_checkpointing"):
        make_plan(asked, LARGE, replace(PROFILE, longest_tokens=2048), card_with(12))


def test_a_context_that_exists_is_not_counted_again() -> None:
    found = make_plan(recipe(), SMALL, PROFILE, card()).estimate
    assert needed_bytes(found, card()) == found.high_bytes - found.breakdown["context"]
    assert needed_bytes(found, card()) > found.reserved_bytes
    assert needed_bytes(found, cpu()) == found.peak_bytes


@pytest.mark.parametrize("name", ["4090", "3060", "T4", "A100"])
def test_a_plan_on_a_card_fits_by_the_upper_end_of_its_estimate(name: str) -> None:
    """With one byte less free than a plan may need, another plan is made."""
    found = make_plan(recipe(), SMALL, PROFILE, card(name))
    assert found.estimate.high_bytes <= find_card(name).usable_bytes
    needed = needed_bytes(found.estimate, card(name))
    exact = replace(card(name), free_bytes=needed)
    assert make_plan(recipe(), SMALL, PROFILE, exact).estimate == found.estimate
    less = make_plan(recipe(), SMALL, PROFILE, replace(exact, free_bytes=needed - 1))
    assert needed_bytes(less.estimate, card(name)) < needed


def test_a_card_as_hardware_has_what_is_usable_of_it() -> None:
    for name in ("4090", "T4", "24GB"):
        found, known = find_card(name).hardware, find_card(name)
        assert found.usable_bytes == known.usable_bytes
        assert found.fast_bf16 is (name != "T4")
    assert card("4090") == replace(find_card("4090").hardware, cores=16)


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
        plan = make_plan(wanted, find_shape(model), profile, hardware)
    except FtcliError as error:
        assert error.code in ("memory", "method_refused")
        return
    assert needed_bytes(plan.estimate, hardware) <= hardware.free_bytes
    assert plan.training.micro_batch_size * plan.accumulation == size


def test_the_profile_of_prepared_data() -> None:
    found = RowStatistics.of(prepared_data())
    assert found == RowStatistics(10, 2000, 321, 0.25, 300)
    assert found.mean_tokens == 200
