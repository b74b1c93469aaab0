"""End of answers: in the labels of every row, whatever pads it, and in generated answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from ftcli.cli import run
from ftcli.data.dataset import Dataset, load_dataset, save_dataset, split_digests, split_file
from ftcli.data.example import Example, Origin
from ftcli.data.tokenizing.arrow_rows import ROWS_PER_BATCH, SCHEMA, RowWriter, read_split
from ftcli.data.tokenizing.rendering import IGNORED, Encoded, Renderer
from ftcli.errors import DataError, ModelError
from ftcli.inference.endings import require_ends
from ftcli.runs.atomic import sha256_file
from ftcli.runs.folder import RunFolder
from tests.commands.test_end_to_end import METHODS
from tests.conftest import prepared_data, tiny_tokenizer

STOP, MAX_LENGTH = 2, 6


def row(*labels: int) -> Encoded:
    """Two tokens of a prompt, then these labels."""
    whole = [IGNORED, IGNORED, *labels]
    ids = [9 if label == IGNORED else label for label in whole]
    return Encoded(ids, whole, 2)


def write(folder: Path, train: list[Encoded], validation: list[Encoded]) -> Dataset:
    for split, rows in (("train", train), ("validation", validation)):
        with RowWriter(split_file(folder, split)) as writer:
            for line, each in enumerate(rows, start=1):
                writer.write(each, Example((), Origin(f"{split}.jsonl", line)))
    return prepared_data(max_length=MAX_LENGTH, stop_ids=(7, STOP), pad_id=STOP)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny_tokenizer())


@pytest.mark.parametrize(
    "good",
    [
        row(5, STOP),
        row(7),
        row(5, STOP, IGNORED, 5, 7),
        row(5, 5, 5, 5),  # as long as max_length: cut
        row(5, 5, 5, STOP),
    ],
)
def test_rows_that_end_or_are_cut_pass(good: Encoded, renderer: Renderer, tmp_path: Path) -> None:
    require_ends(tmp_path, write(tmp_path, [good] * 3, []), renderer)
    require_ends(tmp_path, write(tmp_path, [row(STOP)], [good]), renderer)


@pytest.mark.parametrize(
    "bad",
    [
        row(5),
        row(STOP, 5),  # the stop of an earlier answer is not that of the last
        row(5, IGNORED),
        Encoded([9, 9, 5, STOP], [IGNORED, IGNORED, 5, IGNORED], 2),  # the end is masked out
    ],
)
def test_a_row_that_does_not_end_is_named(bad: Encoded, renderer: Renderer, tmp_path: Path) -> None:
    prepared = write(tmp_path, [row(STOP), bad, row(STOP), bad, bad, bad], [])
    with pytest.raises(DataError) as caught:
        require_ends(tmp_path, prepared, renderer)
    assert str(caught.value).startswith(
        "train.jsonl:2: the labels of 4 train rows (first: this one, train.jsonl:4, train.jsonl:5) "
        "do not end with "
    )
    assert "'<|im_end|>'" in str(caught.value)
    prepared = write(tmp_path, [row(STOP)], [row(STOP), bad])
    with pytest.raises(DataError, match=r"^validation.jsonl:2: the labels of 1 validation row "):
        require_ends(tmp_path, prepared, renderer)


def test_every_batch_of_a_large_file_is_checked(renderer: Renderer, tmp_path: Path) -> None:
    rows = [row(*[5] * (number % 3), STOP) for number in range(2 * ROWS_PER_BATCH + 9)]
    prepared = write(tmp_path, rows, [])
    require_ends(tmp_path, prepared, renderer)
    for place in (0, ROWS_PER_BATCH - 1, ROWS_PER_BATCH, len(rows) - 1):
        changed = [*rows[:place], row(5), *rows[place + 1 :]]
        prepared = write(tmp_path, changed, [])
        with pytest.raises(DataError) as caught:
            require_ends(tmp_path, prepared, renderer)
        assert caught.value.line == place + 1


def test_a_run_with_rows_that_do_not_end_does_not_begin(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()
    assert run(["prepare", str(recipe)]) == 0
    data = tmp_path / "runs" / "tiny" / "data"
    rows = read_split(data, "train").to_pylist()
    rows[4]["labels"][-1] = IGNORED
    file = str(split_file(data, "train"))
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as stream:
        stream.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
    prepared = load_dataset(data)
    assert prepared is not None
    save_dataset(replace(prepared, digests=split_digests(data)), data)  # as if prepared so
    capsys.readouterr()
    assert run(["train", str(recipe)]) == 1
    place = f"{rows[4]['file']}:{rows[4]['line']}: the labels of 1 train row "
    assert capsys.readouterr().err.startswith(place)
    assert not (tmp_path / "runs" / "tiny" / "run.json").exists()


# Measured


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = RunFolder(folder).read_manifest()["result"]
    return result


@pytest.mark.parametrize(
    ("mode", "precision"),
    [
        ("lora", "fp32"),
        ("full", "bf16"),
        ("qlora", "bf16"),
        *(
            pytest.param(m, "bf16", marks=pytest.mark.slow)
            for m in ("lora", "bottleneck", "prefix-tuning")
        ),
    ],
)
def test_measuring_leaves_the_trained_weights_alone(
    mode: str,
    precision: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ftcli.inference import endings

    original, before = endings.answer_prompts, {}
    folder = tmp_path / "runs" / "tiny"

    def watched(model: Any, prompts: Any, settings: Any, moved: Any) -> Any:
        before.update({p: sha256_file(p) for p in saved()})
        kept = {n: w.clone() for n, w in model.network.state_dict().items() if hasattr(w, "clone")}
        answers = original(model, prompts, settings, moved)
        after = model.network.state_dict()
        assert all(weight.equal(after[name]) for name, weight in kept.items())
        assert len(prompts) == 8 and settings.temperature == 0
        return answers

    def saved() -> list[Path]:
        found = RunFolder(folder).trained(), folder / "checkpoints"
        return sorted(p for place in found for p in place.rglob("*") if p.is_file())

    monkeypatch.setattr(endings, "answer_prompts", watched)
    training = {"max_steps": 2, "batch_size": 4, "precision": precision}
    generation = {"max_new_tokens": 4, "temperature": 0.7}
    recipe = write_recipe(method=METHODS[mode], training=training, generation=generation)
    assert run(["train", str(recipe)]) == 0
    assert before == {p: sha256_file(p) for p in saved()} and before
    assert 0 <= result_of(folder)["stop_rate"] <= 1
    assert result_of(folder)["stop_rate_rows"] == 8


@pytest.mark.parametrize("held_out", [0, 3])
def test_the_rate_is_of_validation_rows_or_else_of_training_rows(
    held_out: int,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ftcli.inference import endings
    from ftcli.inference.generation import Answer

    asked: list[tuple[list[list[int]], int]] = []

    def three_of_four(model: Any, prompts: Any, settings: Any, moved: Any) -> list[Answer]:
        asked.append((prompts, settings.max_new_tokens))
        return [Answer("", 1, number % 4 != 0) for number in range(len(prompts))]

    monkeypatch.setattr(endings, "answer_prompts", three_of_four)
    recipe = write_recipe(
        data={"train": "rows.jsonl", "validation": held_out, "max_length": 256},
        training={"max_steps": 1, "batch_size": 4},
        generation={"max_new_tokens": 9999},
    )
    assert run(["train", str(recipe)]) == 0
    folder = tmp_path / "runs" / "tiny"
    rows = read_split(folder / "data", "validation" if held_out else "train").to_pylist()[:8]
    lengths = [len(row["input_ids"]) - row["prompt_tokens"] for row in rows]
    prompts = [row["input_ids"][: row["prompt_tokens"]] for row in rows]
    assert asked == [(prompts, math.ceil(1.25 * max(lengths)))]
    result = result_of(folder)
    assert result["stop_rate_rows"] == len(rows) == (held_out or 8)
    assert result["stop_rate"] == (2 / 3 if held_out else 6 / 8)


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (torch.OutOfMemoryError(), "note: no memory left for sample answers"),
        (ModelError("generate", "a class cannot"), "note: no sample answers: a class cannot"),
    ],
)
def test_answers_that_fail_lose_no_run(
    error: Exception,
    note: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They begin when the memory of the steps is free again."""
    from ftcli.inference import endings

    done: list[str] = []

    def fails(*_: object) -> None:
        done.append("answers")
        raise error

    monkeypatch.setattr(endings, "free_memory", lambda: done.append("freed"))
    monkeypatch.setattr(endings, "answer_prompts", fails)
    assert run(["train", str(write_recipe(training={"max_steps": 1, "batch_size": 4}))]) == 0
    assert done == ["freed", "answers"]
    assert note in capsys.readouterr().err
    result = result_of(tmp_path / "runs" / "tiny")
    assert result["stop_rate"] is None and result["stop_rate_rows"] == 0
