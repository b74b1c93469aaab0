"""`ftcli prepare` gives advice on the rows, and asks the base with --try-prompting."""

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
from ftcli.evaluation.advice.prompting import PromptingResult
from tests.conftest import pair

Prepare = Callable[..., dict[str, Any]]
WriteRecipe = Callable[..., Path]

WORDS = [f"word{number}" for number in range(500)]
ANY_FORM = {"format": {"type": "regex", "pattern": r"[\s\S]*"}}


def save(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Runs `prepare --json` and gives what it prints."""

    def prepare(recipe: Path, *flags: str) -> dict[str, Any]:
        assert run(["prepare", str(recipe), *flags, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return prepare


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


def test_the_base_is_asked_with_examples_and_without(
    write_recipe: WriteRecipe, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()
    shown = prepare(recipe, "--try-prompting", "--shots", "2")
    prompting = shown["advice"]["prompting"]
    assert json.loads(advice_file(shown).read_text())["prompting"] == prompting
    assert (prompting["rows"], prompting["shots"]) == (30, 2)
    assert prompting["rows_from"] == {"test": 8, "train": 22}
    assert prompting["format"]["type"] == "regex"
    assert len(prompting["answers"]) == 30
    zero, few = prompting["zero_shot"], prompting["few_shot"]
    assert zero["prompt_tokens"] < few["prompt_tokens"]
    for side in (zero, few):
        for name in ("stop_rate", "format_rate", "exact_match", "rouge_l", "chrf"):
            low, high = side[f"{name}_interval"]
            assert 0 <= low <= side[name] <= high <= 1
        assert side["answer_tokens"] <= 8
    # A random model is never in the form.
    assert shown["advice"]["verdict"] == "prompt"
    first = shown["advice"]["sentences"][0]
    assert first.startswith("Prompting with 2 examples reaches 0% format valid (0–11%) on 30 rows.")
    assert prepare(recipe)["advice"]["prompting"] == prompting
    capsys.readouterr()
    assert run(["prepare", str(recipe), "--try-prompting", "--shots", "2"]) == 0
    assert "prompting" not in capsys.readouterr().err, "the same is asked once"
    other = prepare(recipe, "--set", "generation.max_new_tokens=4")
    assert other["advice"]["prompting"] is None


def test_without_held_out_rows_training_rows_are_asked(
    write_recipe: WriteRecipe, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(data={"train": "rows.jsonl", "validation": 0, "max_length": 256})
    prompting = prepare(recipe, "--try-prompting")["advice"]["prompting"]
    assert (prompting["rows_from"], prompting["shots"]) == ({"train": 30}, 5)
    # A context of 512 tokens holds some of them alone.
    prompting = prepare(recipe, "--try-prompting", "--shots", "20")["advice"]["prompting"]
    assert (prompting["shots_asked"], prompting["rows"]) == (20, 28) and 5 < prompting["shots"] < 20
    assert run(["prepare", str(recipe), "--try-prompting", "--shots", "48"]) == 1
    assert "all 48 training rows are examples" in capsys.readouterr().err


def test_prompting_that_is_enough_changes_the_verdict(
    write_recipe: WriteRecipe, prepare: Prepare
) -> None:
    """Here every answer has the form."""
    advice = prepare(write_recipe(eval=ANY_FORM), "--try-prompting")["advice"]
    assert advice["verdict"] == "fine-tune if called often"
    assert advice["sentences"][0] == (
        "Prompting already reaches 100% format valid (89–100%) on 30 rows: fine-tune only if you "
        "call it often."
    )
    assert advice["prompting"]["format"] == ANY_FORM["format"]


def test_answers_of_free_text_are_shown_next_to_the_references(
    tmp_path: Path,
    write_recipe: WriteRecipe,
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No score measures them."""
    from ftcli.inference.generation import Answer

    def answered(_model: object, prompts: Sequence[list[int]], *_: object) -> list[Answer]:
        return [Answer(f"after {len(ids)} tokens", 4, True) for ids in prompts]

    monkeypatch.setattr("ftcli.inference.generation.answer_prompts", answered)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(3, 12))) for _ in range(48)]
    save(tmp_path, [{"prompt": f"Item {n}?", "completion": text} for n, text in enumerate(texts)])
    recipe = write_recipe()
    advice = prepare(recipe, "--try-prompting", "--shots", "2")["advice"]
    prompting = advice["prompting"]
    assert prompting["decided_by"] == {} and advice["verdict"] == "prompt"
    assert advice["sentences"][0] == (
        "No score shows whether prompting is enough for free text: compare what the base wrote "
        "with 2 examples to your answers (30 in advice.json). 48 rows are few: under 100, a good "
        "prompt usually does better."
    )
    answers = prompting["answers"]
    assert len(answers) == 30 and {row["reference"] for row in answers} <= set(texts)
    assert all(row["prompt"].startswith("Item ") for row in answers)
    assert all(row["zero_shot"] != row["few_shot"] for row in answers)
    monkeypatch.setenv("COLUMNS", "100")
    assert run(["prepare", str(recipe), "--try-prompting", "--shots", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("\nprompt\n") == out.count("\nyour answer ") == 2
    assert out.count("base, 2 examples\n") == 2
    for row in answers[:2]:
        shown = out[out.index(f"  {row['prompt']}\n") :].splitlines()[2]
        assert shown.startswith(row["reference"].split()[0]) and shown.endswith(row["few_shot"])


@pytest.mark.parametrize(
    ("right", "low", "verdict", "words"),
    [
        (29, 0.833, "fine-tune if called often", "already reaches 97% exact match (83–99%)"),
        (27, 0.744, "fine-tune", "too few to show that it reaches 80%"),
        (23, 0.591, "fine-tune", "reaches 77% exact match (59–99%) on 30 rows. Good size"),
    ],
)
def test_the_lower_end_decides_whether_prompting_is_enough(
    right: int, low: float, verdict: str, words: str
) -> None:
    side = {"exact_match": right / 30, "exact_match_interval": [low, 0.994]}
    decided = {"exact_match": "exact match"}
    prompting = PromptingResult("", 30, {"test": 30}, 5, 5, None, decided, side, side, ())
    advice = advise_on(
        Advice(fingerprint="", rows=600, prompting=prompting), format_is_set=True, replays=True
    )
    assert advice.verdict == verdict
    assert words in advice.sentences[0]


def test_a_long_format_is_only_in_the_file() -> None:
    form = AnswerForm("labels", 1.0, "", {"type": "regex", "pattern": "a" * 200}, fixed=True)
    advice = advise_on(
        Advice(fingerprint="", rows=600, format=form), format_is_set=False, replays=True
    )
    assert advice.sentences[1] == "To measure that form: take the eval_format of advice.json"


def test_answers_are_stored_until_what_scores_them_changes(
    tmp_path: Path,
    write_recipe: WriteRecipe,
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = tmp_path / "record.json"
    schema.write_text('{"type": "object"}')
    recipe = write_recipe(eval={"format": {"type": "json", "schema": "record.json"}})
    prompting = prepare(recipe, "--try-prompting")["advice"]["prompting"]
    assert prepare(recipe)["advice"]["prompting"] == prompting
    schema.write_text('{"type": "object", "required": ["name"]}')
    assert prepare(recipe)["advice"]["prompting"] is None
    assert prepare(recipe, "--try-prompting")["advice"]["prompting"]["key"] != prompting["key"]
    monkeypatch.setattr("ftcli.evaluation.advice.prompting.code_digest", lambda: "another version")
    assert prepare(recipe)["advice"]["prompting"] is None


def test_stopped_prompting_leaves_the_advice_as_it_was(
    write_recipe: WriteRecipe,
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe()
    before = prepare(recipe)["advice"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ftcli.inference.generation.answer_prompts", stop)
    assert run(["prepare", str(recipe), "--try-prompting"]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert prepare(recipe)["advice"] == before


TABLE = "CREATE TABLE data (name, colour);"


@pytest.mark.parametrize(
    ("before", "tables"),
    [
        ([], True),
        ([("system", TABLE)], True),
        ([("user", TABLE), ("assistant", "Ask.")], True),
        # Words alone make no table.
        ([("user", "Let us create table tennis records."), ("assistant", "Ask.")], False),
    ],
)
def test_queries_are_scored_by_their_results_if_a_turn_has_tables(
    tmp_path: Path,
    write_recipe: WriteRecipe,
    prepare: Prepare,
    before: list[tuple[str, str]],
    tables: bool,
) -> None:
    """The form alone is not enough: prompting must reach right results."""
    rows = []
    for n in range(48):
        asked = f"Of kettle {n}?" if before else f"{TABLE}\n\nQuestion: of kettle {n}?"
        query = f"SELECT colour FROM data WHERE name = 'kettle {n}'"
        turns = [*before, ("user", asked), ("assistant", query)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    save(tmp_path, rows)
    advice = prepare(write_recipe(), "--try-prompting", "--shots", "2")["advice"]
    assert advice["format"]["eval_format"].get("table") == ("prompt" if tables else None)
    right = "execution_match" if tables else "sql_match"
    assert list(advice["prompting"]["decided_by"]) == ["format_rate", right]
    if tables:
        assert "and 0% same result (" in advice["sentences"][0]
