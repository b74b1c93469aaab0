"""`ftcli prepare --try-prompting`: the base is asked, with and without examples."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.evaluation.advice.advice import Advice, advise_on
from ftcli.evaluation.advice.prompting import PromptingResult
from tests.tiers import tiers

Prepare = Callable[..., dict[str, Any]]
WriteRecipe = Callable[..., Path]

WORDS = [f"word{number}" for number in range(500)]
ANY_FORM = {"format": {"type": "regex", "pattern": r"[\s\S]*"}}
TABLE = "CREATE TABLE data (name, colour);"


def save(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def advice_file(shown: dict[str, Any]) -> Path:
    return Path(shown["run_dir"], "data") / "advice.json"


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


BEFORE: list[tuple[list[tuple[str, str]], bool]] = [
    ([], True),
    ([("system", TABLE)], True),
    ([("user", TABLE), ("assistant", "Ask.")], True),
    # Words alone make no table.
    ([("user", "Let us create table tennis records."), ("assistant", "Ask.")], False),
]


@pytest.mark.parametrize(("before", "tables"), tiers(BEFORE, BEFORE[2], BEFORE[3]))
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
