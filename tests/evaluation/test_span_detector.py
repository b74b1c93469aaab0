"""`eval.grounding.model` on a tiny classifier."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.config.loader import load_recipe
from tests.commands.test_end_to_end import ask
from tests.conftest import save_recipe


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A random token classifier with two labels, as LettuceDetect's are."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

    folder = tmp_path_factory.mktemp("detector")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=256,
        num_labels=2,
    )
    torch.manual_seed(3)
    BertForTokenClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_spans_are_words_of_the_answer(detector: Path) -> None:
    import torch

    from ftcli.evaluation.scorers.span_detector import SpanDetector

    found = SpanDetector(str(detector), load_recipe(save_recipe(detector, detector)).recipe)
    answer, facts = "A teal cup, made in Rome.", "Colour: olive"
    spans = found.spans(answer, facts)
    assert all(0 <= start < end <= len(answer) for start, end in spans)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(spans))
    # If every token is marked, the whole answer is one span; if none, there are none.
    with torch.no_grad():
        found._detector.model.classifier.weight.zero_()
        found._detector.model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
        assert found.spans(answer, facts) == [(0, len(answer))]
        found._detector.model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    assert found.spans(answer, facts) == [] and found.truncated == 0
    assert found.spans(answer, "olive " * 400) == [] and found.truncated == 1


def test_the_detector_marks_spans_of_the_report(
    eval_run: Path, detector: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--no-forgetting", "--set", f"eval.grounding={{model: {detector}}}"]
    found = ask(capsys, "eval", eval_run, *flags)
    rows = {row["name"]: row for row in found["scores"]}
    assert {"spans_supported", "not_in_prompt"} <= set(rows)
    assert found["truth_measured_by"] == ["spans_supported"]
    assert any("how often the detector is right" in note for note in found["notes"])


def test_another_detector_in_the_same_folder_is_another_evaluation(
    eval_run: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(detector, tmp_path / "detector"))
    flags = ["--no-forgetting", "--set", f"eval.grounding={{model: {folder}}}"]
    first = ask(capsys, "eval", eval_run, *flags)["key"]
    assert ask(capsys, "eval", eval_run, *flags)["key"] == first
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert ask(capsys, "eval", eval_run, *flags)["key"] != first


def test_a_model_that_is_not_a_detector(eval_run: Path, tiny_model: Path, capsys: Any) -> None:
    flags = ["--no-forgetting", "--set", f"eval.grounding={{model: {tiny_model}}}"]
    code = run(["eval", str(eval_run), *flags])
    assert code in (1, 2)
    assert "eval.grounding.model" in capsys.readouterr().err
