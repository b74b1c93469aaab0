"""The solver: the changes it finds with their costs, and what it names where none fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ftcli.memory import Choices
from ftcli.memory.fit.fitting import SMALLER_MODELS, FitResult, fit, instead, steps
from ftcli.memory.fit.request import FitRequest, options_of
from ftcli.memory.fit.search import CARD_TOKENS, estimate_on, fits
from ftcli.memory.hardware import KNOWN_CARDS, card_of_size, find_card
from ftcli.models.architectures.find import find_architecture

CARD_24GB = find_card("24GB").hardware


def asked(choices: Choices, model: str = "7b", **changes: Any) -> FitRequest:
    rows = choices.micro_batch * choices.gradient_accumulation
    return FitRequest(find_architecture(model), choices, rows, **changes)


def keys(found: FitResult | None) -> dict[str, Any]:
    assert found is not None
    return {change.key: change.value for change in found.changes}


# The changes


@pytest.mark.parametrize(
    ("choices", "size", "changes"),
    [
        (Choices("qlora"), "24GB", {}),
        (Choices("full"), "24GB", {"method.mode": "lora"}),
        (Choices("full"), "8GB", {"method.mode": "qlora"}),
        (Choices("lora", rank=64), "16GB", {"method.mode": "qlora"}),
        (
            Choices("full", precision="pure-bf16"),
            "34GB",
            {"training.optimizer": "paged-adamw-8bit"},
        ),
        (Choices("bottleneck"), "12GB", {"method.quantization": "nf4"}),
        (Choices("prompt-tuning", four_bit_base=True), "12GB", {}),
        (
            Choices("prefix-tuning", gradient_checkpointing=False),
            "16GB",
            {"method.quantization": "nf4"},
        ),
        (
            Choices("qlora", micro_batch=8, gradient_checkpointing=False),
            "12GB",
            {"training.gradient_checkpointing": True},
        ),
    ],
)
def test_the_cheapest_changes(choices: Choices, size: str, changes: dict[str, Any]) -> None:
    assert keys(fit(asked(choices), find_card(size).hardware)) == changes


def test_the_micro_batch_is_lowered_first() -> None:
    found = fit(asked(Choices("lora", micro_batch=8, attention="eager")), CARD_24GB)
    assert list(keys(found)) == ["training.micro_batch_size"]
    assert found is not None
    assert found.choices.micro_batch * found.choices.gradient_accumulation == 8


def test_the_steps_lead_to_what_was_found_and_never_up() -> None:
    start = Choices(
        "lora",
        rank=64,
        micro_batch=16,
        seq_len=8192,
        gradient_checkpointing=False,
        attention="eager",
    )
    wanted = asked(start, "13b", alpha=128.0)
    found = fit(wanted, find_card("12GB").hardware)
    assert found is not None
    assert [choices for _, choices in steps(wanted, found.choices)][-1] == found.choices
    sizes = [change.device_bytes for change in found.changes]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == found.estimate.device_bytes
    assert keys(found)["method.alpha"] / keys(found)["method.rank"] == 128 / 64
    for change in found.changes:
        assert len(change.change) > 5 and len(change.cost) > 20


@pytest.mark.parametrize("mode", ["bottleneck", "prefix-tuning", "prompt-tuning"])
def test_a_base_in_4_bits_stands_between_checkpointing_and_shorter_rows(mode: Any) -> None:
    start = Choices(mode, micro_batch=8, gradient_checkpointing=False, seq_len=16_384)
    found = keys(fit(asked(start, "13b"), find_card("12GB").hardware))
    order = ["training.micro_batch_size", "training.gradient_checkpointing"]
    order = order[:1] if mode == "prefix-tuning" else order
    optimizer = [key for key in found if key == "training.optimizer"]
    shorter = [key for key in found if key == "data.max_length"]
    assert list(found) == [*order, *optimizer, "method.quantization", *shorter]
    assert shorter or mode == "prompt-tuning"
    # 4-bit weights are computed with in 16 bits.
    assert fit(asked(replace(start, precision="fp32"), "13b"), CARD_24GB) is None


def test_methods_without_a_rank_have_none_to_lower() -> None:
    for mode in ("bottleneck", "prefix-tuning", "prompt-tuning"):
        options = options_of(asked(Choices(mode)), CARD_24GB)  # type: ignore[arg-type]
        assert (options.rank, options.mode, options.target_modules) == (
            (16,),
            (mode,),
            ("all-linear",),
        )
        assert options.four_bit_base == (False, True)
    options = options_of(asked(Choices("lora", rank_pattern=(("q_proj", 4),))), CARD_24GB)
    assert (options.rank, options.target_modules) == ((16,), ("all-linear",))
    assert options.four_bit_base == (False,)


def test_alpha_follows_the_rank_as_it_scales() -> None:
    start = Choices("qlora", rank=64, seq_len=1024)
    for rslora, power in ((False, 1), (True, 0.5)):
        wanted = asked(start, "13b", alpha=128.0, rslora=rslora)
        (*_, rank, alpha) = (step for step, _ in steps(wanted, replace(start, rank=8)))
        assert (rank.key, rank.value, alpha.key) == ("method.rank", 8, "method.alpha")
        assert alpha.value == 128 * (8 / 64) ** power
        assert f"alpha / {'√' if rslora else ''}rank" in alpha.cost


def test_what_is_open_is_no_change() -> None:
    """`train` decides them, from the largest micro-batch down."""
    choices = Choices("lora", gradient_accumulation=16)
    wanted = asked(choices, "smollm2-135m", open_micro_batch=True, open_checkpointing=True)
    found = fit(wanted, CARD_24GB)
    assert found is not None and found.changes == ()
    assert found.choices.micro_batch == 16 == CARD_TOKENS // found.choices.seq_len
    assert not found.choices.gradient_checkpointing


def test_a_shorter_length_says_what_it_cuts() -> None:
    wanted = asked(Choices("qlora", seq_len=8192), "13b", share_longer=lambda tokens: 0.125)
    found = fit(wanted, find_card("10GB").hardware)
    assert found is not None
    *_, last = found.changes
    assert last.key == "data.max_length" and last.value % 64 == 0
    assert last.cost.startswith("the ends of 12.5% of the prepared rows")
    longer = replace(found.choices, seq_len=last.value + 64)
    hardware = find_card("10GB").hardware
    assert not fits(estimate_on(wanted.architecture, longer, hardware), hardware)
    unknown = fit(replace(wanted, share_longer=None), find_card("10GB").hardware)
    assert unknown is not None and "is not known" in unknown.changes[-1].cost


def test_a_mixture_may_be_trained_by_smaller_methods() -> None:
    options = options_of(asked(Choices("full"), "mixtral-8x7b"), CARD_24GB)
    assert options.mode == ("full", "lora", "qlora")


# Where nothing fits


def test_where_nothing_fits_a_card_and_a_model_that_do_are_named() -> None:
    wanted = asked(Choices("qlora"), "70b")
    assert fit(wanted, CARD_24GB) is None
    found = instead(wanted, CARD_24GB)
    assert found.card is not None and found.model is not None
    better = SMALLER_MODELS[SMALLER_MODELS.index(found.model) - 1]
    too_large = estimate_on(find_architecture(better), wanted.choices, CARD_24GB)
    assert not fits(too_large, CARD_24GB)
    larger = next(card for card in KNOWN_CARDS if card.name == found.card)
    assert fit(wanted, larger.hardware) is not None
    smaller = [
        card
        for card in KNOWN_CARDS
        if CARD_24GB.usable_bytes < card.usable_bytes and card.usable_bytes < larger.usable_bytes
    ]
    for card in smaller:
        nearly = fit(wanted, card.hardware)
        assert nearly is None or nearly.choices.seq_len < 1024
    model = replace(wanted, architecture=find_architecture(found.model))
    as_it_is = fit(model, CARD_24GB)
    assert as_it_is is not None and as_it_is.changes == ()


def test_a_model_without_the_named_layers_is_no_alternative() -> None:
    wanted = asked(Choices("qlora", layers=(70,)), "70b")
    found = instead(wanted, CARD_24GB)
    assert found.card is not None and found.model is None


def test_without_a_known_gpu_that_fits_none_is_named() -> None:
    tiny = card_of_size(0.5).hardware
    found = instead(asked(Choices("full", seq_len=8192), "deepseek-v3"), tiny)
    assert found.card is None and found.model is None


def test_the_smaller_models_are_known_from_large_to_small() -> None:
    sizes = [find_architecture(name).parameters for name in SMALLER_MODELS]
    assert sizes == sorted(sizes, reverse=True)
