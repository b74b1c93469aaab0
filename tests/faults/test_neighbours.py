"""Rows of one micro-batch do not see each other, padded or packed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ftcli.cli import run
from ftcli.config.recipe import Full, Lora, Method, PrefixTuning, PromptTuning
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.models import loss as loss_module
from ftcli.models.batches import of_tensors, packed
from ftcli.models.loss import head_of, row_losses
from ftcli.models.methods import attach
from ftcli.models.virtual_tokens import causal_model
from tests.architectures import FAMILIES as PACKED
from tests.kernels.test_packed_families import model_of
from tests.tiers import tiers
from tests.tiny_models import SIZES, collate

Observed = Callable[[str], None]
METHODS: dict[str, Method] = {
    "full": Full(mode="full"),
    "lora": Lora(mode="lora", rank=4),
    "prefix-tuning": PrefixTuning(mode="prefix-tuning", virtual_tokens=5),
    "projection": PrefixTuning(mode="prefix-tuning", virtual_tokens=5, projection=True),
    "prompt-tuning": PromptTuning(mode="prompt-tuning", virtual_tokens=5),
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
    losses, _ = row_losses(model, of_tensors(ids, labels))
    with torch.no_grad():
        logits = head_of(causal_model(model)).logits(
            loss_module._hidden(model, of_tensors(ids, ids))
        )
    return [(logits[i, : len(row)], losses[i]) for i, row in enumerate(rows)]


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    ("name", "attention"),
    tiers(
        [
            ("llama", "sdpa"),
            ("llama", "eager"),
            ("mistral", "sdpa"),
            ("mistral", "eager"),
            ("gemma2", "eager"),
        ],
        ("llama", "sdpa"),
        ("gemma2", "eager"),
    ),
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
@pytest.mark.parametrize("key", ["sample_packing", "packing_strategy"])
def test_other_packing_is_refused_with_the_reason(
    key: str, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()
    recipe.write_text(recipe.read_text().replace("training:\n", f"training:\n  {key}: true\n"))
    line = recipe.read_text().splitlines().index(f"  {key}: true") + 1
    for command in ("prepare", "train", "estimate-vram"):
        assert run([command, str(recipe)]) == 2
        message = capsys.readouterr().err
        assert f"tiny.yaml:{line}: training.{key}: packing is training.packing here" in message


@pytest.mark.fault(18)
@pytest.mark.parametrize("mode", ["prefix-tuning", "prompt-tuning"])
def test_packing_is_refused_where_neighbours_would_leak(
    mode: str,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    """Left to auto, rows are padded there, and the plan says why."""
    why = "each row has its own virtual tokens"
    recipe = write_recipe(method={"mode": mode})
    assert run(["train", str(recipe), "--dry-run"]) == 0
    assert re.search(rf"packing no {why}", " ".join(capsys.readouterr().out.split()))
    assert run(["train", str(recipe), "--set", "training.packing=true", "--dry-run"]) == 2
    assert f"training.packing: true is not possible here ({why})" in capsys.readouterr().err
    observed("refused with virtual tokens: exit 2")


@pytest.mark.fault(18)
@pytest.mark.parametrize("name", tiers(sorted(PACKED), *sorted(PACKED)[::3]))
def test_packed_rows_do_not_see_each_other(name: str, observed: Observed) -> None:
    """A row's loss is the same, to the last bit, whatever rows of its length are in its batch."""
    model = model_of(name, "lora").eval()
    torch.manual_seed(2)
    rows = [torch.randint(30, 97, (length,)).tolist() for length in (9, 14, 5, 23, 14)]

    def losses(rows: list[list[int]]) -> Tensor:
        labelled = [{"input_ids": ids, "labels": ids} for ids in rows]
        return row_losses(model, packed(labelled, share_prefix=False))[0]

    before = losses(rows)
    for place, row in enumerate(rows):
        changed = [97 - id_ + 29 for id_ in row]
        after = losses([*rows[:place], changed, *rows[place + 1 :]])
        same = [bool(old == new) for old, new in zip(before, after, strict=True)]
        assert same == [other != place for other in range(len(rows))]
    observed(f"{name}: 5 changes of a packed row, difference 0 in the others")
