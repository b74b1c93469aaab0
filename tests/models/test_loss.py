from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoConfig,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.errors import ModelError
from ftcli.kernels import head as head_module
from ftcli.memory.activations import head_bytes as head_bytes
from ftcli.models import loss as loss_module
from ftcli.models.architectures.model_class import model_class
from ftcli.models.batches import of_tensors
from ftcli.models.loss import require_known_head, row_losses, summed_loss
from ftcli.models.text_forward import text_forward
from tests.tiny_models import collate

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # far enough from uniform logits for softcaps and scales to matter
}


def llama(*, tied: bool = False, **sizes: float) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES | sizes, tie_word_embeddings=tied))


def gemma2(**sizes: float) -> PreTrainedModel:
    """A softcap on logits, and tied embeddings."""
    config = Gemma2Config(
        **SIZES | sizes,
        head_dim=8,
        query_pre_attn_scalar=8,
        final_logit_softcapping=2.0,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config)


def phi() -> PreTrainedModel:
    """A head with a bias."""
    model = PhiForCausalLM(PhiConfig(**SIZES, resid_pdrop=0.0))
    torch.nn.init.normal_(model.lm_head.bias)
    return model


LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "num_key_value_heads": 4,
    "v_head_dim": 8,
}


def of_type(model_type: str, **keys: Any) -> PreTrainedModel:
    """A random model of a type, without dropout."""
    config = AutoConfig.for_model(model_type, **SIZES | keys)
    model: PreTrainedModel = model_class(config).from_config(config)
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "tied llama": lambda: llama(tied=True),
    "gemma2": gemma2,
    # Logits are divided by a number, and multiplied by one.
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "phi": phi,
    # Hidden states are divided by a number (8 here) before the head.
    "minicpm3": lambda: of_type("minicpm3", dim_model_base=4, **LATENT),
    # The config's keys mean other things than Granite's.
    "hyperclovax": lambda: of_type("hyperclovax", logits_scaling=2.0),
    # A linear layer and a norm precede the head, outside the backbone.
    "modernbert-decoder": lambda: of_type("modernbert-decoder", norm_bias=True),
    # Its text model has a scale that the model with a tower does not apply.
    "aya_vision": lambda: of_type(
        "aya_vision",
        text_config={"model_type": "cohere", **SIZES, "logit_scale": 0.5},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        vision_feature_layer=-1,
    ),
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, and several tiles of the vocabulary, the last ones shorter."""
    monkeypatch.setattr(loss_module, "LOSS_CHUNK_POSITIONS", 4)
    monkeypatch.setattr(head_module, "HEAD_TILE_TOKENS", {"cpu": 20})
    monkeypatch.setattr(head_bytes, "CHUNK_ROUNDED", 4)


def rows(lengths: list[int], seed: int = 0) -> list[dict[str, list[int]]]:
    """Random ids; the first third of a row is its prompt, and so is a stretch in the middle."""
    random = np.random.default_rng(seed)
    found = []
    for length in lengths:
        ids = random.integers(1, 97, length).tolist()
        labels = [IGNORED if i < length / 3 or i % 5 == 4 else id_ for i, id_ in enumerate(ids)]
        found.append({"input_ids": ids, "labels": labels})
    return found


def batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    tensors = collate(rows(lengths), 0)
    return tensors["input_ids"], tensors["labels"]


def full_loss(model: PreTrainedModel, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy on the model's own logits of all tokens."""
    logits = model(input_ids=ids, attention_mask=ids != 0).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> None:
    """Every gradient within a fraction of the largest."""
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max().item() <= within * largest, name


# The same loss as on full logits


@pytest.mark.parametrize("trained", ["all", "all but the head", "the head alone"])
@pytest.mark.parametrize("name", list(MODELS))
def test_loss_and_gradients_are_those_of_full_logits(name: str, trained: str) -> None:
    model = MODELS[name]()
    if trained == "the head alone":
        model.requires_grad_(False)
    for parameter in model.get_output_embeddings().parameters():
        parameter.requires_grad_(trained != "all but the head")
    ids, labels = batch([14, 9, 11])
    loss = full_loss(model, ids, labels)
    expected = gradients(model, loss)
    found = summed_loss(model, of_tensors(ids, labels))
    assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_close(gradients(model, found), expected, 1e-5)


@pytest.mark.parametrize("name", list(MODELS))
def test_rows_are_scored_as_on_full_logits(name: str) -> None:
    model = MODELS[name]().eval()
    ids, labels = batch([14, 9, 11])
    losses, counts = row_losses(model, of_tensors(ids, labels))
    assert not losses.requires_grad
    assert counts.tolist() == (labels[:, 1:] != IGNORED).sum(dim=1).tolist()
    for row, loss in enumerate(losses.tolist()):
        part = slice(row, row + 1)
        expected = full_loss(model, ids[part], labels[part]).item()
        assert loss == pytest.approx(expected, rel=1e-6)


def test_under_autocast_the_loss_is_near_the_one_in_fp32() -> None:
    model = llama()
    ids, labels = batch([14, 9, 11])
    exact = summed_loss(model, of_tensors(ids, labels))
    expected = gradients(model, exact)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = summed_loss(model, of_tensors(ids, labels))
        scored, _ = row_losses(model, of_tensors(ids, labels))
    found = gradients(model, mixed)
    assert mixed.item() != exact.item()
    assert mixed.item() == pytest.approx(exact.item(), rel=1e-2)
    assert scored.sum().item() == pytest.approx(mixed.item(), rel=1e-5)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    for name, gradient in expected.items():
        cosine = F.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.99, name


