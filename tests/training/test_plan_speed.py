"""Which optimisations a plan takes, and the reason where one is left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ftcli.errors import UsageError
from ftcli.memory import estimate
from ftcli.memory.activations.layers import layers_bytes
from ftcli.memory.architecture import Attention
from ftcli.memory.fit.search import CARD_TOKENS
from ftcli.models.architectures.find import architecture_of, find_architecture
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.optimizations import why_no_varlen
from ftcli.training.plan.plan import Plan
from tests.training.planning import GB, PROFILE, SMALL, card, cpu, decided, recipe

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 97,
}

LLAMA_3_POSITIONS = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
HEADS = SMALL.kinds[0].attention[0].heads


def plan_of(mode: str = "lora", **sections: Any) -> Plan:
    return make_plan(recipe(mode, **sections), SMALL, PROFILE, cpu())


@pytest.mark.parametrize(
    ("mode", "sections", "reason"),
    [
        ("lora", {"training": {"optimizations": "off"}}, "training.optimizations: off"),
        ("lora", {"training": {"packing": False}}, "set in the recipe"),
        ("prefix-tuning", {}, "each row has its own virtual tokens"),
        ("prompt-tuning", {}, "each row has its own virtual tokens"),
        ("lora", {"training": {"neftune_noise_alpha": 5}}, "NEFTune scales its noise by the"),
        ("lora", {"model": {"attention": "eager"}}, "model.attention: eager is set in the recipe"),
    ],
)
def test_rows_are_padded_for_a_reason(mode: str, sections: Any, reason: str) -> None:
    plan = plan_of(mode, **sections)
    assert plan.training.packing == 0 and plan.reasons["training.packing"].startswith(reason)
    assert plan.optimizations.shared_prefix is None and not plan.estimated.packed_rows
    assert "packed" not in plan.headline()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "gpt_neox", "rotary_pct": 1.0}, "not tested for gpt_neox"),
        ({"attention_dropout": 0.1}, "the model has dropout"),
        ({"resid_pdrop": 0.1}, "the model has dropout"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rotary positions depend on"),
        ({"rope_scaling": LLAMA_3_POSITIONS}, None),
    ],
)
def test_a_model_s_rows_are_packed_where_that_is_proven(config: Any, reason: str | None) -> None:
    architecture = architecture_of(LLAMA | config)
    packing, why = decided(make_plan(recipe(), architecture, PROFILE, cpu()), "training.packing")
    assert bool(packing) == (reason is None)
    assert reason is None or reason in why


def test_packed_rows_have_an_attention_of_their_own_which_the_plan_says() -> None:
    packed, why = decided(plan_of(), "model.attention")
    padded, why_padded = decided(plan_of(training={"packing": False}), "model.attention")
    assert packed == padded == "sdpa"
    assert why.startswith(why_padded) and "packed rows" in why
    assert "packed" not in why_padded


def on_card(mode: str = "lora", name: str = "4090", **sections: Any) -> Plan:
    return make_plan(recipe(mode, **sections), SMALL, PROFILE, card(name))


def test_a_card_takes_every_optimisation() -> None:
    plan = on_card()
    assert plan.training.packing == 16 * PROFILE.longest_tokens, (
        "a whole step has fewer than enough"
    )
    made = plan.optimizations
    assert made.shared_prefix and made.fused_lora and made.liger
    of_4_bits = on_card("qlora")
    assert of_4_bits.training.packing and of_4_bits.optimizations.fused_lora
    assert not of_4_bits.estimated.keeps_dequantised
    off = on_card(training={"optimizations": "off"})
    assert not off.training.packing and off.optimizations.liger is False
    with pytest.raises(UsageError, match=r"training\.packing: true is not possible here"):
        on_card(training={"optimizations": "off", "packing": True})


def test_rocm_takes_none_unless_the_recipe_asks() -> None:
    hardware = replace(card(), compute_capability=None, rocm=True)
    plan = make_plan(recipe("qlora"), SMALL, PROFILE, hardware)
    keys = ("training.packing", "optimizations.fused_lora", "optimizations.liger")
    assert not any(decided(plan, key)[0] for key in keys)
    only = "not tested on ROCm; training.optimizations: all turns it on"
    assert all(only in plan.reasons[key] for key in keys)
    asked = recipe("qlora", training={"optimizations": "all"})
    assert make_plan(asked, SMALL, PROFILE, hardware).training.packing


def test_a_missing_package_of_an_optimisation_is_named() -> None:
    bare = replace(card(), kernels=frozenset())
    without = make_plan(recipe(), SMALL, PROFILE, bare)
    assert without.training.packing
    assert without.optimizations.liger is False
    assert "pip install liger-kernel" in without.reasons["optimizations.liger"]
    assert not without.estimated.liger
    assert plan_of().optimizations.liger is None, "nothing of it where there is no card"


@pytest.mark.parametrize(
    ("name", "model", "precision", "reason"),
    [
        ("T4", "smollm2-135m", "auto", "a GPU of 2020 or later"),
        ("4090", "smollm2-135m", "fp32", "needs 16 bits"),
        ("4090", "gemma-2-2b", "auto", "caps no scores"),
        ("4090", "gemma-3-1b", "auto", None),
        ("3060", "llama-3.1-8b", "auto", None),
    ],
)
def test_rows_are_padded_where_the_kernel_for_packed_ones_cannot(
    name: str, model: str, precision: str, reason: str | None
) -> None:
    asked = recipe("qlora", training={"precision": precision})
    plan = make_plan(asked, find_architecture(model), PROFILE, card(name))
    assert bool(plan.training.packing) == (reason is None)
    assert reason is None or reason in plan.reasons["training.packing"]


@pytest.mark.parametrize(
    ("width", "name", "takes"),
    [
        (128, "4090", True),
        (256, "4090", True),
        (208, "4090", False),
        (208, "A100", True),
        (100, "A100", False),
        (264, "H100", False),
    ],
)
def test_widths_of_heads_that_the_kernel_takes(width: int, name: str, takes: bool) -> None:
    call = Attention(8, 8, width, width)
    wide = replace(SMALL, kinds=tuple(replace(k, attention=(call,)) for k in SMALL.kinds))
    why = why_no_varlen(recipe(), wide, card(name))
    assert why is None if takes else f"heads of {width}" in str(why)


def test_the_estimate_of_a_card_knows_its_optimisations() -> None:
    """Keys of a shared prefix are repeated for each row; Liger's gate keeps less."""
    found = on_card().estimated
    again = replace(found, repeated_keys=100)
    width = sum(2 * call.kv_heads * call.key_width for call in SMALL.kinds[0].attention)
    more = layers_bytes(SMALL, again) - layers_bytes(SMALL, found)
    assert more == pytest.approx(SMALL.layers * 100 * width * 2, abs=2)
    assert layers_bytes(SMALL, found) < layers_bytes(SMALL, replace(found, liger=False))
    unpacked = replace(found, packed_rows=False)
    assert layers_bytes(SMALL, found) == layers_bytes(SMALL, unpacked), "the same kernel"


