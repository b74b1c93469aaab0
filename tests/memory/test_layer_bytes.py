"""What the layers of whole models keep for the backward pass: formula against count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from counting import (
    EXPERTS,
    SIZES,
    autocast,
    batch_of,
    build,
    kept_by_layers,
    packed_batch,
    peak_bytes,
    rows,
    tiny_config,
)

from ftcli.kernels import small_gpu
from ftcli.memory import Choices
from ftcli.memory.activations import layers
from ftcli.memory.activations.layers import KEPT_KEYS, last_norm_bytes, layers_bytes
from ftcli.memory.architecture import Architecture
from ftcli.memory.static import forward_copies_bytes
from ftcli.memory.step import CUBLAS_BYTES, step_phases
from ftcli.models.architectures.find import architecture_of, architecture_of_config
from ftcli.models.batches import Batch
from ftcli.models.loss import summed_loss
from tests.decoders import DECODERS, decoder_config
from tests.tiers import tiers
from tests.training.planning import PROFILE

FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "gemma3_text",
    "phi3",
    "olmo2",
    "mistral",
    "mixtral",
    "qwen3_moe",
    "arcee",
    "granite",
]
# Of them those that differ most.
QUICK = ("llama", "mixtral")
TOKENS = 128
TINY = Choices("lora", rank=4, seq_len=TOKENS, virtual_tokens=20, bottleneck=32, device="cpu")
METHODS = {
    "full": replace(TINY, mode="full"),
    "lora": TINY,
    "lora, dropout of CUDA": replace(TINY, dropout=0.1, device="cuda"),
    "lora, dropout of the CPU": replace(TINY, dropout=0.1),
    "lora, q and v": replace(TINY, target_modules=("q_proj", "v_proj")),
    "lora, down": replace(TINY, target_modules=("down_proj",)),
    "lora, head and embeddings": replace(TINY, modules_to_save=("embed_tokens", "lm_head")),
    "lora, fp32 base": replace(TINY, weights_dtype="fp32"),
    "dora": replace(TINY, dora=True),
    "dora, dropout": replace(TINY, dora=True, dropout=0.1, device="cuda"),
    "qlora": replace(TINY, mode="qlora"),
    "qlora, dropout": replace(TINY, mode="qlora", dropout=0.1, device="cuda"),
    "prefix-tuning": replace(TINY, mode="prefix-tuning"),
    "prefix, projection": replace(TINY, mode="prefix-tuning", projection=True),
    "prompt-tuning": replace(TINY, mode="prompt-tuning"),
    "lora, some layers": replace(TINY, layers=(1, 3)),
    "lora, ranks of their own": replace(
        TINY, rank=8, rank_pattern=(("layers.1.mlp.down_proj", 96), ("q_proj", 48), ("o_proj", 2))
    ),
    "lora, modules of one layer": replace(
        TINY, target_modules=("layers.2.self_attn.q_proj", "layers.1.mlp.down_proj")
    ),
    "dora, some layers": replace(TINY, dora=True, dropout=0.1, device="cuda", layers=(2,)),
    "qlora, last layers": replace(TINY, mode="qlora", layers=(2, 3)),
    "qlora, head and embeddings": replace(
        TINY, mode="qlora", modules_to_save=("embed_tokens", "lm_head")
    ),
    "bottleneck": replace(TINY, mode="bottleneck"),
    "adapter after the attention": replace(TINY, mode="bottleneck", placement="attention"),
    "adapter, 4-bit base": replace(TINY, mode="bottleneck", four_bit_base=True),
    "prefix, 4-bit base": replace(TINY, mode="prefix-tuning", four_bit_base=True),
    "prompt, 4-bit base": replace(TINY, mode="prompt-tuning", four_bit_base=True),
    "adapter after the MLP": replace(TINY, mode="bottleneck", placement="mlp"),
}
# Their experts hold no linear modules.
NOT_WITH_EXPERTS = ("lora, down", "lora, ranks of their own", "lora, modules of one layer")
# Left to the grid: of what makes them up, each is in another method.
IN_THE_GRID = (
    "lora, dropout of the CPU",
    "dora, dropout",
    "dora, some layers",
    "qlora, dropout",
    "qlora, head and embeddings",
    "prefix, 4-bit base",
    "prompt, 4-bit base",
)


def expected_bytes(architecture: Architecture, choices: Choices) -> int:
    """The formula for the layers, with what a count on the CPU finds in addition."""
    last_norm = round(last_norm_bytes(architecture, choices) * choices.tokens)
    kept = layers_bytes(architecture, choices) + last_norm
    if not choices.checkpointing:
        return kept + forward_copies_bytes(architecture, choices)
    # The state of the CPU's random numbers at each layer, and the numbers of the positions.
    return kept + architecture.layers * torch.get_rng_state().numel() + 8 * choices.positions


def deviation(config: Any, choices: Choices, batch: Batch | None = None) -> float:
    """Formula / count − 1, with random ids or these."""
    torch.manual_seed(1)
    model = build(config, choices)
    counted = kept_by_layers(model, choices, batch_of(choices) if batch is None else batch)
    known = architecture_of(config) if isinstance(config, dict) else architecture_of_config(config)
    return expected_bytes(known, choices) / counted - 1


def test_layers_keep_what_the_formula_says_in_every_method() -> None:
    for name in METHODS.keys() - set(IN_THE_GRID):
        choices = METHODS[name]
        family = "qwen3" if choices.mode == "prefix-tuning" else "llama"
        kept = replace(choices, gradient_checkpointing=False)
        off = deviation(tiny_config(family), kept)
        assert abs(off) < 0.02, (name, off)


@pytest.mark.parametrize("method", ["full", "lora", "lora, head and embeddings", "prompt-tuning"])
def test_checkpointing_keeps_what_the_formula_says(method: str) -> None:
    assert METHODS[method].checkpointing
    family = "granite" if method == "lora" else "llama"
    assert abs(deviation(tiny_config(family), METHODS[method])) < 0.02


@pytest.mark.parametrize("mode", tiers(("lora", "full"), "lora"))
@pytest.mark.parametrize("family", tiers(("llama", "phi3"), "llama"))
def test_tiles_peak_where_the_formula_says(
    family: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (small_gpu, layers):
        monkeypatch.setattr(module, "TILE_TOKENS", 64)
    choices = replace(METHODS[mode], seq_len=2048, micro_batch=1, label_share=0.02)
    config, whole = tiny_config(family), 0
    for tiled in (False, True):
        choices = replace(choices, tiled_mlp=tiled)
        model, batch = build(config, choices), batch_of(choices)
        if tiled:
            small_gpu.tile_mlps(model)

        def step(model: Any = model, batch: Batch = batch, now: Choices = choices) -> None:
            with autocast(now):
                loss = summed_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            model.zero_grad()

        step()  # what is set up once
        counted = peak_bytes(step)
        if not tiled:
            whole = counted
    phases = step_phases(architecture_of(config), choices)
    expected = max(phase.total_bytes for phase in phases.values()) - CUBLAS_BYTES
    assert counted == pytest.approx(expected, rel=0.04)
    assert counted < 0.85 * whole


@pytest.mark.parametrize(
    "family",
    tiers(FAMILIES, *QUICK),
)
def test_layers_keep_what_the_formula_says_in_every_family(family: str) -> None:
    for mode, precision in (("full", "bf16"), ("lora", "pure-bf16")):
        choices = replace(METHODS[mode], precision=precision, gradient_checkpointing=False)
        off = deviation(tiny_config(family), choices)
        assert abs(off) < 0.02, (mode, off)


# Towers, recurrent layers, a state space, convolutions, latent attention, sinks.
KINDS = ["gemma3", "qwen3_5", "lfm2", "deepseek_v3", "granitemoehybrid", "gpt_oss"]
OTHERS: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
        "mamba_n_heads": 8,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_chunk_size": 64,
        "shared_intermediate_size": 96,
        **EXPERTS,
    },
    "gpt_oss": {**EXPERTS, "sliding_window": 64},
}


@pytest.mark.parametrize("tokens", tiers([1024, 8192], 1024))
@pytest.mark.parametrize("kind", tiers(KINDS, "lfm2", "deepseek_v3"))
def test_layers_of_other_kinds_keep_what_was_measured(kind: str, tokens: int) -> None:
    """Measured on rows of at most 512 tokens, and counted on long ones."""
    config = decoder_config(kind) if kind in DECODERS else tiny_config(kind, **OTHERS[kind])
    attention = "eager" if kind == "gpt_oss" else "sdpa"
    for mode, rebuilt in (("lora", False), ("full", False), ("lora", True)):
        choices = replace(METHODS[mode], seq_len=tokens, attention=attention)
        off = deviation(config, replace(choices, gradient_checkpointing=rebuilt))
        assert abs(off) < 0.03, (mode, rebuilt, off)


@pytest.mark.parametrize(
    "family",
    ["mistral", *(pytest.param(each, marks=pytest.mark.slow) for each in ("gemma3_text", "phi3"))],
)
def test_a_row_longer_than_the_window_brings_a_mask(family: str) -> None:
    config = tiny_config(family, sliding_window=TOKENS // 2)
    choices = replace(TINY, gradient_checkpointing=False)
    assert abs(deviation(config, choices)) < 0.01
    assert abs(deviation(config, replace(choices, gradient_checkpointing=True))) < 0.02
    without = architecture_of(tiny_config(family, sliding_window=2 * TOKENS))
    saved = layers_bytes(architecture_of(config), choices) / layers_bytes(without, choices)
    assert saved > 1.02


@pytest.mark.slow
def test_a_mask_copies_no_values_where_there_are_as_many_of_them_as_heads() -> None:
    """Nothing is repeated; a value that is a view keeps the tensor of queries, keys and values."""
    config = tiny_config("phi3", num_key_value_heads=SIZES["num_attention_heads"])
    masked = config | {"sliding_window": TOKENS // 2}
    assert abs(deviation(masked, replace(TINY, gradient_checkpointing=False))) < 0.01
    assert abs(deviation(masked, replace(METHODS["full"], gradient_checkpointing=False))) < 0.01
    eager = replace(TINY, attention="eager", gradient_checkpointing=False)
    assert abs(deviation(config, eager)) < 0.01
    assert abs(deviation(config, METHODS["prefix-tuning"])) < 0.01


@pytest.mark.slow
def test_gemma_2_keeps_the_scores_that_eager_attention_makes() -> None:
    for mode in ("full", "lora"):
        for rebuilt in (False, True):
            choices = replace(METHODS[mode], attention="eager", gradient_checkpointing=rebuilt)
            assert abs(deviation(tiny_config("gemma2"), choices)) < 0.02, (mode, rebuilt)


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("qwen3", "gemma3_text", "mistral", "phi3")
        ),
    ],
)
@pytest.mark.parametrize(
    ("precision", "rebuilt"),
    [
        ("bf16", False),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("fp32", False), ("bf16", True))
        ),
    ],
)
def test_packed_rows_keep_what_the_formula_says(family: str, precision: str, rebuilt: bool) -> None:
    """With fused LoRA and cached dequantised weights."""
    for mode in ("full", "lora", "qlora"):
        for longest in (TOKENS, TOKENS // 4):
            ways = packed_ways(mode, precision, longest)
            ways = replace(ways, gradient_checkpointing=rebuilt)
            off = deviation(tiny_config(family, sliding_window=TOKENS // 2), ways)
            assert abs(off) < 0.02, (mode, longest, off)


def packed_ways(mode: str, precision: Any, longest: int, tokens: int = TOKENS) -> Choices:
    """As planned on a CPU."""
    ways = replace(METHODS[mode], precision=precision, packed_rows=True)
    ways = replace(ways, gradient_checkpointing=False, keeps_dequantised=mode == "qlora")
    fused = mode != "full" and precision != "pure-bf16"
    return replace(ways, optimized=fused, seq_len=tokens, longest_row=longest)


def test_packed_rows_in_16_bits_keep_what_the_formula_says() -> None:
    """Where PEFT casts each layer's input for its adapter."""
    for mode in ("full", "lora"):
        off = deviation(tiny_config("llama"), packed_ways(mode, "pure-bf16", TOKENS // 4))
        assert abs(off) < 0.02, (mode, off)


def test_packed_rows_of_any_length_keep_no_more_than_the_formula_says() -> None:
    """Rows longer than `KEPT_KEYS` keep few attention probabilities; other rows may be shorter."""
    for longest in (KEPT_KEYS, KEPT_KEYS + 16, 2 * KEPT_KEYS):
        ways = packed_ways("lora", "bf16", longest, tokens=2 * KEPT_KEYS)
        assert deviation(tiny_config("llama"), ways) > -0.02, longest


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_packed_rows_with_a_beginning_in_common_keep_what_the_formula_says(mode: str) -> None:
    """The common prefix once, and the keys of the longest row for every token."""
    common, own, count = 96, 32, 9
    profile = replace(PROFILE, longest_tokens=common + own, common_tokens=common)
    tokens = profile.packed_tokens(count)
    ways = packed_ways(mode, "bf16", common + own, tokens=tokens)
    ids = rows(replace(ways, seq_len=common + count * own))[0].tolist()
    begins, ends = ids[:common], range(common, len(ids), own)
    batch = packed_batch([[*begins, *ids[end : end + own]] for end in ends], share=True)
    assert batch.input_ids.shape == (1, tokens)
    assert -0.01 < deviation(tiny_config("llama"), ways, batch) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gemma3_text", "olmo2", "mixtral"])
def test_grid_of_families_methods_and_precisions(family: str, method: str) -> None:
    choices = METHODS[method]
    if family == "mixtral" and (method in NOT_WITH_EXPERTS or choices.mode == "bottleneck"):
        pytest.skip("its experts hold no linear modules")
    if family == "mixtral" and choices.layers is None and (choices.dropout or choices.dora):
        pytest.skip("peft refuses dropout and DoRA for stacked experts (lora/layer.py)")
    for precision in ("bf16", "pure-bf16", "fp32"):
        for rebuilt in (False, True):
            ways: Any = replace(choices, precision=precision, gradient_checkpointing=rebuilt)
            if ways.checkpointing != rebuilt:
                continue  # peft refuses it for a prefix
            if precision == "fp32" and (ways.device == "cuda" or family != "olmo2"):
                continue  # CUDA has no fused attention kernel for fp32 and shared keys
            off = deviation(tiny_config(family), ways)
            assert abs(off) < 0.02, (precision, rebuilt, off)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "olmo2", "gemma2"])
def test_eager_attention_in_every_family(family: str, mode: str) -> None:
    for precision, rebuilt in (("bf16", False), ("bf16", True), ("fp32", False)):
        ways: Any = replace(METHODS[mode], precision=precision, attention="eager")
        ways = replace(ways, gradient_checkpointing=rebuilt)
        assert abs(deviation(tiny_config(family), ways)) < 0.02, (precision, rebuilt)
