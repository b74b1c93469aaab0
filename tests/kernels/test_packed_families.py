"""Packed rows against padded ones: transformers' own logits, and cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ftcli.config.recipe import Bottleneck, Full, Lora, Method
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.kernels import attention, slots
from ftcli.kernels.attention import attention_for
from ftcli.kernels.lora import fuse_lora
from ftcli.memory.architecture import PACKED_TYPES
from ftcli.models.batches import TOKENS_ROUNDED, Batch, packed, padded
from ftcli.models.loss import row_losses, summed_loss
from ftcli.models.methods import attach
from ftcli.models.text_forward import text_forward
from tests.architectures import FAMILIES, SIZES
from tests.tiers import tiers
from tests.tiny_models import collate, shake

METHODS: dict[str, Method] = {
    "full": Full(mode="full"),
    "lora": Lora(mode="lora", rank=4, alpha=6),
    "dora": Lora(mode="lora", rank=4, alpha=6, dora=True),
    "dropout 0, attention only": Lora(mode="lora", rank=4, target_modules=["q_proj", "v_proj"]),
    "bottleneck": Bottleneck(mode="bottleneck", bottleneck=8),
}
PREFIX = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
Row = dict[str, list[int]]


def rows() -> list[Row]:
    """Some have a common prefix, one begins with all of another, two are equal, one differs."""
    generator = torch.Generator().manual_seed(3)

    def own(length: int) -> list[int]:
        return torch.randint(30, 97, (length,), generator=generator).tolist()

    deeper = PREFIX + own(10)
    texts = [PREFIX + own(9), PREFIX + own(12), own(17), [*deeper, *own(8)], [*deeper, *own(3)]]
    texts += [PREFIX, PREFIX + own(6), own(2)]
    texts.append(texts[0])
    found = []
    for ids in texts:
        prompt = 0 if ids == PREFIX else len(ids) // 3
        found.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return found


def model_of(name: str, method: str) -> PreTrainedModel:
    torch.manual_seed(5)
    config = AutoConfig.for_model(name.split()[0], **SIZES | FAMILIES[name])
    eager = name.startswith("gemma2")
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if eager else "sdpa"
    )
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms begin at one, and biases at zero
            parameter.data += 0.1 * torch.randn(parameter.shape)
    text_forward(model)  # as ftcli.models.load does
    chosen = METHODS[method]
    if name == "phi3" and method.endswith("attention only"):
        chosen = Lora(mode="lora", rank=4, target_modules=["qkv_proj"])
    model = attach(model, chosen, seed=1)
    shake(model)
    return model.train()


def plain(model: PreTrainedModel) -> tuple[float, dict[str, Tensor]]:
    """transformers, PEFT, padding, a mask and F.cross_entropy."""
    tensors = {name: tensor.to(model.device) for name, tensor in collate(rows(), 0).items()}
    ids, labels = tensors["input_ids"], tensors["labels"]
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows()], device=model.device)
    mask = torch.arange(ids.shape[1], device=model.device) < lengths
    logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()
    loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return measured(model, loss, loss)


def measured(
    model: PreTrainedModel, loss: Tensor, shown: Tensor
) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(shown.detach()), found


def through(model: PreTrainedModel, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    with attention_for(model, batch.layout):
        loss = summed_loss(model, batch.to(model.device))
        return measured(model, loss, loss.detach())


def assert_same(
    found: tuple[float, Mapping[str, Tensor]],
    expected: tuple[float, Mapping[str, Tensor]],
    loss_within: float = 1e-6,
    gradients_within: float = 1e-5,
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=loss_within)
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max().item() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max().item() <= gradients_within * largest, name


def assert_scored_alone(model: PreTrainedModel) -> None:
    losses, counts = row_losses(model, packed(rows(), share_prefix=True))
    for row, loss, count in zip(rows(), losses, counts, strict=True):
        alone, labelled = row_losses(model, padded([row], 0))
        assert (int(count), loss.item()) == (int(labelled), pytest.approx(alone.item(), rel=1e-5))


def test_every_type_that_is_packed_is_tried() -> None:
    assert {name.split()[0] for name in FAMILIES} == PACKED_TYPES


@pytest.mark.parametrize("method", tiers(METHODS, "full", "lora"))
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_give_the_loss_and_the_gradients_of_padded_ones(name: str, method: str) -> None:
    model = model_of(name, method)
    expected = plain(model)
    fused = fuse_lora(model)
    assert (fused > 0) == (method in ("lora", "dropout 0, attention only"))
    assert_same(through(model, padded(rows(), 0)), expected)
    for share in (False, True):
        assert_same(through(model, packed(rows(), share_prefix=share)), expected)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("rounded", "kept"), [(1, 256), (3, 0), (4, 8)])
def test_queries_go_in_blocks(
    name: str, rounded: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks shorter than a segment and than a window, and groups of one segment each; of all,
    none and some the probabilities are saved for the backward pass."""
    model = model_of(name, "lora")
    expected = plain(model)
    monkeypatch.setattr(attention, "KEPT_KEYS", kept)
    for module in (attention, slots):
        monkeypatch.setattr(module, "KEYS_ROUNDED", rounded)
    monkeypatch.setattr(attention, "BLOCK", 4)
    monkeypatch.setattr(slots, "MOST_SLOTS", 8)
    assert_same(through(model, packed(rows(), share_prefix=True)), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_checkpointing_computes_the_same_again(name: str) -> None:
    model = model_of(name, "lora")
    expected = plain(model)
    fuse_lora(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(through(model, packed(rows(), share_prefix=True)), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_scored_as_each_by_itself(name: str) -> None:
    assert_scored_alone(model_of(name, "lora").eval())


@pytest.mark.parametrize("method", tiers(["full", "lora"], "lora"))
@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_stays_as_near_to_fp32_as_the_plain_path(name: str, method: str) -> None:
    """A function that ignores autocast would compute in fp32, or round what stays in fp32."""
    model = model_of(name, method)
    exact, exact_gradients = plain(model)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, mixed_gradients = plain(model)
    fuse_lora(model)
    seen: list[torch.dtype] = []
    layer = next(m for n, m in model.named_modules() if n.endswith("mlp.down_proj"))
    layer.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found, gradients = through(model, packed(rows(), share_prefix=True))
    assert seen == [torch.bfloat16]
    assert abs(found - exact) <= 2 * abs(mixed - exact) + 2e-3 * exact

    def error(some: Mapping[str, Tensor]) -> float:
        pairs = [(some[name] - gradient).norm() for name, gradient in exact_gradients.items()]
        return float(torch.stack(pairs).norm())

    assert error(gradients) <= 1.5 * error(mixed_gradients)


def test_the_shared_prefix_goes_through_the_model_once() -> None:
    model, seen = model_of("llama", "lora"), []
    model.get_input_embeddings().register_forward_hook(lambda *a: seen.append(a[2].shape[1]))
    for share in (False, True):
        summed_loss(model, packed(rows(), share_prefix=share))
    lengths = [len(row["input_ids"]) for row in rows()]
    # Of 7 rows that begin with the prefix, and 2 with ten tokens more; the last is another again.
    once = sum(lengths) - 6 * 11 - 10 - 9
    assert seen == [tokens + -tokens % TOKENS_ROUNDED for tokens in (sum(lengths), once)]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a neighbour is seen": lambda spans: ((0, 1), *spans),
    "the prefix is not seen": lambda spans: (),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_layout_is_noticed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail."""
    model = model_of("llama", "lora")
    expected = plain(model)
    batch = packed(rows(), share_prefix=True)
    assert batch.layout is not None
    wrong = tuple(
        replace(group, prefix=CHANGES[change](group.prefix)) if group.prefix else group
        for group in batch.layout.groups
    )
    batch = replace(batch, layout=replace(batch.layout, groups=wrong))
    with pytest.raises(AssertionError):
        assert_same(through(model, batch), expected)
