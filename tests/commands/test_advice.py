"""`ftcli prepare` gives advice on the rows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftcli.cli import run
from ftcli.evaluation.advice.advice import Advice, advise_on
from ftcli.evaluation.advice.answer_form import AnswerForm
from tests.conftest import pair

Prepare = Callable[..., dict[str, Any]]
WriteRecipe = Callable[..., Path]

WORDS = [f"word{number}" for number in range(500)]


def save(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def advice_file(shown: dict[str, Any]) -> Path:
    return Path(shown["run_dir"], "data") / "advice.json"


def test_advice_is_shown_and_kept_with_the_rows(
    write_recipe: WriteRecipe, prepare: Prepare
) -> None:
    shown = prepare(write_recipe())
    advice, kept = shown["advice"], json.loads(advice_file(shown).read_text())
    assert kept == {"version": 3, "fingerprint": shown["fingerprint"], **advice}
    assert advice["rows"] == 48 == shown["rows_accepted"]
    assert advice["verdict"] == "prompt"
    assert advice["sentences"][0].startswith("48 rows are few: under 100")
    assert advice["format"]["kind"] == "lines" and advice["format"]["share"] == 1
    assert advice["prompting"] is None
    counts = json.loads((Path(shown["run_dir"], "data") / "prepared.json").read_text())
    tokens = sum(counts[split]["tokens"] for split in ("train", "validation", "test"))
    assert sum(advice["lengths"][side]["total"] for side in ("prompt", "answer")) == tokens


def test_advice_is_read_while_the_rows_are_the_same(
    tmp_path: Path, write_recipe: WriteRecipe, prepare: Prepare
) -> None:
    recipe = write_recipe()
    shown = prepare(recipe)
    file = advice_file(shown)
    before = file.stat().st_mtime_ns
    assert prepare(recipe)["advice"] == shown["advice"]
    assert file.stat().st_mtime_ns == before
    whole = file.read_text()
    for broken in ("", "[]", "{", whole.replace('"version": 3', '"version": 2')):
        file.write_text(broken)
        assert prepare(recipe)["advice"] == shown["advice"]
        assert file.read_text() == whole
    save(tmp_path, [pair(number) for number in range(60)])
    assert prepare(recipe)["advice"]["rows"] == 60


def test_rows_are_prepared_without_advice_where_it_fails(
    write_recipe: WriteRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such statistics")

    monkeypatch.setattr("ftcli.evaluation.advice.advice.statistics_of", fail)
    assert run(["prepare", str(write_recipe())]) == 0
    out, err = capsys.readouterr()
    assert "warning: no advice on these rows: RuntimeError: no such statistics" in err
    assert out.splitlines()[-1].startswith("48 rows are few")


def test_noise_in_the_rows_is_named(
    tmp_path: Path, write_recipe: WriteRecipe, prepare: Prepare
) -> None:
    """Contradictions, near duplicates, a shared instruction, and leaks that are nearly equal."""
    draw = random.Random(0)
    rows = [" ".join(draw.choices(WORDS, k=40)) for _ in range(120)]
    ask = "Which team answers this ticket? Name the team alone and nothing else, please.\n\n"
    train = [{"prompt": ask + text, "completion": "AB"[n % 2] * 3} for n, text in enumerate(rows)]
    train += [{"prompt": train[n]["prompt"].upper(), "completion": "CCC"} for n in range(6)]
    near = [row | {"prompt": row["prompt"] + " soon"} for row in train[10:30]]
    save(tmp_path, [*train, *near])
    held_out = [row | {"prompt": row["prompt"] + " today"} for row in train[40:47]]
    save(tmp_path, held_out, "test.jsonl")
    data = {"train": "rows.jsonl", "test": "test.jsonl", "validation": 0, "max_length": 512}
    advice = prepare(write_recipe(data=data))["advice"]
    assert advice["format"]["kind"] == "labels" and advice["format"]["fixed"]
    same = advice["same_prompt_different_answers"]
    assert (same["prompts"], same["rows"]) == (6, 12)
    duplicates = advice["near_duplicates"]
    assert duplicates["rows"] == 2 * 20 + 2 * 6
    assert duplicates["disagreeing"] == 6
    held = duplicates["held_out"]
    assert held["rows"] == held["rows_looked_at"] == 7
    assert 0 < advice["instruction"]["share_of_prompts"] < 1
    text = " ".join(advice["sentences"])
    for words in (
        "7 of 7 held-out rows nearly equal a training row (test.jsonl:1 and rows.jsonl:41)",
        "To measure that form: eval: {format: {type: regex, pattern: AAA|BBB|CCC}}",
        "6 prompts have several answers (12 rows, for example rows.jsonl:1 and rows.jsonl:121)",
        "36% of 146 training rows nearly equal another",
        "6 rows have a nearly equal row with another label",
    ):
        assert words in text


def test_the_proposed_format_is_a_block_of_the_recipe(
    tmp_path: Path, write_recipe: WriteRecipe, prepare: Prepare
) -> None:
    """Pasted, it is not proposed again."""
    save(tmp_path, [pair(number) for number in range(128)])
    recipe = write_recipe()
    sentences = prepare(recipe)["advice"]["sentences"]
    block = next(s.partition(": ")[2] for s in sentences if s.startswith("To measure"))
    assert set(yaml.safe_load(block)) == {"eval"}
    recipe.write_text(f"{recipe.read_text()}{block}\n")
    after = prepare(recipe)["advice"]["sentences"]
    assert after == [s for s in sentences if not s.startswith("To measure")]


def test_replayed_rows_are_none_of_the_tasks(
    tmp_path: Path, write_recipe: WriteRecipe, prepare: Prepare
) -> None:
    general = [{"prompt": f"Tell me of {n}.", "completion": f"No. {n}"} for n in range(40)]
    save(tmp_path, general, "general.jsonl")
    data = {"train": "rows.jsonl", "validation": 8, "test": 8, "max_length": 256}
    alone = prepare(write_recipe("alone", data=data))["advice"]
    replay = {"source": "general.jsonl", "ratio": 0.3}
    with_replay = prepare(write_recipe("with_replay", data=data | {"replay": replay}))
    assert with_replay["replay_rows"] > 0
    proposed = [s for s in alone["sentences"] if "data.replay: builtin" in s]
    assert len(proposed) == 1
    alone["sentences"].remove(proposed[0])
    assert with_replay["advice"] == alone


def test_plain_texts_have_only_lengths(
    tmp_path: Path,
    write_recipe: WriteRecipe,
    prepare: Prepare,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path, [{"text": f"A red kettle, number {number}."} for number in range(48)])
    recipe = write_recipe()
    advice = prepare(recipe)["advice"]
    assert advice["format"] is advice["near_duplicates"] is advice["instruction"] is None
    assert advice["lengths"]["prompt"]["max"] == 0 < advice["lengths"]["answer"]["max"]
    assert run(["prepare", str(recipe), "--try-prompting"]) == 1
    assert "plain texts have no prompts" in capsys.readouterr().err


def test_near_duplicates_are_searched_in_whole_batches_of_many_rows(
    tmp_path: Path,
    write_recipe: WriteRecipe,
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lengths and contradictions are of all rows."""
    monkeypatch.setattr("ftcli.evaluation.advice.row_statistics.COMPARED_ROWS", 600)
    save(tmp_path, [pair(number) for number in range(1500)])
    data = {"train": "rows.jsonl", "validation": 0, "max_length": 256}
    advice = prepare(write_recipe(data=data))["advice"]
    assert advice["rows"] == 1500 == sum(advice["lengths"]["histogram"]["prompt"])
    assert advice["near_duplicates"]["rows_looked_at"] == 512


@pytest.mark.parametrize("columns", [60, 120])
def test_advice_fits_the_terminal(
    tmp_path: Path,
    write_recipe: WriteRecipe,
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    save(tmp_path, [pair(number) for number in range(128)])
    assert run(["prepare", str(write_recipe())]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("128 rows are enough"))
    assert max(map(len, lines[first:])) <= columns
    assert "have the same kinds of lines" in " ".join(" ".join(lines[first:]).split())


def test_a_long_format_is_only_in_the_file() -> None:
    form = AnswerForm("labels", 1.0, "", {"type": "regex", "pattern": "a" * 200}, fixed=True)
    advice = advise_on(
        Advice(fingerprint="", rows=600, format=form), format_is_set=False, replays=True
    )
    assert advice.sentences[1] == "To measure that form: take the eval_format of advice.json"
