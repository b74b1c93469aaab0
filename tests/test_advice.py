"""`ftcli prepare` ends with advice on these rows; the base can be asked, and a price told."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import validate

from ftcli.cli import run
from ftcli.stages.advice.wording import advise_on
from tests.conftest import pair
from tests.json_shapes import SHAPES

WORDS = [f"word{number}" for number in range(500)]


def save(folder: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text)


@pytest.fixture
def prepared(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What `prepare --json` says."""

    def prepare(recipe: Path, *flags: str) -> dict[str, Any]:
        assert run(["prepare", str(recipe), *flags, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return prepare


def kept(told: dict[str, Any]) -> dict[str, Any]:
    """advice.json beside the preparation."""
    found: dict[str, Any] = json.loads((Path(told["folder"]) / "advice.json").read_text())
    return found


def test_advice_is_told_and_kept_beside_the_rows(
    write_recipe: Callable[..., Path], prepared: Callable[..., dict[str, Any]]
) -> None:
    told = prepared(write_recipe())
    advice, file = told["advice"], kept(told)
    assert file["fingerprint"] == told["fingerprint"]
    assert {name: file[name] for name in advice} == advice
    assert advice["rows"] == 48 == told["rows_accepted"]
    assert advice["verdict"] == "prompt"
    assert advice["sentences"][0].startswith("48 rows are few: under 100")
    assert advice["format"]["kind"] == "lines" and advice["format"]["share"] == 1
    assert advice["probe"] is None
    lengths = advice["lengths"]
    assert lengths["prompt"]["total"] + lengths["answer"]["total"] == sum(
        told[name] for name in ("train_tokens",)
    ) + sum(_tokens(told, split) for split in ("validation", "test"))


def _tokens(told: dict[str, Any], split: str) -> int:
    prepared = json.loads((Path(told["folder"]) / "prepared.json").read_text())
    return int(prepared[split]["tokens"])


def test_advice_is_looked_up_while_the_rows_are_the_same(
    tmp_path: Path, write_recipe: Callable[..., Path], prepared: Callable[..., dict[str, Any]]
) -> None:
    recipe = write_recipe()
    told = prepared(recipe)
    file = Path(told["folder"]) / "advice.json"
    before = file.stat().st_mtime_ns
    assert prepared(recipe)["advice"] == told["advice"]
    assert file.stat().st_mtime_ns == before
    for broken in ("", "[]", "{", json.dumps({"version": 0})):
        file.write_text(broken)
        assert prepared(recipe)["advice"] == told["advice"]
        assert kept(told)["rows"] == 48
    save(tmp_path, [pair(number) for number in range(60)])
    again = prepared(recipe)
    assert again["advice"]["rows"] == kept(again)["rows"] == 60


def test_rows_are_prepared_whatever_becomes_of_the_advice(
    write_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such statistics")

    monkeypatch.setattr("ftcli.stages.advice.statistics_of", fail)
    assert run(["prepare", str(write_recipe())]) == 0
    out, err = capsys.readouterr()
    assert "warning: no advice on these rows: RuntimeError: no such statistics" in err
    assert out.splitlines()[-1].startswith("48 rows are few")


def test_noise_in_the_rows_is_named(
    tmp_path: Path, write_recipe: Callable[..., Path], prepared: Callable[..., dict[str, Any]]
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
    text = "".join(json.dumps(row) + "\n" for row in held_out)
    (tmp_path / "test.jsonl").write_text(text)
    told = prepared(
        write_recipe(
            data={"train": "rows.jsonl", "test": "test.jsonl", "validation": 0, "max_length": 512}
        )
    )
    advice = told["advice"]
    assert advice["format"]["kind"] == "labels" and advice["format"]["fixed"]
    same = advice["same_prompt_different_answers"]
    assert (same["prompts"], same["rows"]) == (6, 12)
    assert same["shown"][0] == ["rows.jsonl:1", "rows.jsonl:121"]
    twins = advice["near_duplicates"]
    assert twins["rows"] == 2 * 20 + 2 * 6
    assert twins["disagreeing"] == 6
    assert twins["share"] == twins["rows"] / 146
    first, second, similarity = twins["held_out"]["pairs_shown"][0]
    assert (first, second) == ("rows.jsonl:41", "test.jsonl:1") and 0.8 <= similarity < 1
    assert twins["held_out"]["rows"] == twins["held_out"]["rows_looked_at"] == 7
    assert 0 < advice["instruction"]["share_of_prompts"] < 1
    text = " ".join(advice["sentences"])
    for words in (
        "7 of 7 held-out rows nearly equal a training row (test.jsonl:1 and rows.jsonl:41)",
        "To measure that form: eval: {format: {type: regex, pattern: AAA|BBB|CCC}}",
        "6 prompts have several answers (12 rows, such as rows.jsonl:1 and rows.jsonl:121)",
        "36% of 146 training rows nearly equal another",
        "6 rows have another label than a nearly equal row",
    ):
        assert words in text


def test_what_is_suggested_is_a_block_of_the_recipe(
    tmp_path: Path, write_recipe: Callable[..., Path], prepared: Callable[..., dict[str, Any]]
) -> None:
    """Pasted, it is not suggested again."""
    save(tmp_path, [pair(number) for number in range(128)])
    recipe = write_recipe()
    sentences = prepared(recipe)["advice"]["sentences"]
    block = next(s.partition(": ")[2] for s in sentences if s.startswith("To measure"))
    assert set(yaml.safe_load(block)) == {"eval"}
    recipe.write_text(f"{recipe.read_text()}{block}\n")
    after = prepared(recipe)["advice"]["sentences"]
    assert after == [s for s in sentences if not s.startswith("To measure")]


def test_replayed_rows_are_none_of_the_tasks(
    tmp_path: Path, write_recipe: Callable[..., Path], prepared: Callable[..., dict[str, Any]]
) -> None:
    general = [{"prompt": f"Tell me of {n}.", "completion": f"No. {n}"} for n in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in general)
    (tmp_path / "general.jsonl").write_text(text)
    data = {"train": "rows.jsonl", "validation": 8, "test": 8, "max_length": 256}
    alone = prepared(write_recipe("alone", data=data))["advice"]
    replay = {"source": "general.jsonl", "share": 0.3}
    beside = prepared(write_recipe("beside", data=data | {"replay": replay}))
    assert beside["replay_rows"] > 0
    assert beside["advice"] == alone


def test_of_plain_texts_only_lengths_are_told(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    prepared: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path, [{"text": f"A red kettle, number {number}."} for number in range(48)])
    recipe = write_recipe()
    advice = prepared(recipe)["advice"]
    assert advice["format"] is None and advice["near_duplicates"] is None
    assert advice["lengths"]["prompt"]["max"] == 0 < advice["lengths"]["answer"]["max"]
    assert run(["prepare", str(recipe), "--probe"]) == 1
    assert "plain texts have no prompts to ask" in capsys.readouterr().err


def test_many_rows_are_looked_at_in_part(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    prepared: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lengths and contradictions are of all rows, twins of whole batches of them."""
    monkeypatch.setattr("ftcli.stages.advice.statistics.COMPARED_ROWS", 600)
    save(tmp_path, [pair(number) for number in range(1500)])
    data = {"train": "rows.jsonl", "validation": 0, "max_length": 256}
    advice = prepared(write_recipe(data=data))["advice"]
    assert advice["rows"] == 1500 == sum(advice["lengths"]["histogram"]["prompt"])
    assert advice["near_duplicates"]["rows_looked_at"] == 512
    assert any("of 512 training rows" in s for s in advice["sentences"]) == (
        advice["near_duplicates"]["share"] >= 0.02
    )


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_advice_fits_the_terminal(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
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
    write_recipe: Callable[..., Path],
    prepared: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe()
    told = prepared(recipe, "--probe", "--shots", "2")
    probe = told["advice"]["probe"]
    assert kept(told)["probe"] == probe
    assert (probe["rows"], probe["data"], probe["shots"]) == (30, "test and train", 2)
    assert probe["rows_from"] == {"test": 8, "train": 22}
    assert probe["format_from"] == "answers" and probe["format"]["type"] == "regex"
    zero, few = probe["zero_shot"], probe["few_shot"]
    assert zero["prompt_tokens"] < few["prompt_tokens"]
    for side in (zero, few):
        for name in ("stop_rate", "format_rate", "exact_match", "rouge_l", "chrf"):
            low, high = side[f"{name}_interval"]
            assert 0 <= low <= side[name] <= high <= 1
        assert side["answer_tokens"] <= 8
    # A random model is never in the form.
    assert told["advice"]["verdict"] == "prompt"
    first = told["advice"]["sentences"][0]
    assert first.startswith("Prompting with 2 examples reaches 0% format valid (0–11%) on 30 rows.")
    assert prepared(recipe)["advice"]["probe"] == probe
    capsys.readouterr()
    assert run(["prepare", str(recipe), "--probe", "--shots", "2"]) == 0
    assert "probe" not in capsys.readouterr().err, "the same is asked once"
    other = prepared(recipe, "--set", "generation.max_new_tokens=4")
    assert other["advice"]["probe"] is None


def test_without_held_out_rows_training_rows_are_asked(
    write_recipe: Callable[..., Path],
    prepared: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(data={"train": "rows.jsonl", "validation": 0, "max_length": 256})
    probe = prepared(recipe, "--probe")["advice"]["probe"]
    assert (probe["rows"], probe["data"], probe["shots"]) == (30, "train", 5)
    # A context of 512 tokens holds some of them alone.
    probe = prepared(recipe, "--probe", "--shots", "20")["advice"]["probe"]
    assert (probe["shots_asked"], probe["rows"]) == (20, 28) and 5 < probe["shots"] < 20
    assert run(["prepare", str(recipe), "--probe", "--shots", "48"]) == 1
    assert "48 training rows are all needed as examples" in capsys.readouterr().err


def test_prompting_that_does_is_told(
    write_recipe: Callable[..., Path], prepared: Callable[..., dict[str, Any]]
) -> None:
    """Here whatever is answered has the form."""
    eval_ = {"format": {"type": "regex", "pattern": r"[\s\S]*"}}
    told = prepared(write_recipe(eval=eval_), "--probe")
    assert told["advice"]["verdict"] == "fine-tune if called often"
    first = told["advice"]["sentences"][0]
    assert first == (
        "Prompting already reaches 100% format valid (89–100%) on 30 rows: fine-tune only if you "
        "call it often."
    )
    assert told["advice"]["probe"]["format_from"] == "recipe"


def test_few_rows_do_not_show_that_prompting_does(
    tmp_path: Path, write_recipe: Callable[..., Path], prepared: Callable[..., dict[str, Any]]
) -> None:
    """Four of four are right, and of all calls perhaps half."""
    save(tmp_path, [pair(number) for number in range(9)])
    data = {"train": "rows.jsonl", "test": 2, "validation": 0, "max_length": 256}
    eval_ = {"format": {"type": "regex", "pattern": r"[\s\S]*"}}
    told = prepared(write_recipe(data=data, eval=eval_), "--probe")["advice"]
    assert told["probe"]["rows_from"] == {"test": 2, "train": 2}
    assert told["verdict"] == "prompt"
    assert told["sentences"][0].startswith(
        "Prompting with 5 examples reaches 100% format valid (51–100%) on 4 rows: too few to show "
        "that it reaches 80%. 9 rows are few"
    )


def test_the_lower_end_decides_whether_prompting_does() -> None:
    """As 27 and 29 right ones of 30."""
    names = ("near_duplicates", "format", "same_prompt_different_answers", "instruction")
    found = {"rows": 600, **dict.fromkeys(names)}

    def said(share: float, low: float, high: float) -> tuple[str, str]:
        side = {"exact_match": share, "exact_match_interval": [low, high]}
        decided = {"exact_match": "exact match"}
        probe = {"few_shot": side, "shots": 5, "rows": 30, "decided_by": decided}
        advice = advise_on(found, probe, format_is_set=True)
        return advice.verdict, advice.sentences[0]

    assert said(29 / 30, 0.833, 0.994)[0] == "fine-tune if called often"
    verdict, first = said(27 / 30, 0.744, 0.965)
    assert verdict == "fine-tune"
    assert "reaches 90% exact match (74–96%) on 30 rows: too few to show that it reaches" in first
    assert "too few" not in said(23 / 30, 0.591, 0.882)[1]


def test_a_probe_is_kept_while_what_judges_it_is_the_same(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    prepared: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = tmp_path / "record.json"
    schema.write_text('{"type": "object"}')
    recipe = write_recipe(eval={"format": {"type": "json", "schema": "record.json"}})
    probe = prepared(recipe, "--probe")["advice"]["probe"]
    assert prepared(recipe)["advice"]["probe"] == probe
    schema.write_text('{"type": "object", "required": ["name"]}')
    assert prepared(recipe)["advice"]["probe"] is None
    assert prepared(recipe, "--probe")["advice"]["probe"]["key"] != probe["key"]
    monkeypatch.setattr("ftcli.stages.advice.probe.code_digest", lambda: "another version")
    assert prepared(recipe)["advice"]["probe"] is None


def test_a_stopped_probe_leaves_the_advice_as_it_was(
    write_recipe: Callable[..., Path],
    prepared: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe()
    told = prepared(recipe)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ftcli.engine.inference.answer_prompts", stop)
    assert run(["prepare", str(recipe), "--probe"]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert prepared(recipe)["advice"] == told["advice"]


def test_the_run_and_its_calls_are_priced(
    write_recipe: Callable[..., Path],
    prepared: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe()
    told = prepared(recipe, "--price-per-hour", "0.4", "--shots", "2")
    validate(told, SHAPES["prepare"])
    price = told["price"]
    ran, call = price["run"], price["call"]
    assert price["per_hour"] == 0.4
    assert ran["measured"] == "4 steps timed here"
    # 32 training rows in 8 steps of 4.
    assert ran["tokens"] == told["train_tokens"]
    assert ran["seconds"] == pytest.approx(ran["tokens"] / ran["tokens_per_second"])
    assert ran["cost"] == pytest.approx(ran["seconds"] / 3600 * 0.4)
    assert call["shots"] == 2
    assert call["long"]["prompt_tokens"] > call["short"]["prompt_tokens"] > 0
    saved = call["long"]["seconds"] - call["short"]["seconds"]
    assert call["saved_seconds"] == pytest.approx(saved)
    pays = price["calls_to_pay_back"]
    assert pays is None if saved <= 0 else (pays - 1) * saved < ran["seconds"] <= pays * saved
    left = {path.name for path in Path(told["folder"]).parent.iterdir()}
    assert left == {"data", ".lock"}, "what was timed is thrown away"


def test_a_finished_run_of_the_recipe_tells_its_speed(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()
    command = ["train", str(recipe), "--set", "training.max_steps=2"]
    assert run([*command, "--json"]) == 0
    speed = json.loads(capsys.readouterr().out)["tokens_per_second"]
    dry = ["train", str(recipe), "--dry-run", "--price-per-hour", "2"]
    assert run([*dry, "--json"]) == 0
    price = json.loads(capsys.readouterr().out)["price"]
    assert price["run"]["tokens_per_second"] == speed
    assert price["run"]["measured"].endswith("runs/tiny")
    assert run(dry) == 0
    out = capsys.readouterr().out
    assert "at 2 an hour" in out and "one call at a time" in " ".join(out.split())
    # Another rank is another speed.
    assert run([*dry, "--json", "--set", "method.rank=8"]) == 0
    found = json.loads(capsys.readouterr().out)["price"]["run"]
    assert found["measured"] == "4 steps timed here"


def test_a_price_goes_with_a_dry_run(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(write_recipe()), "--price-per-hour", "1"]) == 2
    assert "--price-per-hour goes with --dry-run" in capsys.readouterr().err


def test_queries_are_judged_by_their_results(
    tmp_path: Path, write_recipe: Callable[..., Path], prepared: Callable[..., dict[str, Any]]
) -> None:
    """A form that is kept and holds nothing right is not what prompting has to reach."""
    table = "CREATE TABLE data (name, colour);\n\nQuestion: the colour of"
    rows = [
        {
            "prompt": f"{table} kettle {n}?",
            "completion": f"SELECT colour FROM data WHERE name = 'kettle {n}'",
        }
        for n in range(48)
    ]
    save(tmp_path, rows)
    advice = prepared(write_recipe(), "--probe", "--shots", "2")["advice"]
    assert advice["format"]["eval_format"] == {"type": "sql", "table": "prompt"}
    assert list(advice["probe"]["decided_by"]) == ["format_rate", "execution_match"]
    assert "and 0% same result (" in advice["sentences"][0]


TABLE = "CREATE TABLE data (name, colour);"
KETTLE = "SELECT colour FROM data WHERE name = 'kettle {}'"


@pytest.mark.parametrize(
    ("before", "tables"),
    [
        ([("system", TABLE)], True),
        ([("user", TABLE), ("assistant", "Ask.")], True),
        # Words alone make no table.
        ([("user", "Let us create table tennis records."), ("assistant", "Ask.")], False),
    ],
)
def test_tables_are_found_in_any_turn(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    prepared: Callable[..., dict[str, Any]],
    before: list[tuple[str, str]],
    tables: bool,
) -> None:
    """`table: prompt` is recommended where, and only where, its judge finds them."""
    rows = []
    for n in range(48):
        turns = [*before, ("user", f"Of kettle {n}?"), ("assistant", KETTLE.format(n))]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    save(tmp_path, rows)
    advice = prepared(write_recipe(), "--probe", "--shots", "2")["advice"]
    assert advice["format"]["eval_format"].get("table") == ("prompt" if tables else None)
    assert ("execution_match" in advice["probe"]["few_shot"]) is tables
