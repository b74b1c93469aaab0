"""Rows of a general text: pieces, labels and loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ftcli.data.tokenizing.rendering import IGNORED, Renderer
from ftcli.evaluation import row_sets
from ftcli.evaluation.row_sets import passage_rows
from ftcli.inference.generation import Model, score_batch
from ftcli.models.prompt_manifest import PromptFormat


@pytest.fixture
def model(tiny_model: Path) -> Model:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model))
    return Model(network, PromptFormat(renderer, renderer.stop_ids, 0))


def test_every_token_but_the_first_is_scored_and_no_end_is_expected(model: Model) -> None:
    renderer = model.prompt_format.renderer
    [row] = passage_rows(renderer, "A red kettle.")
    assert renderer.tokenizer.decode(row["input_ids"]) == "A red kettle."
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]


def test_long_passages_are_cut_and_lose_no_more_than_the_first_token_of_a_piece(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_sets, "MAX_TOKENS", 4)
    renderer = model.prompt_format.renderer
    rows = list(passage_rows(renderer, "A red kettle and a lamp."))
    assert all(len(row["input_ids"]) <= 4 for row in rows)
    assert all(len(row["input_ids"]) > 1 for row in rows), "one token alone predicts nothing"
    ids = [id_ for row in rows for id_ in row["input_ids"]]
    assert renderer.tokenizer.decode(ids) in "A red kettle and a lamp."


def test_the_perplexity_is_that_of_the_models_own_loss(model: Model) -> None:
    [row] = passage_rows(model.prompt_format.renderer, "A red kettle stands on the table.")
    [(loss, tokens)] = score_batch(model, [row])
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        expected = model.network(input_ids=ids, labels=ids).loss.item()
    assert math.exp(loss / tokens) == pytest.approx(math.exp(expected), rel=1e-5)
    assert tokens == len(row["input_ids"]) - 1
