"""Prefix and prompt tuning through our loss and our generation: the same as PEFT's own forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftcli.config.recipe import Generation, PrefixTuning, PromptTuning
from ftcli.data.tokenizing.rendering import IGNORED, Renderer
from ftcli.errors import ModelError
from ftcli.inference.generation import Model, answer_batch, stream_answer
from ftcli.models.adapters import load_encoder, open_adapter, save_resumable, save_weights
from ftcli.models.architectures.model_class import model_class
from ftcli.models.batches import of_tensors
from ftcli.models.loss import row_losses, summed_loss
from ftcli.models.methods import attach, quantization
from ftcli.models.prompt_manifest import PromptFormat
from ftcli.models.virtual_tokens import backbone_inputs, virtual_tokens
from scripts.tiny_jobs import tiny_config_of
from tests.families import chatml
from tests.tiny_models import IDS, collate, llama, logits, loss_of, qwen2, reload_in_4_bits

METHODS = {
    "prefix-tuning": PrefixTuning(mode="prefix-tuning", virtual_tokens=5),
    "projection": PrefixTuning(mode="prefix-tuning", virtual_tokens=5, projection=True),
    "prompt-tuning": PromptTuning(mode="prompt-tuning", virtual_tokens=5),
}
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]


def tuned(name: str, build: Callable[..., PreTrainedModel] = llama) -> PeftModel:
    """A prefix with values as after training: a random one changes these models little."""
    model = attach(build(), METHODS[name], 1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data *= 3
    return model.eval()


@pytest.mark.parametrize("build", [llama, qwen2])
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_that_of_peft(name: str, build: Callable[..., PreTrainedModel]) -> None:
    model = tuned(name, build)
    expected = F.cross_entropy(_peft_logits(model, IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    found = summed_loss(model, of_tensors(IDS, IDS)) / IDS[:, 1:].numel()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    base = row_losses(build(), of_tensors(IDS, IDS))[0].sum() / IDS[:, 1:].numel()
    assert abs(found.item() - base.item()) > 0.01


def _peft_logits(model: PeftModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[:, -ids.shape[1] :]


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_no_row(name: str) -> None:
    model = tuned(name)
    rows = [{"input_ids": p, "labels": p} for p in ([3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13])]
    together = collate(rows, 0)
    losses, _ = row_losses(model, of_tensors(together["input_ids"], together["labels"]))
    for row, loss in zip(rows, losses, strict=True):
        alone = collate([row], 0)
        expected, _ = row_losses(model, of_tensors(alone["input_ids"], alone["labels"]))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (together["labels"] == IGNORED).any()


@pytest.mark.parametrize("name", METHODS)
def test_only_the_virtual_tokens_are_trained(name: str) -> None:
    model = tuned(name)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(n.startswith("prompt_encoder.") for n in trained)
    assert virtual_tokens(model) == 5 and virtual_tokens(llama()) == 0
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    first = loss_of(model, IDS).item()
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(model, IDS).backward()
        optimizer.step()
    assert loss_of(model, IDS).item() < first
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter, before[n]) == (n not in trained)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", METHODS)
def test_answers_are_those_of_the_forward_pass(name: str, penalty: float) -> None:
    """A batch padded on the left, with a cache, against whole forward passes row by row."""
    network = tuned(name)
    model = Model(network, _contract())
    settings = Generation(max_new_tokens=6, repetition_penalty=penalty)
    answers = answer_batch(model, PROMPTS, settings)
    texts = [_decoded(_greedy(network, prompt, 6, penalty)) for prompt in PROMPTS]
    assert [answer.text for answer in answers] == texts
    for prompt, expected in zip(PROMPTS, answers, strict=True):
        pieces: list[str] = []
        assert stream_answer(model, prompt, settings, pieces.append) == expected
        assert "".join(pieces) == expected.text


def _contract() -> PromptFormat:
    return PromptFormat(Renderer(_tokenizer()), stop_ids=(96,), pad_id=0)


def _tokenizer() -> PreTrainedTokenizerBase:
    return chatml().tokenizer


def _decoded(ids: list[int]) -> str:
    return str(_tokenizer().decode(ids, skip_special_tokens=True))


def _greedy(model: PeftModel, prompt: list[int], count: int, penalty: float) -> list[int]:
    """The repetition penalty as transformers has it: a seen token's logit is divided, or
    multiplied where it is negative."""
    ids = list(prompt)
    seen = set(prompt)
    for _ in range(count):
        scores = _peft_logits(model, torch.tensor([ids]))[0, -1]
        for token in seen:
            scores[token] = (
                scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
            )
        ids.append(int(scores.argmax()))
        seen.add(ids[-1])
        if ids[-1] == 96:
            break
    return [token for token in ids[len(prompt) :] if token != 96]


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_opened_again(name: str, tmp_path: Path) -> None:
    model = tuned(name)
    save_weights(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    base = llama()
    base.load_state_dict(model.get_base_model().state_dict())
    opened = open_adapter(base, tmp_path)
    assert not any(p.requires_grad for p in opened.parameters())
    assert torch.allclose(_peft_logits(opened, IDS), _peft_logits(model, IDS), atol=1e-6, rtol=0)


def test_a_prefix_goes_on_by_the_network_that_makes_it(tmp_path: Path) -> None:
    model = tuned("projection")
    save_resumable(model, tmp_path / "with")
    save_weights(model, tmp_path / "without")
    again = tuned("projection")
    encoder = again.prompt_encoder["default"]
    for parameter in encoder.parameters():
        parameter.data.zero_()
    load_encoder(encoder, tmp_path / "with")
    state = model.prompt_encoder["default"].state_dict()
    assert all(torch.equal(tensor, state[n]) for n, tensor in encoder.state_dict().items())
    trainable = open_adapter(llama(), tmp_path / "with", trainable=True)
    assert all(
        torch.equal(tensor, state[n])
        for n, tensor in trainable.prompt_encoder["default"].state_dict().items()
    )
    with pytest.raises(ModelError, match="the network of this prefix"):
        open_adapter(llama(), tmp_path / "without", trainable=True)


@pytest.mark.parametrize("method", [PrefixTuning, PromptTuning])
def test_virtual_tokens_begin_as_their_text(method: Any) -> None:
    """The first answer is the same as with the text itself before the prompt."""
    tokenizer = chatml().tokenizer
    words = tokenizer("the answer", add_special_tokens=False)["input_ids"]
    base = llama(vocab_size=len(tokenizer))
    mode = "prefix-tuning" if method is PrefixTuning else "prompt-tuning"
    chosen = method(mode=mode, virtual_tokens=len(words) + 1, init_text="the answer")
    model = attach(base, chosen, 0, words)
    ids = torch.tensor([[5, 6, 7]])
    written = torch.cat((torch.tensor([[*words, words[0]]]), ids), dim=1)
    assert torch.allclose(_peft_logits(model, ids), logits(base, written)[:, -3:], atol=1e-5)


@pytest.mark.parametrize("model_type", ["falcon", "gpt2", "kosmos-2.5", "gemma2"])
def test_a_prefix_has_the_sizes_that_were_measured(model_type: str) -> None:
    """Of these configs PEFT finds another size, or none: words before a text are their prefix."""
    words = [21, 22, 23, 24, 25]
    base = built(model_type)
    whole = torch.cat((torch.tensor(words).expand(len(IDS), -1), IDS), dim=1)
    with torch.no_grad():
        expected = base(input_ids=whole, use_cache=False).logits[:, len(words) :]
    model = attach(base, METHODS["prefix-tuning"], 1, init_ids=words).eval()
    with torch.no_grad():
        found = base(**backbone_inputs(model, IDS)).logits
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "cause"),
    [("deepseek_v4", "'reshape'"), ("gemma3n_text", "but on ids"), ("gemma4_text", "")],
)
def test_a_soft_prompt_is_refused_where_ids_are_read(model_type: str, cause: str) -> None:
    with pytest.raises(ModelError, match="does not run on embeddings") as caught:
        attach(built(model_type), METHODS["prompt-tuning"], 1)
    assert caught.value.code == "method_refused" and cause in caught.value.message


def built(model_type: str) -> PreTrainedModel:
    config = tiny_config_of(model_type)
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config).from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # factors that begin at zero hide what they multiply
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model.eval()


def test_virtual_tokens_begin_near_the_base() -> None:
    """Random noise would raise the loss far more than unrelated words."""
    torch.manual_seed(0)
    base = row_losses(llama(), of_tensors(IDS, IDS))[0].sum().item()
    for method in METHODS.values():
        torch.manual_seed(0)
        model = attach(llama(), method, 0)
        torch.manual_seed(0)
        again = attach(llama(), method, 0)
        first = row_losses(model, of_tensors(IDS, IDS))[0].sum().item()
        assert first == row_losses(again, of_tensors(IDS, IDS))[0].sum().item()
        assert first < 1.3 * base


@pytest.mark.parametrize("name", ["prefix-tuning", "prompt-tuning"])
def test_a_4_bit_base_takes_virtual_tokens(name: str, tmp_path: Path) -> None:
    method = METHODS[name].model_copy(update={"quantization": "nf4"})
    base = reload_in_4_bits(llama(), tmp_path, quantization(method, torch.float32))
    model = attach(base, method, 0)
    loss_of(model, IDS).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert gradients and all(g is not None and g.abs().sum() > 0 for g in gradients)
