"""Answer tokens truncated by data.max_length are counted and named; too many are an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from tests.conftest import tiny_tokenizer

Observed = Callable[[str], None]
MAX_LENGTH = 60
SHORT = {"completion": "A red mug, and a blue one."}
# Its answer is longer than the room after its prompt.
CUT = {"prompt": "mug, in part", "completion": "A red mug. " * 10}
# Its prompt alone is longer than any row may be.
GONE = {"prompt": "A red mug. " * 30, "completion": "A mug."}


def tokens(row: dict[str, str]) -> tuple[int, int]:
    """Tokens of prompt and answer: ChatML text, encoded by the tokenizer alone."""
    encode = tiny_tokenizer()
    prompt = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    return len(encode(prompt).input_ids), len(encode(f"{row['completion']}<|im_end|>").input_ids)


@pytest.fixture
def prepare(
    write_recipe: Callable[..., Path], rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Exit code, --json and stderr of preparing `short` short rows and some others."""

    def ask(short: int, *others: dict[str, str], too_long: str = "error") -> Any:
        rows = [{"prompt": f"mug {number}", **SHORT} for number in range(short)]
        rows[3:3] = others
        rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": rows_file.name, "validation": 0, "max_length": MAX_LENGTH}
        recipe = write_recipe(data=data | {"too_long": too_long})
        capsys.readouterr()
        code = run(["prepare", str(recipe), "--json"])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out), err

    return ask


@pytest.mark.fault(10)
def test_a_row_without_any_answer_left_is_rejected_by_its_line(
    prepare: Callable[..., Any], observed: Observed
) -> None:
    assert tokens(GONE)[0] > MAX_LENGTH
    code, found, _ = prepare(60, GONE)
    assert code == 0
    assert (found["rows_read"], found["rows_accepted"], found["rows_rejected"]) == (61, 60, 1)
    (problem,) = found["rejected"]
    assert problem["file"].endswith("rows.jsonl") and problem["line"] == 4
    assert f"answer fully truncated at {MAX_LENGTH} tokens" in problem["reason"]
    assert found["answer_tokens_lost"] == tokens(GONE)[1]
    observed("an answer fully truncated: its row rejected by file:line")


@pytest.mark.fault(10)
def test_what_is_lost_of_an_answer_is_counted_and_its_row_named(
    prepare: Callable[..., Any], observed: Observed
) -> None:
    prompt, answer = tokens(CUT)
    lost = prompt + answer - MAX_LENGTH
    each = tokens({"prompt": "mug 1", **SHORT})[1]
    assert 0 < lost < answer
    few, many = int(lost * 60 / each), int(lost * 130 / each)
    code, found, err = prepare(many, CUT)
    assert code == 0 and lost / (many * each + answer) < 0.01
    assert (found["rows_rejected"], found["answer_tokens_lost"]) == (0, lost)
    assert "rows.jsonl:4" in err
    code, found, _ = prepare(few, CUT)
    share = lost / (few * each + answer)
    assert code == 1 and share > 0.01
    message = found["error"]["message"]
    assert f"cuts {lost} of {few * each + answer} answer tokens ({share:.1%})" in message
    assert "rows.jsonl:4" in message and "data.too_long: truncate or drop" in message
    code, found, err = prepare(few, CUT, too_long="truncate")
    assert (code, found["answer_tokens_lost"]) == (0, lost)
    assert "rows.jsonl:4" in err
    code, found, err = prepare(few, CUT, too_long="drop")
    (problem,) = found["rejected"]
    assert (code, found["rows_rejected"], found["answer_tokens_lost"]) == (0, 1, 0)
    said = f"{prompt + answer} tokens, and max_length is {MAX_LENGTH} (too_long: drop)"
    assert problem["reason"] == said
    observed(
        f"in part: row and {lost} tokens named; exit 1 at {share:.1%}, 0 below 1%, truncated or "
        "dropped"
    )


@pytest.mark.fault(10)
def test_a_row_as_long_as_the_limit_loses_nothing(prepare: Callable[..., Any]) -> None:
    row = {"prompt": "mug", "completion": "red"}
    while sum(tokens(row)) < MAX_LENGTH:
        row["completion"] += "!"
    code, found, err = prepare(10, row)
    assert (code, found["answer_tokens_lost"], found["rows_rejected"]) == (0, 0, 0)
    assert found["longest_row"]["tokens"] == MAX_LENGTH and "rows.jsonl:4" not in err
    code, found, _ = prepare(10, row | {"completion": row["completion"] + "!"}, too_long="truncate")
    assert (code, found["answer_tokens_lost"]) == (0, 1)
