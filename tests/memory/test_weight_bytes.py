"""Weights, trainable parameters, optimizer states and copies of weights: formula against count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bitsandbytes
import pytest
import torch
from counting import autocast, build, peak_bytes, rows, tiny_config, trained

from ftcli.memory import Choices
from ftcli.memory.static import static_bytes
from ftcli.memory.step import CUBLAS_BYTES, step_phases
from ftcli.memory.trained import gradient_bytes, optimizer_bytes, trainable_parameters
from ftcli.models.architectures.find import architecture_of
from ftcli.models.batches import of_tensors
from ftcli.models.loss import summed_loss
from ftcli.models.virtual_tokens import causal_model
from tests.tiers import tiers

LORA = Choices("lora", rank=3, device="cpu")
METHODS = {
    "full": Choices("full"),
    "lora": LORA,
    "lora, q and v": replace(LORA, target_modules=("q_proj", "v_proj")),
    "lora, embeddings": replace(LORA, modules_to_save=("embed_tokens",)),
    "lora, head": replace(LORA, modules_to_save=("lm_head",)),
    "lora, both": replace(LORA, modules_to_save=("embed_tokens", "lm_head")),
    "lora, some layers": replace(LORA, layers=(1, 2)),
    "lora, ranks of their own": replace(
        LORA,
        rank_pattern=(("layers.0.self_attn.q_proj", 5), ("self_attn.[qk]_proj", 2), ("o_proj", 9)),
    ),
    "lora, modules of one layer": replace(
        LORA, target_modules=("layers.1.self_attn.q_proj", "self_attn.o_proj")
    ),
    "lora, all extras": replace(
        LORA,
        layers=(3, 0),
        rank_pattern=(("v_proj", 6),),
        dora=True,
        modules_to_save=("lm_head",),
    ),
    "dora": replace(LORA, dora=True),
    "qlora": replace(LORA, mode="qlora"),
    "qlora, dora": replace(LORA, mode="qlora", dora=True),
    "qlora, both": replace(LORA, mode="qlora", modules_to_save=("embed_tokens", "lm_head")),
    "bottleneck": Choices("bottleneck", bottleneck=24),
    "adapter after the attention": Choices("bottleneck", bottleneck=24, placement="attention"),
    "prefix-tuning": Choices("prefix-tuning", virtual_tokens=7),
    "prefix, projection": Choices("prefix-tuning", virtual_tokens=7, projection=True),
    "prompt-tuning": Choices("prompt-tuning", virtual_tokens=7),
    "adapter, 4-bit base": Choices("bottleneck", bottleneck=24, four_bit_base=True),
    "prefix, 4-bit base": Choices("prefix-tuning", virtual_tokens=7, four_bit_base=True),
    "prompt, 4-bit base": Choices("prompt-tuning", virtual_tokens=7, four_bit_base=True),
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


QUICK = ("llama, tied", "mixtral")


@pytest.mark.parametrize(
    "name",
    tiers(CONFIGS, *QUICK),
)
def test_trained_parameters_are_those_of_the_model(name: str) -> None:
    config = CONFIGS[name]
    architecture = architecture_of(config)
    for method, choices in METHODS.items():
        if architecture.has_experts and choices.mode == "bottleneck":
            continue  # no linear module ends its MLP
        if choices.quantization is not None and not name.startswith("llama"):
            continue  # modules trained next to 4-bit layers are those of other layers
        weights = trained(build(config, choices))
        counted = sum(parameter.numel() for parameter in weights)
        assert counted == trainable_parameters(architecture, choices), method
        nbytes = sum(parameter.nbytes for parameter in weights)
        assert nbytes == gradient_bytes(architecture, choices), method


def test_the_bias_of_a_head_is_trained_with_it() -> None:
    config = tiny_config("phi")
    choices = replace(LORA, modules_to_save=("lm_head",))
    counted = sum(parameter.numel() for parameter in trained(build(config, choices)))
    architecture = architecture_of(config)
    assert counted == trainable_parameters(architecture, choices)
    assert counted == trainable_parameters(architecture, LORA) + 64 * 128 + 64


@pytest.mark.parametrize("tied", tiers([False, True], True))
@pytest.mark.parametrize("kind", ["fused", "foreach", "8-bit"])
def test_optimizer_states_are_those_of_a_step(kind: str, tied: bool) -> None:
    long = {"prompt-tuning": Choices("prompt-tuning", virtual_tokens=50)}
    long["prefix-tuning"] = Choices("prefix-tuning", virtual_tokens=50, projection=True)
    for method in (
        "full",
        "lora",
        "lora, head",
        "lora, both",
        "bottleneck",
        "prompt-tuning",
        "prefix-tuning",
    ):
        config = tiny_config("qwen3", vocab_size=300, tie_word_embeddings=tied)
        choices = (METHODS | long)[method]
        if kind == "8-bit":
            choices = replace(choices, optimizer="adamw-8bit")
        counted = _state_bytes(build(config, choices), kind)
        expected, managed = optimizer_bytes(architecture_of(config), choices)
        assert managed == 0
        assert expected == pytest.approx(counted, rel=0.001), method


def _state_bytes(model: Any, kind: str) -> int:
    """Bytes of the states after one step, without counters and bitsandbytes' shared tables."""
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
    found = static_bytes(architecture_of(config), choices)
    model = causal_model(build(config, choices))
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


