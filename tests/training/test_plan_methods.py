"""What a method's own keys decide: its words in the estimate, its base, its checkpointing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ftcli.config.recipe import Recipe
from ftcli.errors import MachineError, ModelError, UsageError
from ftcli.memory.hardware import Hardware
from ftcli.models.architectures.find import find_architecture
from ftcli.training.plan.decide import make_plan, require_machine, require_possible
from ftcli.training.plan.plan import choices_of_method
from tests.training.planning import (
    LARGE,
    MODES,
    PROFILE,
    SMALL,
    card,
    card_with,
    cpu,
    decided,
    recipe,
)


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layers": [0, 30, 31]}, "smollm2-135m has no layer 30, 31: they are 0 to 29"),
        (
            {"rank_pattern": {"q_prj": 8}},
            "no module gets its rank from 'q_prj'; did you mean q_proj?; a key is the end of a "
            "name among q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, and the "
            "first key that matches counts",
        ),
        (
            {"rank_pattern": {"proj": 8, ".*_proj": 4, "q_proj": 2}},
            "no module gets its rank from 'proj'; did you mean v_proj?, 'q_proj'; a key is",
        ),
        (
            {"rank_pattern": {"down_proj": 8}, "target_modules": ["q_proj"]},
            "no module gets its rank from 'down_proj'",
        ),
        (
            {"target_modules": ["q_proj", "v_porj"]},
            "smollm2-135m has no linear layer 'v_porj'; did you mean v_proj?; it has q_proj, ",
        ),
        ({"target_modules": ["mlp"]}, "smollm2-135m has no linear layer 'mlp'; it has q_proj, "),
        ({"target_modules": ["mlp.q_proj"]}, "no linear layer is called mlp.q_proj"),
        (
            {"target_modules": ["q_proj", "lm_head"]},
            "lm_head cannot take an adapter: the loss is computed from its weight directly; "
            "modules_to_save trains it fully",
        ),
        (
            {"target_modules": ["o_proj", "layers.2.mlp.up_proj"], "layers": [0, 1]},
            "no linear layer in layers 0, 1 is called layers.2.mlp.up_proj",
        ),
    ],
)
def test_layers_and_ranks_that_reach_nothing_are_refused(
    keys: dict[str, Any], message: str
) -> None:
    for prove in (
        lambda wanted: require_possible(wanted, SMALL),
        lambda wanted: make_plan(wanted, SMALL, PROFILE, card()),
    ):
        with pytest.raises(ModelError) as caught:
            prove(recipe(method=keys))
        assert str(caught.value).startswith(message)


def test_fused_matrices_are_called_by_their_own_names() -> None:
    with pytest.raises(ModelError, match="no linear layer 'q_proj'; did you mean qkv_proj"):
        require_possible(
            recipe(method={"target_modules": ["q_proj"]}), find_architecture("phi-3-mini")
        )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("llama-4-scout-17b-16e", "llama-4-scout-17b-16e computes its experts"),
        ("smollm2-135m", "smollm2-135m is no mixture of experts"),
    ],
)
def test_experts_that_take_no_adapter_are_refused_before_loading(model: str, message: str) -> None:
    wanted = recipe(method={"experts": True})
    with pytest.raises(ModelError) as caught:
        require_possible(wanted, find_architecture(model))
    assert str(caught.value).startswith(message)
    require_possible(wanted, find_architecture("qwen3-30b-a3b"))


def test_tied_ends_with_a_bias_are_not_trained_whole() -> None:
    """PEFT's copy of a tied head has no bias."""
    ends = recipe(method={"modules_to_save": ["embed_tokens"]})
    phi = find_architecture("phi-2")
    require_possible(ends, phi)
    with pytest.raises(ModelError, match="which PEFT drops where it ties them") as caught:
        require_possible(ends, replace(phi, tied=True))
    assert caught.value.code == "modules_to_save"
    require_possible(recipe(), replace(phi, tied=True))


@pytest.mark.parametrize(
    ("wanted", "hardware", "words"),
    [
        (
            recipe("full", model={"dtype": "bf16"}),
            card(),
            "model.dtype: in full training the type of the weights depends on training.precision",
        ),
        (
            recipe(training={"precision": "fp16"}),
            cpu(),
            "training.precision: fp16 needs a CUDA GPU; here: bf16, fp32",
        ),
        (
            recipe(model={"attention": "flash"}),
            cpu(),
            "model.attention: flash needs a CUDA GPU; take sdpa",
        ),
        (
            recipe(training={"optimizer": "adamw-8bit"}),
            cpu(),
            "training.optimizer: adamw-8bit needs a CUDA GPU; take adamw",
        ),
    ],
)
def test_what_no_rows_can_change_is_refused_without_them(
    wanted: Recipe, hardware: Hardware, words: str
) -> None:
    for prove in (
        lambda: require_machine(wanted, SMALL, hardware),
        lambda: make_plan(wanted, SMALL, PROFILE, hardware),
    ):
        with pytest.raises((MachineError, UsageError)) as caught:
            prove()
        assert str(caught.value).startswith(words)
    require_machine(recipe(), SMALL, hardware)


