"""data.replay: general rows mixed into the task's: drawn, counted, and never held out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.config import recipe as recipes
from ftcli.data import replay as replay_data
from ftcli.data.dataset import Dataset, load_dataset
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.data.tokenizing.replayed import ReplaySampler
from ftcli.errors import DataError
from tests.commands.test_training import adapter_digest, stop_at, train
from tests.conftest import pair
from tests.tiers import tiers

TASK = {"train": "rows.jsonl", "validation": 8, "test": 8, "max_length": 64}
# Of 48 rows 32 are trained on; with a fifth of all rows replayed, 8 more.
SHARE, REPLAYED = 0.2, 8


def text(number: int) -> str:
    return f"Chapter {number}: of rivers, hills and weather, in its own words."


@pytest.fixture
def general(tmp_path: Path) -> Path:
    """Twenty plain texts, one of them longer than any row may be."""
    path = tmp_path / "general.jsonl"
    texts = [text(number) for number in range(19)] + ["On and on. " * 60]
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return path


Prepare = Callable[..., tuple[dict[str, Any], Dataset, str]]


@pytest.fixture
def prepare(write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Prepare:
    """The JSON, the dataset and the messages of `ftcli prepare`."""

    def ask(**data: Any) -> tuple[dict[str, Any], Dataset, str]:
        recipe = write_recipe(data={**TASK, **data})
        capsys.readouterr()
        assert run(["prepare", str(recipe), "--json"]) == 0
        out, said = capsys.readouterr()
        found = json.loads(out)
        prepared = load_dataset(Path(found["run_dir"], "data"))
        assert prepared is not None
        folder = Path(found["run_dir"], "data")
        found["rows"] = {name: read_split(folder, name).to_pylist() for name in prepared.row_files}
        return found, prepared, said

    return ask


def replaying(source: str = "general.jsonl", ratio: float = SHARE) -> dict[str, Any]:
    return {"source": source, "ratio": ratio}


def rows_of(found: dict[str, Any], split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = found["rows"][split]
    return rows


def test_replayed_rows_stand_apart_from_the_tasks_and_in_no_other_count(
    prepare: Prepare, general: Path
) -> None:
    plain, alone, _ = prepare()
    found, prepared, _ = prepare(replay=replaying())
    assert (found["replay_rows"], found["replay_source"]) == (REPLAYED, "general.jsonl")
    assert plain["replay_rows"] == 0 and plain["replay_source"] is None
    for name in ("rows_read", "rows_accepted", "train_rows", "train_tokens", "label_tokens"):
        assert found[name] == plain[name]
    drawn = rows_of(found, "replay")
    assert rows_of(found, "train") == rows_of(plain, "train"), "the task's rows stay what they were"
    assert {row["file"] for row in drawn} == {"general.jsonl"}
    train = [*rows_of(found, "train"), *drawn]
    assert len(drawn) == REPLAYED and len({row["line"] for row in drawn}) == REPLAYED
    assert found["replay_tokens"] == sum(len(row["input_ids"]) for row in drawn)
    every = prepared.epoch_counts
    assert every.rows == len(train)
    assert every.tokens == sum(len(row["input_ids"]) for row in train)
    assert every.label_tokens == sum(sum(label != -100 for label in row["labels"]) for row in train)
    assert prepared.replay is not None
    assert replace(prepared, replay=None).epoch_counts == alone.epoch_counts


def test_replayed_rows_are_proven_as_all_others(prepare: Prepare, general: Path) -> None:
    found, prepared, _ = prepare(replay=replaying())
    assert prepared.digests.keys() == {"train", "validation", "test", "replay"}
    (Path(found["run_dir"], "data") / "replay.arrow").unlink()
    again, _, said = prepare(replay=replaying())
    assert "replay.arrow: is gone; the rows are prepared again" in said
    assert again == found
    prepare()
    assert not (Path(found["run_dir"], "data") / "replay.arrow").exists()


def test_what_is_held_out_is_the_same_with_and_without(prepare: Prepare, general: Path) -> None:
    plain, with_replay = prepare()[0], prepare(replay=replaying())[0]
    for split in ("validation", "test"):
        assert rows_of(plain, split) == rows_of(with_replay, split)
    assert {row["file"] for row in rows_of(with_replay, "validation")} == {"rows.jsonl"}


def test_another_source_or_share_is_another_fingerprint(prepare: Prepare, general: Path) -> None:
    first = prepare()[0]["fingerprint"]
    second = prepare(replay=replaying())[0]["fingerprint"]
    third = prepare(replay=replaying(ratio=0.1))[0]["fingerprint"]
    general.write_text(general.read_text() + json.dumps({"text": "one more"}) + "\n")
    fourth = prepare(replay=replaying(ratio=0.1))[0]["fingerprint"]
    assert len({first, second, third, fourth}) == 4


def test_a_greater_share_adds_to_what_a_smaller_one_draws(prepare: Prepare, general: Path) -> None:
    def lines() -> set[int]:
        drawn = rows_of(found, "replay")
        return {row["line"] if moved is None else moved[row["line"]] for row in drawn}

    moved: dict[int, int] | None = None
    found = prepare(replay=replaying(ratio=0.1))[0]
    few = lines()
    found = prepare(replay=replaying(ratio=0.2))[0]
    many = lines()
    assert few < many
    whole = general.read_text().splitlines()
    general.write_text("".join(line + "\n" for line in reversed(whole)))
    moved = {len(whole) - number: number + 1 for number in range(len(whole))}
    found = prepare(replay=replaying(ratio=0.2))[0]
    assert lines() == many, "the order in the file decides nothing"


def test_a_long_text_is_cut_and_counted_apart(prepare: Prepare, general: Path) -> None:
    lines = general.read_text().splitlines()
    general.write_text((lines[-1] + "\n") * 3)
    found, prepared, said = prepare(replay=replaying(ratio=0.03))
    counts = prepared.replay
    assert counts is not None and (counts.rows, counts.texts_cut, counts.duplicates) == (1, 1, 2)
    (row,) = rows_of(found, "replay")
    assert len(row["input_ids"]) == 64 and counts.tokens_cut > 100
    assert found["answer_tokens_lost"] == 0 and "cuts" not in said
    assert found["longest_row"]["file"] == "general.jsonl"


def test_any_format_is_recognised_on_its_own(
    prepare: Prepare, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    """The task's columns, template and system prompt are not those of the source."""
    turns = [
        {"conversations": [{"from": "human", "value": f"Q{n}?"}, {"from": "gpt", "value": "Yes."}]}
        for n in range(12)
    ]
    (tmp_path / "chats.json").write_text(json.dumps(turns))
    found, prepared, _ = prepare(
        format="columns",
        prompt="List: {prompt}",
        completion="completion",
        system="You sell.",
        replay=replaying("chats.json"),
    )
    assert prepared.replay is not None and prepared.replay.rows == REPLAYED
    drawn = rows_of(found, "replay")
    assert {json.loads(row["messages"])[0][0] for row in drawn} == {"user"}
    assert not prepared.plain_text


