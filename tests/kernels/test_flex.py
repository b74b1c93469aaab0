"""Flex attention's mask of packed rows. A CPU computes only the forward pass, unfused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from ftcli.data.tokenizing.prefix_tree import PrefixTree, build_prefix_tree
from ftcli.kernels import flex
from ftcli.kernels.slots import Layout
from ftcli.models import loss
from ftcli.models.batches import Batch, packed
from ftcli.models.loss import row_losses
from tests.architectures import FAMILIES
from tests.kernels.test_packed_families import assert_scored_alone, model_of, rows
from tests.tiers import tiers

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture
def through_flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU, but not compiled."""
    monkeypatch.setattr(loss, "packed_attention", flex.through_flex)
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.usefixtures("through_flex")
@pytest.mark.parametrize("name", tiers(FAMILIES, *list(FAMILIES)[::3]))
def test_each_row_is_scored_as_by_itself(name: str) -> None:
    assert_scored_alone(model_of(name, "lora").eval())


@pytest.mark.usefixtures("through_flex")
def test_a_wrong_mask_is_noticed() -> None:
    model = model_of("llama", "lora").eval()
    batch = packed(rows(), share_prefix=True)
    right, _ = row_losses(model, batch)
    layout = with_layout(batch)
    later = torch.full_like(layout.visible_until, len(layout.visible_until))
    wrong, _ = row_losses(model, replace(batch, layout=replace(layout, visible_until=later)))
    assert not torch.allclose(right, wrong, rtol=1e-3)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("share", [False, True])
def test_a_token_sees_its_own_rows_and_nothing_else(share: bool, window: int | None) -> None:
    batch = packed(rows(), share_prefix=share)
    layout = with_layout(batch)
    tokens = len(layout.positions)
    mask = flex._mask(layout, window)
    found = create_mask(mask.mask_mod, None, None, tokens, tokens, device="cpu")[0, 0]
    forest = build_prefix_tree([row["input_ids"] for row in rows()], share=share)
    expected = seen(forest, window)
    assert torch.equal(found[: forest.tokens, : forest.tokens], expected)
    # Padding follows all rows, and no row sees it.
    assert not found[: forest.tokens, forest.tokens :].any()


def seen(forest: PrefixTree, window: int | None) -> torch.Tensor:
    """[tokens, tokens], by the rows themselves."""
    found = torch.zeros(forest.tokens, forest.tokens, dtype=torch.bool)
    for spans in forest.rows:
        places = [place for span in spans for place in range(*span)]
        for position, query in enumerate(places):
            first = 0 if window is None else max(0, position - window + 1)
            found[query, places[first : position + 1]] = True
    return found


def with_layout(batch: Batch) -> Layout:
    assert batch.layout is not None
    return batch.layout
