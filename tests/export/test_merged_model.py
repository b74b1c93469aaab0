"""Merged, saved, read back: every model and every kind of LoRA equals base + adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from ftcli.config.recipe import Lora, LoraKeys, Model, Qlora
from ftcli.console import Terminal
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.errors import ModelError
from ftcli.export.merged_model import (
    Nf4Config,
    dtype_name,
    four_bit_layers,
    merge_adapter,
    merged_groups,
    save_merged,
)
from ftcli.export.parity import Prediction, WeightGroup, largest_activation, parity, predictions_of
from ftcli.export.verdict import Exactness, RoundingCost, cost_of, exactness_of
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.architectures.model_class import mend_text_forward, model_class, open_config
from ftcli.models.load import load_base
from ftcli.models.methods import attach, quantization
from tests.decoders import DECODERS, decoder
from tests.tiers import tiers
from tests.tiny_models import SIZES, gpt_neox, llama, phi3, qwen2, shake

CPU = torch.device("cpu")
ROWS = [list(range(1, 25)), list(range(30, 70))]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def gemma2() -> PreTrainedModel:
    """Tied, scaled embeddings; scores and logits pass through a tanh."""
    sizes = {"head_dim": 16, "query_pre_attn_scalar": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = Gemma2Config(**SIZES | sizes, attn_implementation="eager")
    return Gemma2ForCausalLM(config).eval()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, untied": lambda: llama(tie_word_embeddings=False),
    "qwen2, biases": qwen2,
    "phi3, fused": phi3,
    "gemma2": gemma2,
    "gpt_neox, embed_in": gpt_neox,
}
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "layers and dropout": {"layers": [1], "dropout": 0.5},
    "rank_pattern": {"rank_pattern": {"o_proj": 8, "layers.0.mlp.down_proj": 2}},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "both ends": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "ranks and rslora": {"rslora": True, "rank_pattern": {"o_proj": 8, "down_proj": 2}},
    "dora and head": {"dora": True, "rslora": True, "modules_to_save": ["lm_head"]},
}


@pytest.fixture(autouse=True)
def _quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()


def trained_adapter(base: PreTrainedModel, method: LoraKeys, folder: Path) -> None:
    """Save an adapter with all weights changed, as after a training."""
    adapted = attach(base, method, seed=0)
    moved = 0
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            spread = 0.02 if "modules_to_save" in name else 0.1
            parameter.data.add_(torch.randn(parameter.shape) * spread)
            moved += 1
    assert moved
    save_weights(adapted, folder)


def said(
    model: PreTrainedModel, dtype: torch.dtype, parts: Sequence[WeightGroup] | None = None
) -> list[Prediction]:
    rows = [{"input_ids": row, "labels": [IGNORED, *row[1:]]} for row in ROWS]
    return list(predictions_of(model, rows, 0, dtype, parts))


def opened(folder: Path, dtype: torch.dtype, method: LoraKeys, *, whole: bool) -> PreTrainedModel:
    return load_base(
        str(folder),
        Model(id=str(folder)),
        dtype=dtype,
        attention="eager",
        device=CPU,
        quantization=None if whole else quantization(method, torch.float32),
    )


@dataclass(frozen=True)
class Certificate:
    """What `ftcli merge` measures: exactness, the written file, and the cost of rounding."""

    exact: Exactness
    written: Exactness
    cost: RoundingCost


def certificate(
    base: PreTrainedModel,
    method: LoraKeys,
    folder: Path,
    wanted: torch.dtype,
    base_dtype: torch.dtype = torch.float32,
) -> Certificate:
    """Train (as it were), merge, save and read back; compare as `ftcli merge` does."""
    base.to(base_dtype).save_pretrained(folder / "base")
    trained_adapter(
        opened(folder / "base", base_dtype, method, whole=False), method, folder / "adapter"
    )
    arithmetic = torch.float64 if isinstance(method, Lora) else torch.float32

    trained = open_adapter(
        opened(folder / "base", base_dtype, method, whole=False), folder / "adapter"
    )
    reference = said(trained, arithmetic)
    names = four_bit_layers(trained)
    before = said(opened(folder / "base", base_dtype, method, whole=True), arithmetic)
    assert parity(before, reference).kl > 0.02, "the adapter does something"

    adapted = open_adapter(
        opened(folder / "base", base_dtype, method, whole=True), folder / "adapter"
    )
    nf4 = None
    if isinstance(method, Qlora):
        nf4 = Nf4Config(names, method.double_quantization, base_dtype, CPU)
    whole, rounded = (
        said(adapted, arithmetic, merged_groups(adapted, arithmetic, stored, nf4))
        for stored in (None, wanted)
    )
    merged = merge_adapter(adapted, wanted, nf4, Terminal())
    save_merged(merged, dtype_name(wanted), folder / "merged")
    config = open_config(str(folder / "merged"), None)
    alone = model_class(config).from_pretrained(folder / "merged", attn_implementation="eager")
    mend_text_forward(alone)
    assert alone.dtype == wanted
    compared_in = dtype_name(arithmetic)
    return Certificate(
        exactness_of(parity(reference, whole), compared_in),
        exactness_of(parity(rounded, said(alone, arithmetic)), compared_in),
        cost_of(parity(whole, rounded), dtype_name(wanted)),
    )


def require_same(found: Certificate) -> None:
    """Exact, and written as measured; rounding costs a random model more than a real one."""
    assert found.exact.passes and found.written.passes, found
    assert found.cost.kl <= (0.0 if found.cost.dtype == "float32" else 1e-3), found


# Combinations of what the quick tests prove alone.
SLOW = pytest.mark.slow
KINDS: dict[str, type[Lora] | type[Qlora]] = {"lora": Lora, "qlora": Qlora}


@pytest.mark.fault(8, 9)
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("lora", "bfloat16"),
        ("qlora", "bfloat16"),
        *(pytest.param("lora", dtype, marks=SLOW) for dtype in ("float16", "float32")),
        pytest.param("qlora", "float32", marks=SLOW),
    ],
)
@pytest.mark.parametrize("model", tiers(MODELS, "llama, tied", "phi3, fused"))
def test_every_model(model: str, mode: str, dtype: str, tmp_path: Path) -> None:
    method = KINDS[mode].model_validate({"mode": mode, "rank": 4})
    require_same(certificate(MODELS[model](), method, tmp_path, TYPES[dtype]))


@pytest.mark.fault(8, 9)
@pytest.mark.parametrize(
    ("model_type", "mode"),
    [
        ("gemma3", "lora"),
        ("lfm2", "qlora"),
        *(pytest.param(name, mode, marks=SLOW) for name in DECODERS for mode in KINDS),
    ],
)
def test_every_kind_of_decoder(model_type: str, mode: str, tmp_path: Path) -> None:
    """Towers, recurrent layers, latent attention, factors around the head."""
    method = KINDS[mode].model_validate({"mode": mode, "rank": 4})
    require_same(certificate(decoder(model_type), method, tmp_path, torch.bfloat16))
    base, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert {n: w.shape for n, w in merged.items()} == {n: w.shape for n, w in base.items()}
    idle = [n for n in base if any(part in n for part in ("vision", "visual", "projector"))]
    assert bool(idle) == hasattr(open_config(str(tmp_path / "base"), None), "vision_config")
    for name in idle:
        assert torch.equal(merged[name], base[name]), name


@pytest.mark.fault(8, 9)
@pytest.mark.parametrize(
    ("mode", "dtype", "tied"),
    [
        ("lora", "float32", True),
        *(pytest.param("lora", "bfloat16", tied, marks=SLOW) for tied in (True, False)),
        *(pytest.param("qlora", "bfloat16", tied, marks=SLOW) for tied in (True, False)),
    ],
)
@pytest.mark.parametrize("extra", tiers(EXTRAS, *list(EXTRAS)[::3]))
def test_every_extra(extra: str, tied: bool, mode: str, dtype: str, tmp_path: Path) -> None:
    method = KINDS[mode].model_validate({"mode": mode, "rank": 4} | EXTRAS[extra])
    base = llama(tie_word_embeddings=tied)
    require_same(certificate(base, method, tmp_path, TYPES[dtype]))


@pytest.mark.fault(8)
@pytest.mark.parametrize("extra", ["dora and head", "both ends"])
def test_extras_of_qlora(extra: str, tmp_path: Path) -> None:
    method = Qlora.model_validate({"mode": "qlora", "rank": 4} | EXTRAS[extra])
    base = llama(tie_word_embeddings=False)
    require_same(certificate(base, method, tmp_path, torch.bfloat16))


@pytest.mark.parametrize("mode", ["lora", pytest.param("qlora", marks=SLOW)])
@pytest.mark.parametrize("model", ["phi3, fused", "gpt_neox, embed_in"])
def test_layers_and_ends_of_models_with_other_names(model: str, mode: str, tmp_path: Path) -> None:
    keys = {"mode": mode, "rank": 4, "layers": [1], "modules_to_save": ["embed_tokens"]}
    method = KINDS[mode].model_validate(keys)
    require_same(certificate(MODELS[model](), method, tmp_path, torch.float32))


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("model", "extra", "wanted"),
    [
        ("llama, tied", "dora", "bfloat16"),
        ("gemma2", "plain", "bfloat16"),
        ("gemma2", "head", "float32"),
        *(
            pytest.param(model, extra, wanted, marks=SLOW)
            for model in ("llama, tied", "gemma2")
            for extra in ("plain", "embeddings", "head")
            for wanted in ("bfloat16", "float32")
        ),
    ],
)
def test_a_base_in_16_bits(model: str, extra: str, wanted: str, tmp_path: Path) -> None:
    method = Lora.model_validate({"mode": "lora", "rank": 4} | EXTRAS[extra])
    require_same(certificate(MODELS[model](), method, tmp_path, TYPES[wanted], torch.bfloat16))


@pytest.mark.fault(8)
@pytest.mark.parametrize("double", [True, False])
def test_double_quantization_is_the_trainings(double: bool, tmp_path: Path) -> None:
    method = Qlora(mode="qlora", rank=4, double_quantization=double)
    found = certificate(llama(), method, tmp_path, torch.float32)
    assert found.exact.max_logit_difference < 1e-3, "the same weights; sums in another order"


@pytest.mark.fault(8)
@pytest.mark.parametrize("model", ["llama, tied", "gemma2"])
def test_a_4_bit_base_trained_in_16_bits(model: str, tmp_path: Path) -> None:
    """Training rounds what it dequantises to its own type; so does the comparison in fp32."""
    method = Qlora(mode="qlora", rank=4)
    found = certificate(MODELS[model](), method, tmp_path, torch.float32, torch.bfloat16)
    assert found.exact.max_logit_difference < 1e-3
    require_same(found)


@pytest.mark.fault(9)
def test_a_head_trained_without_its_tied_embeddings_is_not_tied_again(tmp_path: Path) -> None:
    """As plain PEFT trains it."""
    from peft import LoraConfig, get_peft_model

    base = llama(tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    adapted = get_peft_model(base, config)
    adapted.get_base_model().lm_head.modules_to_save["default"].weight.data.mul_(-1)
    expected = said(adapted, torch.float32)
    merge_adapter(adapted, torch.float32, None, Terminal()).save_pretrained(tmp_path / "merged")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert parity(expected, said(alone, torch.float32)).kl < 1e-9
    assert not alone.config.tie_word_embeddings


# Injected faults


def lose_adapters(_: pytest.MonkeyPatch) -> Callable[..., Any]:
    return lambda layers: [(name, layer) for name, layer in layers if False]


def lose_one_layer(_: pytest.MonkeyPatch) -> Callable[..., Any]:
    return lambda layers: layers[:5] + layers[6:]


def change_update(patched: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    from peft.tuners.lora import Linear

    whole = Linear.get_delta_weight
    patched.setattr(Linear, "get_delta_weight", lambda *arguments: change(whole(*arguments)))


def scale_twice(patched: pytest.MonkeyPatch) -> None:
    change_update(patched, lambda update: 2 * update)


def transpose(patched: pytest.MonkeyPatch) -> None:
    """Of square updates."""
    change_update(patched, lambda u: u.T.contiguous() if u.shape[0] == u.shape[1] else u)


def round_update(patched: pytest.MonkeyPatch) -> None:
    """As PEFT adds to a 16-bit weight."""
    change_update(patched, lambda update: update.bfloat16().to(update.dtype))


@pytest.mark.fault(8, 9)
@pytest.mark.parametrize("kind", [Lora, Qlora])
@pytest.mark.parametrize(
    "inject", [lose_adapters, lose_one_layer, scale_twice, transpose, round_update]
)
def test_every_injected_fault_is_caught_before_rounding(
    inject: Callable[[pytest.MonkeyPatch], Any],
    kind: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ftcli.export import merged_model as engine

    method = kind(mode=kind.__name__.lower(), rank=4)
    layers = inject(monkeypatch)
    if layers is not None:
        whole = engine.layers_to_merge
        monkeypatch.setattr(engine, "layers_to_merge", lambda *found: layers(whole(*found)))
    found = certificate(llama(), method, tmp_path, torch.bfloat16)
    assert not found.exact.passes, found.exact


@pytest.mark.fault(9)
def test_a_fault_in_writing_is_caught(tmp_path: Path) -> None:
    """What is read back is compared with what was measured before."""
    base = llama()
    adapted = attach(base, Lora(mode="lora", rank=4), seed=0)
    shake(adapted)
    rounded = said(adapted, torch.float64, merged_groups(adapted, torch.float64, None, None))
    merged = merge_adapter(adapted, torch.float32, None, Terminal())
    assert exactness_of(parity(rounded, said(merged, torch.float64)), "float64").passes
    merged.model.layers[1].mlp.up_proj.weight.data[3, 5] += 0.1
    assert not exactness_of(parity(rounded, said(merged, torch.float64)), "float64").passes


def test_measuring_leaves_base_and_adapter_as_they_are() -> None:
    adapted = attach(llama(), Lora(mode="lora", rank=4, dora=True), seed=0)
    shake(adapted)
    before = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    first = said(adapted, torch.float64)
    said(adapted, torch.float64, merged_groups(adapted, torch.float64, torch.float16, None))
    assert all(torch.equal(before[name], weight) for name, weight in adapted.state_dict().items())
    assert parity(first, said(adapted, torch.float64)).max_logit_difference == 0.0


def test_a_weight_too_large_for_fp16_is_named() -> None:
    adapted = attach(llama(), Lora(mode="lora", rank=4), seed=0)
    norm: nn.Parameter = adapted.get_base_model().model.norm.weight
    norm.data[0] = 1e5
    with pytest.raises(ModelError, match="a weight of 1e\\+05 is too large for float16") as error:
        said(adapted, torch.float64, merged_groups(adapted, torch.float64, torch.float16, None))
    assert error.value.code == "merge_range"
    assert norm.data[0] == 1e5, "unchanged"


def test_the_largest_activation_is_that_of_any_layer() -> None:
    model = llama().double()
    model.model.layers[1].mlp.up_proj.weight.data[3] *= 1e7
    with torch.no_grad(), largest_activation(model) as largest:
        output = model(torch.tensor([ROWS[0]]), output_hidden_states=True)
    inside = largest()
    assert inside > 1e4 and inside > output.logits.abs().max()
    model(torch.tensor([ROWS[1]]))
    assert largest() == inside, "the hooks are removed"
