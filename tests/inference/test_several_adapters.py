"""Adapters that share one base in memory: each answers as it does alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from ftcli.config.recipe import Bottleneck, Lora, Method, PrefixTuning, PromptTuning, Qlora
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.inference.generation import Model
from ftcli.inference.several_adapters import AdapterSet, batches_by_name
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.methods import attach, quantization
from ftcli.models.prompt_manifest import PromptFormat
from tests.families import chatml
from tests.tiny_models import llama, logits, reload_in_4_bits

PROMPT_FORMAT = PromptFormat(Renderer(chatml().tokenizer), stop_ids=(96,), pad_id=0)
LORAS: dict[str, dict[str, object]] = {
    "shop": {"rank": 4, "alpha": 8},
    "sql": {"rank": 2, "alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "root": {"rank": 4, "alpha": 8, "rslora": True},
}
KINDS: dict[str, list[Method]] = {
    "lora": [Lora.model_validate({"mode": "lora", **keys}) for keys in LORAS.values()],
    "bottleneck": [Bottleneck(mode="bottleneck", bottleneck=width) for width in (4, 8)],
    "prefix-tuning": [PrefixTuning(mode="prefix-tuning", virtual_tokens=count) for count in (3, 5)],
    "prompt-tuning": [PromptTuning(mode="prompt-tuning", virtual_tokens=count) for count in (3, 5)],
    "qlora": [Qlora.model_validate({"mode": "qlora", **keys}) for keys in LORAS.values()],
}
Base = Callable[[], PreTrainedModel]


@pytest.fixture
def bases(tmp_path: Path) -> Callable[[str], Base]:
    """The same base as often as it is asked for, held as a method wants it."""
    torch.manual_seed(0)
    weights = llama().state_dict()

    def whole() -> PreTrainedModel:
        model = llama()
        model.load_state_dict(weights)
        return model

    def for_kind(kind: str) -> Base:
        four_bits = quantization(KINDS[kind][0], torch.float32)
        return partial(loaded, four_bits) if four_bits else whole

    def loaded(four_bits: BitsAndBytesConfig) -> PreTrainedModel:
        return reload_in_4_bits(whole(), tmp_path / "base", four_bits)

    return for_kind


def saved(base: Base, method: Method, folder: Path, seed: int) -> Path:
    """An adapter that does something."""
    adapted = attach(base(), method, seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_weights(adapted, folder)
    return folder


def together(base: Base, folders: dict[str, Path]) -> AdapterSet:
    (name, folder), *others = folders.items()
    adapters = AdapterSet(name, Model(open_adapter(base(), folder), PROMPT_FORMAT))
    for name, folder in others:
        adapters.add(name, folder, PROMPT_FORMAT)
    return adapters


@pytest.mark.parametrize("kind", KINDS)
def test_each_answers_as_it_does_alone(
    kind: str, bases: Callable[[str], Base], tmp_path: Path
) -> None:
    base = bases(kind)
    folders = {
        f"a.{index}": saved(base, method, tmp_path / str(index), index)
        for index, method in enumerate(KINDS[kind])
    }
    adapters = together(base, folders)
    seen = []
    for name in [*folders, *reversed(folders)]:
        alone = open_adapter(base(), folders[name])
        found = logits(adapters.use(name).network)
        assert torch.equal(found, logits(alone))
        assert not any(p.requires_grad for p in adapters.models[name].network.parameters())
        seen.append(found)
    last = [found[:, -1] for found in seen]  # a soft prompt makes rows of another length
    assert not torch.allclose(last[0], last[1], atol=1e-3)


def test_one_base_is_in_memory_for_all_adapters(
    bases: Callable[[str], Base], tmp_path: Path
) -> None:
    base = bases("lora")
    folders = {
        name: saved(base, method, tmp_path / name, 0)
        for name, method in zip(LORAS, KINDS["lora"], strict=True)
    }
    adapters = together(base, folders)
    held = sum(p.numel() for p in adapters.use("shop").network.parameters())
    each = [
        open_adapter(base(), folder).num_parameters() - llama().num_parameters()
        for folder in folders.values()
    ]
    assert held == llama().num_parameters() + sum(each) and min(each) > 0
    adapters.add_name("again", "shop")
    assert sum(p.numel() for p in adapters.use("again").network.parameters()) == held


@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize(
    "parts",
    [
        [("root", -0.5)],
        [("shop", 0.7), ("sql", 0.3)],
        [("shop", 0.5), ("root", -0.5)],
        [("root", 0.2), ("shop", 0.3), ("sql", 1.5)],
    ],
)
def test_a_sum_is_the_sum_of_the_updates(
    parts: list[tuple[str, float]], kind: str, bases: Callable[[str], Base], tmp_path: Path
) -> None:
    """W x + Σ w · (update of each) x, for every layer, against updates in float64."""
    base = bases(kind)
    folders = {
        name: saved(base, method, tmp_path / name, 0)
        for name, method in zip(LORAS, KINDS[kind], strict=True)
    }
    adapters = together(base, folders)
    adapters.add_sum("mix", parts, PROMPT_FORMAT)
    network = adapters.use("mix").network
    layers = [m for m in network.modules() if hasattr(m, "lora_A") and "adapter3" in m.lora_A]
    assert layers
    for layer in layers:
        x = torch.randn(3, layer.in_features, dtype=torch.float64)
        expected = layer.base_layer(x.float()).detach().double()
        for name, weight in parts:
            slot = adapters.peft_names[name]
            if slot in layer.lora_A:
                a, b = layer.lora_A[slot].weight.double(), layer.lora_B[slot].weight.double()
                keys = LORAS[name]
                rank, alpha = float(str(keys["rank"])), float(str(keys["alpha"]))
                scale = alpha / (rank**0.5 if keys.get("rslora") else rank)
                expected = expected + weight * scale * (x @ a.T @ b.T)
        with torch.no_grad():
            found = layer(x.float()).double()
        assert (found - expected).abs().max() < 1e-5
    assert not torch.allclose(logits(network), logits(adapters.use("shop").network), atol=1e-3)


def test_batches_are_those_of_a_file_for_one_adapter() -> None:
    names = ["a", "b", "a", "a", "b", "a", "b"]
    found = list(batches_by_name(names, 2))
    assert found == [[0, 2], [1, 4], [3, 5], [6]]
    assert list(batches_by_name(["a"] * 5, 2)) == [[0, 1], [2, 3], [4]]
