"""`eval.faithfulness` through `ftcli eval`: scores with intervals, and findings kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ftcli.artifacts import RunFolder
from ftcli.cli import run
from ftcli.metrics.intervals import share_interval
from tests.conftest import save_recipe, save_rows
from tests.test_end_to_end import ask

SCORES = ("invents", "coverage", "banned_claims")
OWN = (
    "Terms not in the prompt: answers with numbers, materials, colours, sizes and brands not in "
    "the prompt, by lists of words that cannot tell what is true. Your own answers: 50% (1 of 2)"
)
# What the share of such answers does not say.
PROMISES = re.compile("invent|faithful|supported", re.IGNORECASE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A finished run of the tiny model, in fp32."""
    folder = tmp_path_factory.mktemp("faithful")
    save_rows(folder)
    training = {"max_steps": 2, "batch_size": 4, "precision": "fp32"}
    recipe = save_recipe(folder, tiny_model, training=training)
    (folder / "never.txt").write_text("waterproof\n")
    assert run(["train", str(recipe)]) == 0
    return folder / "runs" / "tiny"


def rows_of(folder: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    text = (folder / "eval" / report["answers"]).read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_answers_are_compared_with_the_facts_of_their_rows(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "held.jsonl"
    prompt = "Write.\n\nProduct: Torkel Bag\nColours: olive\nPockets: 3"
    answers = ["A Torkel bag in olive, three pockets.", "Black, waterproof, 20 litres."]
    pairs = [{"prompt": prompt, "completion": answer} for answer in answers]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    flags = ("--data", data, "--no-forgetting")
    ask(capsys, "eval", trained, *flags)
    for file in (trained / "eval" / "work").glob("*.jsonl"):
        kept = [json.loads(line) for line in file.read_text().splitlines()]
        for answer in (each for line in kept for each in line.get("answers", ())):
            answer[1] = answers[answer[0]]
        file.write_text("".join(json.dumps(line) + "\n" for line in kept))
    wanted = {"facts": r"Product:(?s:.*)", "banned": str(trained.parents[1] / "never.txt")}
    said = ask(capsys, "eval", trained, *flags, "--set", f"eval.faithfulness={json.dumps(wanted)}")
    assert set(SCORES) <= set(said["scores"])
    rows = rows_of(trained, said)
    assert rows[0]["facts"] == prompt.removeprefix("Write.\n\n")
    kinds = {each["kind"] for row in rows for each in row["sides"]["tuned"]["findings"]}
    assert {
        "colour not in the prompt",
        "number not in the prompt",
        "banned claim",
        "not mentioned",
    } <= kinds
    assert said["tuned"]["invents"] == said["tuned"]["banned_claims"] == 0.5
    assert said["tuned"]["coverage"] == 0.5
    assert said["scores"]["invents"] == {
        "label": "terms not in the prompt",
        "unit": "share",
        "better": "lower",
    }
    assert len(said["tuned"]["coverage_interval"]) == 2
    own = said["references"]["invents"]
    assert (own["value"], own["rows"], own["words"]) == (0.5, 2, OWN)
    assert own["interval"] == list(share_interval(1, 2))
    # Wherever the rate of the model is shown, that of the data's own answers is.
    flags = (*flags, "--set", f"eval.faithfulness={json.dumps(wanted)}")
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run(["eval", str(trained), *map(str, flags)]) == 0
        lines = capsys.readouterr().out.splitlines()
        table = lines[: next(at for at, line in enumerate(lines) if line.startswith("prompt "))]
        assert any(line.startswith("  terms not in the prompt  ") for line in table)
        assert OWN in " ".join(table) and max(map(len, table)) <= columns
        assert not PROMISES.search("\n".join(table))
    folder = RunFolder(trained)
    assert OWN in folder.report.read_text(encoding="utf-8")
    card = folder.card.read_text(encoding="utf-8")
    assert OWN in card and "not in the prompt" not in card.split("\n---\n")[0]


def test_a_list_that_is_not_there_is_named_before_anything_is_answered(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--set", "eval.faithfulness={banned: nowhere.txt}"]
    assert run(["eval", str(trained), *flags]) == 1
    assert "nowhere.txt" in capsys.readouterr().err


def test_facts_of_an_earlier_turn_are_facts(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "talks.jsonl"
    facts = "Product: Torkel Bag\nColours: olive\nPockets: 3"
    said = "A Torkel bag in olive, three pockets."
    turns = [("user", facts), ("assistant", "A bag."), ("user", "More."), ("assistant", said)]
    messages = [{"role": role, "content": text} for role, text in turns]
    data.write_text(json.dumps({"messages": messages}) + "\n")
    flags = ("--data", data, "--no-base", "--set", "data.format=auto")
    ask(capsys, "eval", trained, *flags)
    for file in (trained / "eval" / "work").glob("*.jsonl"):
        kept = [json.loads(line) for line in file.read_text().splitlines()]
        for answer in (each for line in kept for each in line.get("answers", ())):
            answer[1] = said
        file.write_text("".join(json.dumps(line) + "\n" for line in kept))
    found = ask(capsys, "eval", trained, *flags, "--set", "eval.faithfulness={}")
    (row,) = rows_of(trained, found)
    assert found["tuned"]["invents"] == 0 and found["tuned"]["coverage"] == 1
    assert (row["prompt"], row["facts"]) == ("More.", f"{facts}\n\nMore.")
    assert set(row) == {"file", "line", "prompt", "reference", "facts", "sides"}
