"""What fits: optimizer states, micro-batch, gradient checkpointing; and what an error proposes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.errors import MachineError
from ftcli.memory import Choices, estimate
from ftcli.memory.fit.search import needed_bytes
from ftcli.memory.hardware import Hardware, find_card
from ftcli.models.architectures.find import find_architecture
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import Plan
from tests.training.planning import (
    GB,
    LARGE,
    PROFILE,
    SMALL,
    card,
    card_with,
    cpu,
    decided,
    recipe,
)


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


@given(st.integers(1, 512), st.sampled_from([cpu(), card("3060"), card("A100")]))
def test_micro_batch_times_accumulation_is_the_batch(size: int, hardware: Hardware) -> None:
    plan = make_plan(recipe(training={"batch_size": size}), SMALL, PROFILE, hardware)
    assert plan.training.micro_batch_size * plan.accumulation == size
    assert needed_bytes(plan.estimate, hardware) <= hardware.free_bytes


def test_a_cpu_takes_few_rows_and_a_card_many() -> None:
    padded = recipe(training={"packing": False})
    assert make_plan(padded, SMALL, PROFILE, cpu()).training.micro_batch_size == 4
    assert make_plan(padded, SMALL, PROFILE, card()).training.micro_batch_size == 16
    short = replace(PROFILE, longest_tokens=64)
    wide = recipe(training={"batch_size": 512, "packing": False})
    assert make_plan(wide, SMALL, short, card()).training.micro_batch_size == 16_384 // 64
    long = replace(PROFILE, longest_tokens=20_000)
    assert make_plan(padded, SMALL, long, card()).training.micro_batch_size == 1


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
    plan = make_plan(recipe("qlora"), find_architecture(model), rows, card(name))
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