def test_a_16_bit_model_is_scored_in_fp32_from_its_logits_on() -> None:
    model = llama().to(torch.bfloat16)
    ids, labels = batch([14, 9])
    found = summed_loss(model, of_tensors(ids, labels))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(full_loss(model, ids, labels).item(), rel=1e-3)


# Rows of different lengths


def float64_oracle(model: PreTrainedModel, data: list[dict[str, list[int]]]) -> float:
    """Loss per label token, row by row without padding, in NumPy."""
    exact = model.to(torch.float64)
    total, tokens = 0.0, 0
    for row in data:
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].numpy()
        targets = np.array(row["labels"][1:])
        wanted = targets != IGNORED
        highest = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
        likelihood = logits[np.arange(len(targets)), np.where(wanted, targets, 0)] - log_sum
        total -= float(likelihood[wanted].sum())
        tokens += int(wanted.sum())
    model.to(torch.float32)
    return total / tokens


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", ["llama", "gemma2", "granite"])
def test_padding_changes_no_loss_at_any_batch_size(name: str) -> None:
    model = MODELS[name]().eval()
    data = rows([3, 17, 5, 11, 30, 8, 2])
    expected = float64_oracle(model, data)
    for size in (1, 2, 3, 5):
        total, tokens = 0.0, 0
        for start in range(0, len(data), size):
            tensors = collate(data[start : start + size], pad_id=42 if start else 0)
            losses, counts = row_losses(model, of_tensors(tensors["input_ids"], tensors["labels"]))
            total += losses.double().sum().item()
            tokens += int(counts.sum())
        assert total / tokens == pytest.approx(expected, rel=1e-6), size


@pytest.mark.fault(17)
@pytest.mark.parametrize("build", [llama, gemma2])
def test_gradients_do_not_depend_on_how_a_step_is_split(
    build: Callable[..., PreTrainedModel],
) -> None:
    model = build(initializer_range=0.05)
    data = rows([17, 5, 11, 8])
    tokens = sum(label != IGNORED for row in data for label in row["labels"][1:])

    def step(micro_batch: int) -> dict[str, Tensor]:
        model.zero_grad()
        for start in range(0, len(data), micro_batch):
            tensors = collate(data[start : start + micro_batch], 0)
            loss = summed_loss(model, of_tensors(tensors["input_ids"], tensors["labels"]))
            (loss / tokens).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    whole = step(4)
    for micro_batch in (1, 2):
        assert_close(step(micro_batch), whole, 1e-6)


# Borders


def test_a_micro_batch_without_labels_has_no_loss_and_a_gradient_of_zero() -> None:
    model = llama()
    ids, labels = batch([14, 9])
    loss = summed_loss(model, of_tensors(ids, torch.full_like(labels, IGNORED)))
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())
    losses, counts = row_losses(model, of_tensors(ids, torch.full_like(labels, IGNORED)))
    assert losses.tolist() == [0, 0] and counts.tolist() == [0, 0]


def test_the_first_label_is_predicted_by_nothing() -> None:
    model = llama()
    ids, labels = batch([14])
    labels[0, 0] = ids[0, 0]
    without = labels.clone()
    without[0, 0] = IGNORED
    losses = [summed_loss(model, of_tensors(ids, each)).item() for each in (labels, without)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("labelled", [1, 4, 5, 8])
def test_chunks_may_be_full_or_hold_one_position(labelled: int) -> None:
    model = gemma2()
    ids, labels = batch([14])
    labels[:] = IGNORED
    labels[0, 2 : 2 + labelled] = ids[0, 2 : 2 + labelled]
    expected = full_loss(model, ids, labels)
    found = summed_loss(model, of_tensors(ids, labels))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_close(gradients(model, found), gradients(model, expected), 1e-5)


# Memory


@pytest.mark.parametrize(("softcap", "bytes_per_logit"), [(None, 6), (30.0, 12)])
@pytest.mark.parametrize("chunks", [1, 3])
def test_logits_of_one_tile_exist_at_once(
    softcap: float | None, bytes_per_logit: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ftcli.memory.activations.head_bytes estimates."""
    vocab, tile, positions = 10_000, 3000, 256
    monkeypatch.setattr(loss_module, "LOSS_CHUNK_POSITIONS", positions)
    monkeypatch.setattr(head_module, "HEAD_TILE_TOKENS", {"cpu": tile})
    hidden = torch.randn(chunks * positions, 4, dtype=torch.bfloat16, requires_grad=True)
    weight, targets = torch.randn(vocab, 4), torch.randint(vocab, (chunks * positions,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss_module._HeadLoss.apply(hidden, weight, None, targets, 1.0, softcap)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    in_use = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    assert in_use.max() / (tile * positions) == pytest.approx(bytes_per_logit, rel=0.07)


# Models that compute logits differently


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_heads_are_accepted(name: str, dtype: torch.dtype) -> None:
    require_known_head(MODELS[name]().to(dtype).eval())


class Squared(LlamaForCausalLM):
    """Squares its logits, which is neither a scale nor a softcap."""

    def forward(self, *arguments: Any, **inputs: Any) -> Any:
        output = super().forward(*arguments, **inputs)
        output.logits = output.logits**2
        return output


def test_a_model_that_does_something_else_to_its_logits_is_refused() -> None:
    model = Squared(LlamaConfig(**SIZES)).eval()
    with pytest.raises(ModelError, match="Squared computes its logits in a way"):
        require_known_head(model)


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    model = of_type("bert-generation").eval()
    with pytest.raises(ModelError, match="depends on later tokens") as caught:
        require_known_head(model)
    assert caught.value.code == "not_a_decoder"


def test_measuring_a_head_leaves_the_model_in_training_mode() -> None:
    model = llama().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    text_forward(model)
    assert [module.training for module in model.modules()] == before