@pytest.mark.parametrize("asked", [True, 512])
def test_packing_that_is_insisted_on_is_refused_where_it_cannot_be(asked: object) -> None:
    with pytest.raises(UsageError, match="virtual tokens"):
        plan_of("prefix-tuning", training={"packing": asked})
    assert plan_of(training={"packing": asked}).training.packing >= 512


def test_tokens_of_a_micro_batch() -> None:
    """Enough for the longest row, as many as keep the cores busy, more for a long prefix."""
    assert plan_of().training.packing == 2048
    assert plan_of("full").training.packing == 1024
    long = replace(PROFILE, longest_tokens=3000)
    assert make_plan(recipe(), SMALL, long, cpu()).training.packing == 3000
    shared = replace(PROFILE, longest_tokens=1300, shared_tokens=1000)
    assert make_plan(recipe(), SMALL, shared, cpu()).training.packing == 4000
    few = replace(PROFILE, longest_tokens=40)
    small = recipe(training={"batch_size": 4})
    assert make_plan(small, SMALL, few, cpu()).training.packing == 4 * 40, "all of a step"
    assert plan_of(training={"packing": 700}).training.packing == 700
    assert plan_of(training={"packing": 100}).training.packing == PROFILE.longest_tokens
    by_rows = plan_of(training={"micro_batch_size": 4})
    assert (by_rows.training.micro_batch_size, by_rows.training.packing) == (
        4,
        4 * PROFILE.longest_tokens,
    )
    both = plan_of(training={"micro_batch_size": 4, "packing": 600})
    assert (both.training.micro_batch_size, both.training.packing) == (4, 600)
    assert both.reasons["training.packing"] == "set in the recipe"
    few, many = (plan_of(training={"packing": tokens}) for tokens in (10, 10**6))
    reason = "10 set in the recipe; the longest row has more"
    assert decided(few, "training.packing") == (PROFILE.longest_tokens, reason)
    assert many.training.packing < 10**6
    reason = "1000000 set in the recipe; a step, or memory, has no more"
    assert many.reasons["training.packing"] == reason