def test_what_is_asked_in_a_held_out_row_is_not_replayed(prepare: Prepare, tmp_path: Path) -> None:
    """Also where the task's rows have a system prompt before the question."""
    rows = [{**pair(number), "completion": "Another answer."} for number in range(48)]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for system in (None, "You sell."):
        found, prepared, _ = prepare(system=system, replay=replaying("same.jsonl", 0.5))
        assert prepared.replay is not None
        assert (prepared.replay.held_out, prepared.replay.rows) == (16, 32)
        asked = {
            name: {json.loads(row["messages"])[-2][1] for row in rows_of(found, name)}
            for name in prepared.row_files
        }
        assert not asked["replay"] & (asked["validation"] | asked["test"])


def test_too_few_rows_are_taken_once_each_with_a_warning(
    prepare: Prepare, general: Path, write_recipe: Callable[..., Path]
) -> None:
    found, _, said = prepare(replay=replaying(ratio=0.5))
    assert found["replay_rows"] == 20
    assert (
        "warning: data.replay: general.jsonl has 20 rows to replay, and ratio 0.5 asks for 32: all "
        "are taken, once each (38.5% of the rows)" in said
    )
    _, _, again = prepare(replay=replaying(ratio=0.5))
    assert "asks for 32" in again, "also where the rows are found prepared"


def test_conversations_that_do_not_fit_are_passed_over_for_others(
    prepare: Prepare, tmp_path: Path
) -> None:
    long = [{"prompt": f"Q{n}", "completion": "word " * 200} for n in range(30)]
    short = [{"prompt": f"P{n}", "completion": "a word"} for n in range(10)]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(r) + "\n" for r in long + short))
    _, prepared, _ = prepare(replay=replaying("mixed.jsonl"))
    counts = prepared.replay
    assert counts is not None
    assert counts.rows == REPLAYED and 0 < counts.too_long <= 30


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ('{"prompt": "Q", "completion": "' + "word " * 200 + '"}\n', "1 too long"),
        ('{"text": ""}\n', "1 unreadable); nothing.jsonl:1 text is empty"),
        ("", "none of 0 rows can be replayed"),
    ],
)
def test_nothing_to_replay_is_an_error(
    content: str | None,
    words: str,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "nothing.jsonl").write_text(content)
    recipe = write_recipe(data={**TASK, "replay": replaying("nothing.jsonl")})
    assert run(["prepare", str(recipe)]) == 1
    said = capsys.readouterr().err
    assert "nothing.jsonl: " in said and words in said and "Traceback" not in said


