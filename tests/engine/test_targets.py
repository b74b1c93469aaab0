"""Names of layers: what they reach, and what is said where they reach none."""

from __future__ import annotations

import pytest

from ftcli.engine.methods import attach
from ftcli.errors import ModelError
from tests.engine.models import gpt2, llama, lora, phi3


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_porj"], "no linear layer is called v_porj; did you mean v_proj?"),
        (["mlp", "up_projj"], "is called mlp, up_projj; did you mean up_proj?"),
        (["q_proj", "input_layernorm"], "is called input_layernorm"),
        (["q_proj", "proj"], "is called proj"),
    ],
)
def test_a_target_that_matches_nothing_is_named(targets: list[str], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        attach(llama(), lora(targets), seed=0)
    assert message in caught.value.message
    there = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert caught.value.message.endswith(f"(there is {there})")


def test_the_head_takes_no_adapter() -> None:
    for targets in (["lm_head"], ["q_proj", "lm_head"]):
        with pytest.raises(ModelError, match="lm_head cannot take an adapter"):
            attach(llama(), lora(targets), seed=0)


def test_a_target_may_name_one_layer() -> None:
    adapted = attach(llama(), lora(["layers.1.self_attn.q_proj"]), seed=0)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 and all("layers.1.self_attn.q_proj" in name for name in trained)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rank_pattern": {"down_porj": 8}}, "called down_porj; did you mean down_proj?"),
        ({"rank_pattern": {"lm_head": 8}, "targets": ["q_proj"]}, "method.rank_pattern: no linear"),
        ({"rank_pattern": {"down_proj": 8}, "targets": ["q_proj"]}, "is called down_proj"),
        ({"layers": [0, 2]}, "method.layers: the model has no layer 2: they are 0 to 1"),
    ],
)
def test_a_layer_or_rank_for_nothing_is_named(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        attach(llama(), lora(**keys), seed=0)  # type: ignore[arg-type]
    assert message in caught.value.message


def test_fused_matrices_and_conv1d_are_called_by_their_own_names() -> None:
    with pytest.raises(ModelError, match="is called q_proj; did you mean qkv_proj"):
        attach(phi3(), lora(["q_proj"]), seed=0)
    with pytest.raises(ModelError, match="there is c_attn, c_fc, c_proj"):
        attach(gpt2(), lora(["q_proj"]), seed=0)
    assert attach(gpt2(), lora(["c_attn"]), seed=0).num_parameters() > gpt2().num_parameters()