def test_a_rank_s_key_must_be_a_pattern() -> None:
    with pytest.raises(ValueError, match=r"\[: not a regular expression: unterminated"):
        recipe(method={"rank_pattern": {"[": 8}})


def test_the_method_is_what_the_estimator_takes() -> None:
    lora = {"rank": 8, "target_modules": ["q_proj", "o_proj"], "layers": [2, 0, 2]}
    lora |= {"rank_pattern": {"q_proj": 4, "_proj": 2}, "modules_to_save": ["lm_head"]}
    found = choices_of_method(recipe("lora", method=lora).method)
    assert found["target_modules"] == ("q_proj", "o_proj") and found["layers"] == (0, 2)
    assert found["rank_pattern"] == (("q_proj", 4), ("_proj", 2))
    assert found["modules_to_save"] == ("lm_head",)
    assert choices_of_method(recipe("full").method) == {"mode": "full"}
    for mode in MODES[3:]:
        quantised = recipe(mode, method={"quantization": "nf4"}).method
        assert choices_of_method(quantised)["four_bit_base"] is True


@pytest.mark.parametrize("mode", MODES[3:])
def test_a_base_in_4_bits_is_estimated_as_qlora_s(mode: str) -> None:
    quantised = recipe(mode, method={"quantization": "nf4"})
    qlora, found = (
        make_plan(each, LARGE, PROFILE, card()).estimate for each in (recipe("qlora"), quantised)
    )
    for item in ("weights", "quantization"):
        assert found.breakdown[item] == qlora.breakdown[item]
    fp32 = recipe(mode, method={"quantization": "nf4"}, training={"precision": "fp32"})
    by_qlora = recipe("qlora", training={"precision": "fp32"})
    plans = [make_plan(each, SMALL, PROFILE, card()) for each in (fp32, by_qlora)]
    assert decided(plans[0], "training.precision") == decided(plans[1], "training.precision")
    assert plans[0].estimate.breakdown["weights"] == plans[1].estimate.breakdown["weights"]


@pytest.mark.parametrize("hardware", [cpu(), card()], ids=["cpu", "4090"])
@pytest.mark.parametrize("asked", ["auto", False])
def test_a_prefix_is_trained_without_checkpointing(asked: object, hardware: Hardware) -> None:
    wanted = recipe("prefix-tuning", training={"gradient_checkpointing": asked})
    plan = make_plan(wanted, SMALL, PROFILE, hardware)
    assert decided(plan, "training.gradient_checkpointing") == (
        False,
        "keys and values of a prefix are in the cache, which a recomputed layer would fill twice",
    )
    assert not plan.estimated.gradient_checkpointing
    # Not even where memory asks for it.
    long = replace(PROFILE, longest_tokens=8192)
    with pytest.raises(MachineError) as caught:
        make_plan(wanted, LARGE, long, card_with(16))
    assert "take method.quantization: nf4" in str(caught.value)
    assert "gradient_checkpointing" not in str(caught.value)
    asked_prompt = recipe("prompt-tuning", training={"gradient_checkpointing": "auto"})
    assert make_plan(asked_prompt, LARGE, long, card_with(22)).training.gradient_checkpointing


def test_checkpointing_asked_for_a_prefix_is_refused() -> None:
    wanted = recipe("prefix-tuning", training={"gradient_checkpointing": True})
    with pytest.raises(UsageError) as caught:
        require_possible(wanted, SMALL)
    assert (caught.value.code, caught.value.exit_code) == ("gradient_checkpointing", 2)
    assert str(caught.value) == (
        "training.gradient_checkpointing: keys and values of a prefix are in the cache, which a "
        "recomputed layer would fill twice; leave it to auto"
    )


@pytest.mark.parametrize("mode", MODES[3:])
def test_where_4_bits_do_not_fit_either_qlora_is_named(mode: str) -> None:
    with pytest.raises(MachineError, match=r"; take method\.mode: qlora, lower data"):
        make_plan(recipe(mode, method={"quantization": "nf4"}), LARGE, PROFILE, card_with(2))