def test_a_text_task_may_replay_conversations(
    prepare: Prepare, general: Path, rows_file: Path
) -> None:
    found, prepared, _ = prepare(
        train="general.jsonl",
        validation=4,
        test=0,
        too_long="truncate",
        replay=replaying("rows.jsonl"),
    )
    assert prepared.plain_text and found["replay_rows"] == 4
    assert all(row["messages"] != "[]" for row in rows_of(found, "replay"))


# Training


TRAINING = {"epochs": 1, "batch_size": 4, "eval_steps": 5, "micro_batch_size": 2}


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_weights_and_a_further_one_goes_on(
    write_recipe: Callable[..., Path],
    general: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {**TASK, "replay": replaying()}
    method = {"mode": "lora", "rank": 4, "dropout": 0.1}
    whole = write_recipe("whole", method=method, data=data, training=TRAINING)
    assert train(whole) == 0
    assert "32 task + 8 replay rows" in capsys.readouterr().err
    stopped = write_recipe("stopped", method=method, data=data, training=TRAINING)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert train(stopped) == 130
    assert train(stopped) == 0
    runs = tmp_path / "runs"
    assert adapter_digest(runs / "stopped") == adapter_digest(runs / "whole")
    manifest = json.loads((runs / "whole" / "run.json").read_text())
    assert manifest["result"]["steps"] == 10, "32 + 8 rows, 4 a step"
    counts = manifest["replay"]
    assert counts["source"] == "general.jsonl"
    assert (counts["task_rows"], counts["replay_rows"]) == (32, 8)
    further = write_recipe("further", method=method, data=data, training=TRAINING)
    assert train(further, "--from", str(runs / "whole")) == 0
    general.write_text(general.read_text() + json.dumps({"text": "one more"}) + "\n")
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert train(whole, "--fresh") == 130
    general.write_text(general.read_text() + json.dumps({"text": "and another"}) + "\n")
    capsys.readouterr()
    assert train(whole) == 1
    assert "rows of data.replay: " in capsys.readouterr().err


def test_the_first_validation_is_that_of_a_run_without(
    write_recipe: Callable[..., Path], general: Path, tmp_path: Path
) -> None:
    training = {**TRAINING, "max_steps": 1, "precision": "fp32"}
    for name, more in (("with", {"replay": replaying()}), ("without", {})):
        assert train(write_recipe(name, data={**TASK, **more}, training=training)) == 0
    with_replay, without = (
        json.loads((tmp_path / "runs" / name / "run.json").read_text())["result"]
        for name in ("with", "without")
    )
    assert with_replay["first_eval_loss"] == without["first_eval_loss"]


# How often the source is read


def drawn_one_by_one(replay: ReplaySampler, renderer: Renderer) -> list[tuple[str, list[int]]]:
    """As the rows are defined: as many as are missing are drawn, again and again."""
    found: list[tuple[str, list[int]]] = []
    waiting = iter(replay.source.order)
    while chosen := set(islice(waiting, replay.counts.wanted - len(found))):
        for example in replay.source.rows(chosen):
            ids = renderer.encode(example).input_ids
            if len(ids) <= replay.max_length:
                found.append((str(example.origin), ids))
    return found


@pytest.mark.parametrize(
    ("fitting", "wanted"),
    tiers([(12, 20), (12, 1), (2, 30), (3, 200), (0, 5)], (12, 20), (0, 5)),
)
def test_where_few_rows_fit_the_same_are_drawn_in_few_passes(
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    fitting: int,
    wanted: int,
) -> None:
    """`fitting` of 24 rows fit; wanted rows may also be more than there are."""
    from transformers import AutoTokenizer

    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model))
    rows = [
        {"prompt": f"Q{n}", "completion": "Yes." if n % 24 < fitting else "word " * 60}
        for n in range(960)
    ]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    passes = []
    original = replay_data.replayed_examples

    def counted(*given: Any) -> Any:
        passes.append(given)
        return original(*given)

    monkeypatch.setattr(replay_data, "replayed_examples", counted)
    wants = recipes.Replay(source="mixed.jsonl")
    source = replay_data.read_source(wants, 7, set(), lambda: None)

    def replay() -> ReplaySampler:
        return ReplaySampler(source, wanted, max_length=64)

    passes.clear()
    expected = drawn_one_by_one(replay(), renderer)
    once_each = len(passes)
    passes.clear()
    fresh = replay()
    found = []
    if fitting:
        found = [(str(e.origin), row.input_ids) for e, row in fresh.draw(renderer)]
    else:
        with pytest.raises(DataError, match="960 too long"):
            list(fresh.draw(renderer))
    assert sorted(found) == sorted(expected)
    counts = fresh.counts
    assert counts.rows == len(expected) == min(wanted, fitting * 40)
    assert counts.rows + counts.too_long <= 960
    assert counts.tokens == sum(len(ids) for _, ids in found)
    if once_each > 6:
        assert len(passes) <= once_each / 3
    assert len(passes) <= 6