def test_what_all_rows_begin_with_is_planned_and_estimated_once() -> None:
    unlike = replace(PROFILE, longest_tokens=1300, shared_tokens=1000)
    alike = replace(unlike, common_tokens=1000)
    four = recipe(training={"batch_size": 4})
    before, plan = (make_plan(four, SMALL, profile, cpu()) for profile in (unlike, alike))
    assert before.training.packing == 4000
    assert plan.training.packing == 1000 + 4 * 300 == plan.estimated.tokens
    assert plan.estimate.peak_bytes < 0.8 * before.estimate.peak_bytes
    assert plan.reasons["optimizations.shared_prefix"].endswith(
        "all rows have 1,000 tokens in common"
    )
    assert plan.estimated.label_tokens == 4 * 1300 * PROFILE.label_share

    plan = make_plan(recipe(), SMALL, alike, cpu())
    assert (plan.training.packing, plan.estimated.gradient_accumulation) == (4000, 2)
    by_rows = make_plan(recipe(training={"micro_batch_size": 2}), SMALL, alike, cpu())
    assert by_rows.training.packing == 1000 + 2 * 300

    on_gpu = make_plan(recipe(), SMALL, alike, card())
    assert on_gpu.training.packing == 1000 + 16 * 300, "though 16 of them apart would be too many"
    assert on_gpu.estimated.repeated_keys == 16 * 1000
    packed = make_plan(recipe(), SMALL, unlike, card()).training.packing
    assert packed == CARD_TOKENS < 16 * 1300

    for unshared in ({"method": {"dropout": 0.1}}, {"training": {"optimizations": "off"}}):
        found = [make_plan(recipe(**unshared), SMALL, of, cpu()) for of in (unlike, alike)]
        assert found[0].estimate == found[1].estimate
        assert found[0].training == found[1].training


def test_rows_alike_have_room_where_others_have_none() -> None:
    unlike = replace(PROFILE, longest_tokens=1300, shared_tokens=1000)
    alike = replace(unlike, common_tokens=1000)
    four = recipe(training={"batch_size": 4, "gradient_checkpointing": False})
    enough = make_plan(four, SMALL, alike, cpu()).estimate.peak_bytes
    tight = cpu(1.25 * enough / GB)
    assert make_plan(four, SMALL, alike, tight).training.packing == 2200
    assert make_plan(four, SMALL, unlike, tight).training.packing < 2200


def test_little_memory_takes_fewer_tokens_and_keeps_no_dequantised_weights() -> None:
    roomy = plan_of("qlora")
    assert roomy.optimizations.dequantised
    kept = roomy.estimate.breakdown["weights"]
    tight = make_plan(recipe("qlora"), SMALL, PROFILE, cpu(0.7))
    assert tight.optimizations.dequantised is False
    assert "no room" in tight.reasons["optimizations.dequantised"]
    assert tight.optimizations.fused_lora
    assert tight.training.gradient_checkpointing and not roomy.training.gradient_checkpointing
    linear = SMALL.linear_parameters
    assert kept - tight.estimate.breakdown["weights"] == 4 * linear


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"dora": True}, "DoRA divides by the norm"),
        ({"dropout": 0.1}, "dropout between"),
    ],
)
def test_lora_that_is_not_plain_stays_as_peft_has_it(method: Any, reason: str) -> None:
    plan = plan_of(method=method)
    assert plan.optimizations.fused_lora is False
    assert plan.reasons["optimizations.fused_lora"].startswith(reason)
    assert plan.training.packing
    assert plan.optimizations.shared_prefix == ("dropout" not in method)


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"precision": "pure-bf16"}},
        {"training": {"precision": "fp32"}, "model": {"dtype": "bf16"}},
    ],
)
def test_lora_over_16_bit_weights_without_autocast_stays_as_peft_has_it(sections: Any) -> None:
    plan = plan_of(**sections)
    assert plan.optimizations.fused_lora is False
    assert plan.reasons["optimizations.fused_lora"].startswith("without autocast PEFT casts")
    assert plan.training.packing and not plan.estimated.fused_lora


def test_what_short_rows_keep_is_estimated_by_the_longest_of_them() -> None:
    short, long = replace(PROFILE, longest_tokens=40), replace(PROFILE, longest_tokens=200)
    plans = [make_plan(recipe(training={"packing": 400}), SMALL, of, cpu()) for of in (short, long)]
    assert [plan.estimated.longest_row for plan in plans] == [40, 200]
    assert [plan.training.packing for plan in plans] == [400, 400]
    kept = [plan.estimate.timeline["end of forward"]["activations"] for plan in plans]
    each = plans[0].estimated.compute_bytes
    assert kept[1] - kept[0] == 400 * (208 - 48) * HEADS * each * SMALL.layers


def test_the_estimate_is_of_the_optimisations_that_are_taken() -> None:
    mixed = cpu(fast_bf16=True)
    plan = make_plan(recipe(), SMALL, PROFILE, mixed)
    plain = make_plan(recipe(training={"optimizations": "off"}), SMALL, PROFILE, mixed)
    optimisations = ("packed_rows", "optimized")
    for optimisation in optimisations:
        assert getattr(plan.estimated, optimisation) and not getattr(plain.estimated, optimisation)
        without = estimate(SMALL, replace(plan.estimated, **{optimisation: False}))
        more, less = plan.estimate.peak_bytes, without.peak_bytes
        assert more > less if optimisation == "packed_rows" else more < less, "shares are kept"
    assert plan.headline().startswith(
        "CPU (a CPU) · bf16 · 16 rows per step, packed to 2,048 tokens · "
    )
