"""The class of model that ftcli trains is the one that the checkpoint names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from ftcli.errors import ModelError
from ftcli.models.architectures.model_class import model_class
from tests.decoders import decoder


def class_for(model_type: str, *names: str, **keys: Any) -> str:
    config = AutoConfig.for_model(model_type, architectures=list(names) or None, **keys)
    found: str = model_class(config).__name__
    return found


@pytest.mark.parametrize(
    ("model_type", "name", "expected"),
    [
        ("llama", "LlamaForCausalLM", "AutoModelForCausalLM"),
        # AutoModelForCausalLM would open this one without its tower.
        ("qwen3_5", "Qwen3_5ForConditionalGeneration", "AutoModelForImageTextToText"),
        ("dots3_note", "Dots3NoteForCausalLM", "AutoModelForCausalLM"),
        ("dots3_note", "Dots3NoteForConditionalGeneration", "AutoModelForImageTextToText"),
        ("voxtral", "VoxtralForConditionalGeneration", "AutoModelForMultimodalLM"),
    ],
)
def test_a_checkpoint_is_opened_as_the_class_that_it_names(
    model_type: str, name: str, expected: str
) -> None:
    assert class_for(model_type, name) == expected


def test_a_checkpoint_that_names_no_class_keeps_its_tower() -> None:
    assert class_for("gemma3") == "AutoModelForImageTextToText"


@pytest.mark.parametrize(("model_type", "what"), [("bert", "not a causal"), ("bart", "encoder-")])
def test_what_is_no_decoder_is_refused(model_type: str, what: str) -> None:
    with pytest.raises(ModelError, match=what) as caught:
        class_for(model_type)
    assert caught.value.code == "not_a_decoder"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "transformers.models.timm_wrapper.modeling_timm_wrapper.requires_backends"

    def missing(model: object, packages: list[str]) -> None:
        raise ImportError(f"\n{type(model).__name__} requires the {packages[-1]} library but it")

    monkeypatch.setattr(module, missing)
    with pytest.raises(ModelError, match=r"needs timm, which is not installed: pip install timm"):
        class_for("perception_lm")


@pytest.mark.parametrize("model_type", ["llama4", "molmo2"])
def test_classes_that_fail_on_text_alone_are_mended(model_type: str) -> None:
    model: Any = decoder(model_type).train()
    ids = torch.arange(3, 43).view(2, 20)
    loss = model(input_ids=ids, labels=ids).loss
    assert loss.isfinite()
    loss.backward()
    answers = model.eval().generate(ids, max_new_tokens=2, do_sample=False)
    expected = model(input_ids=ids).logits[:, -1].argmax(-1)
    assert answers[:, 20].tolist() == expected.tolist()
