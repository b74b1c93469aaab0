"""Tiny models of many types through the training, saving, merging and generation of ftcli."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from scripts.models import METHODS, PAGE, count_types, model_types, page, read_results
from scripts.prove_type import Proof, prove, quiet

# One of each kind of layer: attention with a window, a hybrid with linear attention, state spaces,
# experts, latent attention, sinks, towers, convolutions.
TYPES = (
    "llama",
    "gemma3_text",
    "qwen3_5",
    "mamba2",
    "granitemoehybrid",
    "mixtral",
    "deepseek_v3",
    "gpt_oss",
    "gemma3",
    "lfm2",
)


class OddConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "odd"


class OddMlp(nn.Module):
    """One linear layer, of a name that no library lists."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wiggle = nn.Linear(width, width)

    def forward(self, hidden):  # type: ignore[no-untyped-def]
        return self.wiggle(hidden).relu()


class OddForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    config_class = OddConfig

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = OddMlp(config.hidden_size)
        self.post_init()


def require_passed(proof: Proof) -> None:
    assert {name: text for name, text in proof.steps.items() if text != "yes"} == {}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet()


@pytest.mark.parametrize("model_type", TYPES)
def test_lora_trains_reloads_and_generates(model_type: str, tmp_path: Path) -> None:
    proof = prove(model_type, tmp_path, ("lora",), briefly=True)
    require_passed(proof)
    assert {"lora trains", "lora gradients", "lora generates"} <= proof.steps.keys()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_every_step_of_lora_qlora_and_full(model_type: str, tmp_path: Path) -> None:
    proof = prove(model_type, tmp_path, ("lora", "qlora", "full"))
    require_passed(proof)
    assert {"lora merges", "qlora merges", "full resumes"} <= proof.steps.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "method", "cause"),
    [
        ("diffusion_gemma", "lora", "depends on later tokens"),
        ("diffusion_gemma", "qlora", "weights of its layers are in 4 bits"),
        ("zamba", "lora", "share one weight"),
        ("deepseek_v4", "prompt-tuning", "does not run on embeddings"),
        ("git", "prefix-tuning", "computes attention in its own way"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_cause(
    model_type: str, method: str, cause: str, tmp_path: Path
) -> None:
    found = prove(model_type, tmp_path, (method,), briefly=True).steps[f"{method} trains"]
    assert found.startswith("refused: ") and cause in found


def test_a_type_that_ftcli_has_never_seen(tmp_path: Path) -> None:
    AutoConfig.register("odd", OddConfig)
    AutoModelForCausalLM.register(OddConfig, OddForCausalLM)
    config = OddConfig(
        vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    proof = prove("odd", tmp_path, ("lora",), config=config, briefly=True)
    require_passed(proof)
    adapter = next((tmp_path / "runs").glob("*/adapter/adapter_model.safetensors"))
    assert b"layers.1.mlp.wiggle.lora_B" in adapter.read_bytes()


def test_the_page_has_a_row_for_each_type_and_says_what_was_found() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()]
    assert [kind for kind in model_types() if kind not in rows] == []
    assert page(read_results()) == text


@pytest.mark.parametrize("method", METHODS)
def test_types_train_or_are_refused_with_the_cause(method: str) -> None:
    passed, refused, neither = count_types(read_results()["types"], method)
    assert passed + refused >= 0.95 * (passed + refused + neither)