FEW_TOKENS = {
    "dora": replace(LORA, dora=True),
    "dora, pure bf16": replace(LORA, dora=True, precision="pure-bf16"),
    "dora, 4 bits": replace(LORA, dora=True, mode="qlora"),
    "fp32 base": replace(LORA, weights_dtype="fp32"),
    "fp32 base, last layers": replace(LORA, weights_dtype="fp32", layers=(2, 3)),
    "4 bits": replace(LORA, mode="qlora"),
    "4 bits of fp32": replace(LORA, mode="qlora", precision="fp32"),
    "4 bits of fp32, 16-bit products": replace(LORA, mode="qlora", weights_dtype="fp32"),
    "bottleneck": Choices("bottleneck", bottleneck=64, device="cpu"),
    "adapter, 4 bits": Choices("bottleneck", bottleneck=64, four_bit_base=True, device="cpu"),
    "prefix-tuning": Choices("prefix-tuning", virtual_tokens=50, device="cpu"),
    "prefix, projection, 4 bits": Choices(
        "prefix-tuning", virtual_tokens=50, projection=True, four_bit_base=True, device="cpu"
    ),
    "prompt, 4 bits": Choices("prompt-tuning", virtual_tokens=50, four_bit_base=True, device="cpu"),
}


@pytest.mark.parametrize("name", tiers(FEW_TOKENS, "adapter, 4 bits"))
def test_a_step_of_few_tokens_peaks_where_the_formula_says(name: str) -> None:
    for rebuilt in (True, False):
        choices = replace(FEW_TOKENS[name], gradient_checkpointing=rebuilt)
        if choices.checkpointing == rebuilt:
            off = _peak_deviation(tiny_config("llama", num_hidden_layers=8), choices)
            assert abs(off) < 0.06, (rebuilt, off)


@pytest.mark.parametrize("tied", tiers([True, False], True))
@pytest.mark.parametrize(
    "choices",
    [
        replace(LORA, modules_to_save=("lm_head",)),
        pytest.param(replace(LORA, modules_to_save=("embed_tokens",)), marks=pytest.mark.slow),
        pytest.param(
            replace(LORA, modules_to_save=("lm_head",), precision="pure-bf16"),
            marks=pytest.mark.slow,
        ),
        Choices("full", "pure-bf16", device="cpu"),
    ],
)
def test_trained_words_take_their_gradients(choices: Choices, tied: bool) -> None:
    """With a large vocabulary: the gradients of embedding and head, which may be tied."""
    config = tiny_config("llama", tie_word_embeddings=tied, vocab_size=2048)
    for rebuilt, passes in ((True, 1), (False, 1), (True, 2)):
        ways = replace(choices, gradient_checkpointing=rebuilt, gradient_accumulation=passes)
        off = _peak_deviation(config, ways)
        assert abs(off) < 0.03, (rebuilt, passes, off)


@pytest.mark.parametrize("rebuilt", tiers([True, False], True))
@pytest.mark.parametrize(
    "choices",
    [
        replace(LORA, precision="pure-bf16"),
        pytest.param(Choices("full", device="cpu"), marks=pytest.mark.slow),
    ],
)
def test_a_step_of_few_tokens_with_experts(choices: Choices, rebuilt: bool) -> None:
    choices = replace(choices, gradient_checkpointing=rebuilt)
    assert abs(_peak_deviation(tiny_config("mixtral"), choices)) < 0.06


def _peak_deviation(config: dict[str, Any], choices: Choices) -> float:
    """Formula / count − 1. With few tokens the peak consists of weights: gradients, casts, sums and
    norms."""
    config |= {"hidden_size": 256, "intermediate_size": 704}
    choices = replace(choices, seq_len=6)
    model = build(config, choices)
    ids = rows(choices)

    def step() -> None:
        for _ in range(choices.gradient_accumulation):
            with autocast(choices):
                loss = summed_loss(model, of_tensors(ids, ids))
            loss.backward()  # type: ignore[no-untyped-call]

    counted = peak_bytes(step)
    phases = step_phases(architecture_of(config), choices)
    during = [phases[name].total_bytes for name in phases if name != "optimizer step"]
    return (max(during) - CUBLAS_BYTES) / counted - 1
