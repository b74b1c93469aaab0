"""Rows of one padded micro-batch know nothing of each other, and packing is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ftcli.cli import run
from ftcli.engine import loss as loss_module
from ftcli.engine.batches import collate
from ftcli.engine.loss import head_of, row_losses
from ftcli.engine.methods import attach
from ftcli.engine.rendering import IGNORED
from ftcli.engine.virtual import causal_model
from ftcli.recipe import Full, Lora, Method, Prefix, Prompt
from tests.engine.models import SIZES

Observed = Callable[[str], None]
METHODS: dict[str, Method] = {
    "full": Full(mode="full"),
    "lora": Lora(mode="lora", rank=4),
    "prefix": Prefix(mode="prefix", virtual_tokens=5),
    "projection": Prefix(mode="prefix", virtual_tokens=5, projection=True),
    "prompt": Prompt(mode="prompt", virtual_tokens=5),
}
# Beside the plain one: a window shorter than the rows; a softcap, which sdpa does not compute.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
}
PAD = 0


def tuned(name: str, method: Method, attention: str) -> Any:
    """With numbers everywhere, as a training leaves them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SIZES | MODELS[name], attn_implementation=attention)
    model = attach(AutoModelForCausalLM.from_config(config), method, seed=1)
    assert causal_model(model).config._attn_implementation == attention
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def batch(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The first third of a row is its prompt."""
    labelled = [
        {"input_ids": ids, "labels": [IGNORED] * (len(ids) // 3) + ids[len(ids) // 3 :]}
        for ids in rows
    ]
    tensors = collate(labelled, PAD)
    return tensors["input_ids"], tensors["labels"]


def looked_at(model: Any, rows: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """Logits of a row's own tokens, and its loss, as our loss computes them."""
    ids, labels = batch(rows)
    losses, _ = row_losses(model, ids, labels)
    with torch.no_grad():
        logits = head_of(causal_model(model)).logits(loss_module._hidden(model, ids))
    return [(logits[i, : len(row)], losses[i]) for i, row in enumerate(rows)]


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("mistral", "sdpa"),
        ("mistral", "eager"),
        ("gemma2", "eager"),
    ],
)
def test_a_changed_row_changes_no_other(name: str, attention: str, observed: Observed) -> None:
    rows = [torch.randint(1, 97, (length,)).tolist() for length in (14, 9, 11, 5)]
    changes = 0
    for method in METHODS.values():
        model = tuned(name, method, attention)
        for training in (False, True):
            before = looked_at(model.train(training), rows)
            for place, other in ((0, 14), (1, 9), (1, 12), (2, 4), (3, 14)):
                changed = torch.randint(1, 97, (other,)).tolist()
                after = looked_at(model, [*rows[:place], changed, *rows[place + 1 :]])
                for i, (old, new) in enumerate(zip(before, after, strict=True)):
                    same = all(map(torch.equal, old, new))
                    assert same == (i != place), f"{method}: row {place} changed, row {i}"
                changes += 1
    observed(f"{name} ({attention}): {changes} changes in {len(METHODS)} methods, difference 0")


@pytest.mark.fault(18)
@pytest.mark.parametrize("key", ["packing", "sample_packing", "packing_strategy"])
@pytest.mark.parametrize("value", ["true", "wrapped"])
def test_packing_is_refused_with_the_reason(
    key: str,
    value: str,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    recipe = write_recipe()
    recipe.write_text(recipe.read_text().replace("training:\n", f"training:\n  {key}: {value}\n"))
    line = recipe.read_text().splitlines().index(f"  {key}: {value}") + 1
    for command in ("prepare", "train", "estimate-vram"):
        assert run([command, str(recipe)]) == 2
        message = capsys.readouterr().err
        assert f"tiny.yaml:{line}: training.{key}: packing is not offered: " in message
    observed("packing refused: exit 2")
