"""Which modules a method reaches, by the model's own names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from ftcli.models.methods import attach
from ftcli.models.methods import adapter_targets, linear_names, names_of_ends
from tests.tiny_models import falcon, gpt_neox, llama, lora, phi3


def test_a_target_may_name_one_layer() -> None:
    adapted = attach(llama(), lora(["layers.1.self_attn.q_proj"]), seed=0)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 and all("layers.1.self_attn.q_proj" in name for name in trained)


@pytest.mark.parametrize(
    ("build", "linear", "ends"),
    [
        (
            phi3,
            ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"],
            ["embed_tokens", "lm_head"],
        ),
        (
            gpt_neox,
            ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
            ["embed_in", "lm_head"],
        ),
        (
            falcon,
            ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
            ["word_embeddings", "lm_head"],
        ),
    ],
)
def test_modules_are_called_by_the_model_s_own_names(
    build: Callable[[], PreTrainedModel], linear: list[str], ends: list[str]
) -> None:
    model = build()
    assert linear_names(model) == linear
    assert names_of_ends(model, ["lm_head", "embed_tokens"]) == ends
    assert names_of_ends(model, ["embed_tokens"]) == ends[:1]
    assert names_of_ends(model, []) == []
    assert set(adapter_targets(model, "both")) < set(linear)
