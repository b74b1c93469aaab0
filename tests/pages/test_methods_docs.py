"""docs/methods.md has the keys, rates and counts of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter

from ftcli.config.recipe import Method, Recipe
from ftcli.memory.choices import Choices, Mode
from ftcli.memory.trained import trainable_parameters
from ftcli.models.architectures.find import find_architecture
from ftcli.training.plan.learning_rate import choose_learning_rate

TEXT = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
METHODS: TypeAdapter[Any] = TypeAdapter(Method)
HEADINGS: dict[Mode, str] = {
    "full": "Full fine-tuning",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "bottleneck": "Bottleneck adapters",
    "prefix-tuning": "Prefix tuning",
    "prompt-tuning": "Prompt tuning",
}


def section(mode: Mode) -> str:
    return TEXT.split(f"\n## {HEADINGS[mode]}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("mode", get_args(Mode))
def test_every_method_has_its_keys_and_a_recipe_with_its_own_rate(mode: Mode) -> None:
    text = section(mode)
    (snippet,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    values = {"name": "x", "model": {"id": "7b"}, "data": {"train": "x"}, **yaml.safe_load(snippet)}
    recipe = Recipe.model_validate(values)
    assert recipe.method.mode == mode
    plain = Recipe.model_validate(values | {"training": {}})
    assert recipe.training.learning_rate == choose_learning_rate(plain)[0]
    named = section("lora") + text if mode == "qlora" else text
    for key in type(recipe.method).model_fields:
        assert key == "mode" or f"`{key}`" in named, key


@pytest.mark.parametrize("mode", get_args(Mode))
def test_trained_weights_are_those_that_are_counted(mode: Mode) -> None:
    models = ("smollm2-135m-instruct", "7b", "qwen2.5-7b-instruct")
    counts = [trainable_parameters(find_architecture(name), Choices(mode=mode)) for name in models]
    row = {"lora": "LoRA, QLoRA", "qlora": "LoRA, QLoRA"}.get(mode, mode)
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| {row} | {counts[0]:,}"))
    assert [cell.split(" (")[0].strip() for cell in line.split("|")[2:5]] == [
        f"{count:,}" for count in counts
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_counts_are_those_of_peft_on_the_small_model(mode: Mode, small_model: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ftcli.models.methods import attach

    with torch.device("meta"):  # sizes without weights
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(small_model))
    adapted = attach(base, METHODS.validate_python({"mode": mode}), seed=0)
    counted = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    assert f" {counted:,} (" in TEXT


@pytest.mark.slow
def test_a_prefix_begins_near_the_base_and_lora_at_it(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.models import methods

    base, lora, prefix = (
        first_loss(small_model, mode) for mode in ("full", "lora", "prefix-tuning")
    )
    monkeypatch.setattr(methods, "init_virtual_tokens", lambda *_: None)
    noise = first_loss(small_model, "prefix-tuning")
    assert lora == base
    assert (base, prefix, noise) == pytest.approx((4.0, 3.9, 10.0), abs=0.05)


def first_loss(folder: Path, mode: str) -> float:
    """Of a short text, before the first step."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftcli.models.methods import attach
    from ftcli.models.virtual_tokens import backbone_inputs, causal_model

    text = (
        "The kettle is made of brushed steel and holds one and a half litres. It boils water in "
        "three minutes, and a light shows when it is ready. The handle stays cool, and the lid "
        "opens with one finger."
    )
    ids: Any = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = attach(base, METHODS.validate_python({"mode": mode}), seed=0).eval()
    network: Any = causal_model(model)
    with torch.no_grad():
        states = network.model(**backbone_inputs(model, ids)).last_hidden_state
        logits = network.lm_head(states[:, -ids.shape[1] :])
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))
