"""Weights, trained parameters, optimizer states and copies of weights: formula against count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bitsandbytes
import pytest
import torch
from counting import autocast, build, causal, peak_bytes, rows, tiny_config, trained

from ftcli.engine.loss import summed_loss
from ftcli.shapes import shape_from_config
from ftcli.vram import Choices
from ftcli.vram.static import static_bytes
from ftcli.vram.step import CUBLAS_BYTES, step_phases
from ftcli.vram.trained import gradient_bytes, optimizer_bytes, trainable_parameters

LORA = Choices("lora", rank=3, device="cpu")
METHODS = {
    "full": Choices("full"),
    "lora": LORA,
    "lora, q and v": replace(LORA, targets=("q_proj", "v_proj")),
    "lora, embeddings": replace(LORA, modules_to_save=("embed_tokens",)),
    "lora, head": replace(LORA, modules_to_save=("lm_head",)),
    "lora, both": replace(LORA, modules_to_save=("embed_tokens", "lm_head")),
    "dora": replace(LORA, dora=True),
    "qlora": replace(LORA, mode="qlora"),
    "qlora, dora": replace(LORA, mode="qlora", dora=True),
    "adapter": Choices("adapter", bottleneck=24),
    "adapter after the attention": Choices("adapter", bottleneck=24, placement="attention"),
    "prefix": Choices("prefix", virtual_tokens=7),
    "prefix, projection": Choices("prefix", virtual_tokens=7, projection=True),
    "prompt": Choices("prompt", virtual_tokens=7),
}
CONFIGS = {
    "llama": tiny_config("llama"),
    "llama, tied": tiny_config("llama", tie_word_embeddings=True),
    "qwen2": tiny_config("qwen2"),
    "qwen3, heads wider than hidden": tiny_config("qwen3", head_dim=48),
    "gemma3_text": tiny_config("gemma3_text", head_dim=16, tie_word_embeddings=True),
    "olmo2, one key per query": tiny_config("olmo2", num_key_value_heads=4),
    "mixtral": tiny_config("mixtral"),
    "qwen3_moe": tiny_config("qwen3_moe"),
}


SLOW = ("qwen2", "gemma3_text", "olmo2, one key per query", "qwen3_moe")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CONFIGS],
)
def test_trained_parameters_are_those_of_the_model(name: str) -> None:
    config = CONFIGS[name]
    shape = shape_from_config(config)
    for method, choices in METHODS.items():
        if choices.dora and shape.experts > 1:
            continue  # peft refuses it for stacked experts
        weights = trained(build(config, choices))
        counted = sum(parameter.numel() for parameter in weights)
        assert counted == trainable_parameters(shape, choices), method
        nbytes = sum(parameter.nbytes for parameter in weights)
        assert nbytes == gradient_bytes(shape, choices), method


@pytest.mark.parametrize("kind", ["fused", "foreach", "8-bit"])
def test_optimizer_states_are_those_of_a_step(kind: str) -> None:
    for method in ("full", "lora", "lora, both", "prompt"):
        config = tiny_config("qwen3", vocab_size=300, tie_word_embeddings=False)
        choices = METHODS[method]
        if kind == "8-bit":
            choices = replace(choices, optimizer="adamw-8bit")
        counted = _state_bytes(build(config, choices), kind)
        expected, managed = optimizer_bytes(shape_from_config(config), choices)
        assert managed == 0
        assert expected == pytest.approx(counted, rel=0.001), method


def _state_bytes(model: Any, kind: str) -> int:
    """Bytes of the states after one step; its counters and bitsandbytes' shared tables aside."""
    weights = trained(model)
    optimizer: Any
    if kind == "8-bit":
        optimizer = bitsandbytes.optim.AdamW8bit(weights)
        # transformers' trainer does so too (trainer_optimizer.py, _create_bitsandbytes_optimizer).
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    else:
        optimizer = torch.optim.AdamW(weights, **{kind: True})
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    states = [state for weight in weights for state in optimizer.state[weight].items()]
    return sum(
        value.nbytes
        for name, value in states
        if isinstance(value, torch.Tensor) and name not in ("step", "qmap1", "qmap2")
    )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_nf4_weights_and_their_constants_take_what_the_formula_says(
    tied: bool, double: bool
) -> None:
    config = tiny_config("qwen2", hidden_size=256, intermediate_size=768, tie_word_embeddings=tied)
    choices = Choices("qlora", double_quantization=double)
    found = static_bytes(shape_from_config(config), choices)
    model = causal(build(config, choices))
    frozen = {p.data_ptr(): p for p in model.parameters() if not p.requires_grad}.values()
    assert found.weights == sum(parameter.nbytes for parameter in frozen)
    constants = sum(_constants_bytes(p.quant_state) for p in frozen if hasattr(p, "quant_state"))
    assert found.quantization == pytest.approx(constants, rel=0.005)


def _constants_bytes(state: Any) -> int:
    """Of one matrix: one scale for 64 weights, and what double quantisation makes of the scales;
    the tables of codes, a kilobyte a matrix, aside."""
    if not state.nested:
        return int(state.absmax.nbytes)
    return int(state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes)


@pytest.mark.parametrize("rebuilt", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("family", "choices"),
    [
        pytest.param("llama", replace(LORA, dora=True), marks=pytest.mark.slow),
        ("llama", replace(LORA, dora=True, precision="pure-bf16")),
        pytest.param("llama", replace(LORA, dora=True, mode="qlora"), marks=pytest.mark.slow),
        ("llama", replace(LORA, weights_dtype="fp32")),
        ("mixtral", replace(LORA, precision="pure-bf16")),
        pytest.param("mixtral", Choices("full", device="cpu"), marks=pytest.mark.slow),
        ("llama", Choices("full", "pure-bf16", device="cpu")),
    ],
)
def test_a_step_of_few_tokens_peaks_where_the_formula_says(
    family: str, choices: Choices, rebuilt: bool
) -> None:
    """With few tokens the peak is made of weights: their gradients, casts, sums and norms."""
    config = tiny_config(family, hidden_size=256, intermediate_size=704)
    choices = replace(choices, seq_len=6, gradient_checkpointing=rebuilt)
    model = build(config, choices)
    ids = rows(choices)

    def step() -> None:
        with autocast(choices):
            loss = summed_loss(model, ids, ids)
        loss.backward()  # type: ignore[no-untyped-call]

    counted = peak_bytes(step)
    phases = step_phases(shape_from_config(config), choices)
    during = [phases[name].total_bytes for name in phases if name != "optimizer step"]
    assert max(during) - CUBLAS_BYTES == pytest.approx(counted, rel=0.06)
