"""Scores of the user's own: `ftcli eval --scores FILE.py`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ftcli.cli import run
from ftcli.errors import FtcliError
from ftcli.evaluation.scorers.custom import custom_scorer
from ftcli.evaluation.scorers.scorer import Question
from tests.commands.test_end_to_end import ask
from tests.evaluated import rows_of, unevaluated

SCORES = """
import math

HASH = "#"


def begins_with_hash(prompt, answer, reference, facts):
    return answer.startswith(HASH)


def length(prompt, answer, reference, facts):
    return _length(answer)


length.better = None


def _length(text):
    return len(text)
"""


def test_the_users_own_scores(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SCORES)
    found = ask(capsys, "eval", eval_run, "--scores", file, "--no-forgetting")
    rows = rows_of(eval_run, found)
    texts = [row["sides"]["tuned"]["text"] for row in rows]
    assert found["tuned"]["length"] == pytest.approx(sum(map(len, texts)) / len(texts))
    kinds = {row["name"]: row for row in found["scores"]}
    assert kinds["begins_with_hash"]["unit"] == "share"
    assert kinds["length"]["tuned_vs_base"]["verdict"] is None
    assert kinds["length"]["your_answers"]["value"] > 0
    assert {name for name, row in kinds.items() if row["own"]} == {"begins_with_hash", "length"}
    assert found["truth_measured_by"] == ["begins_with_hash"]
    assert "_length" not in kinds and "HASH" not in kinds


UNITS = """
def names_it(prompt, answer, reference, facts):
    return answer.startswith(prompt)


def lines(prompt, answer, reference, facts):
    return 1


def mixed(prompt, answer, reference, facts):
    return True if prompt[-1] < "m" else 0
"""


def test_booleans_make_a_proportion_and_numbers_do_not(
    eval_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if every number is 1."""
    from ftcli.inference import generation
    from ftcli.inference.generation import Answer

    def one_token(model: object, prompts: list[object], *_: object) -> list[Answer]:
        return [Answer("A", 1, True) for _ in prompts]

    monkeypatch.setattr(generation, "answer_batch", one_token)
    file = tmp_path / "mine.py"
    file.write_text(UNITS)
    run_folder = unevaluated(Path(shutil.copytree(eval_run, tmp_path / "runs" / "tiny")))
    found = ask(capsys, "eval", run_folder, "--scores", file, "--no-forgetting")
    units = {row["name"]: row["unit"] for row in found["scores"]}
    assert found["tuned"]["answer_tokens"] == found["tuned"]["lines"] == 1
    assert (units["names_it"], units["stop_rate"]) == ("share", "share")
    for name in ("lines", "mixed", "answer_tokens", "loss", "rouge_l"):
        assert units[name] == "value", name


def test_scores_are_counted_again_each_time(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the file reads may have changed; the answers are reused."""
    file, read = tmp_path / "mine.py", tmp_path / "limit.txt"
    file.write_text(f"def limit(p, q, r, f):\n    return float(open({str(read)!r}).read())\n")
    flags = ["--scores", file, "--no-base", "--limit", "3"]
    read.write_text("2")
    assert ask(capsys, "eval", eval_run, *flags)["tuned"]["limit"] == 2
    kept = {path: path.read_bytes() for path in (eval_run / "eval" / "work").iterdir()}
    read.write_text("5")
    assert ask(capsys, "eval", eval_run, *flags)["tuned"]["limit"] == 5
    assert {path: path.read_bytes() for path in (eval_run / "eval" / "work").iterdir()} == kept


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("x = 1\n", 2, "has no function (prompt, answer, reference, facts) -> float"),
        ("def a(prompt, answer): return 1\n", 2, "mine.py:1: a(prompt, answer) is not a score"),
        ("def chrf(a, b, c, d): return 1\n", 2, "chrf is the name of another score"),
        ("def prompt_tokens(a, b, c, d): return 1\n", 2, "is the name of another score"),
        ("def loss_interval(a, b, c, d): return 1\n", 2, "is the name of another score"),
        ("def a(p, q, r, f): return '1'\n", 1, "a returned '1', not a finite number"),
        (
            "\n\ndef a(p, q, r, f):\n    pass\n",
            1,
            "mine.py:3: a returned None, not a finite number (a missing return?), for the answer",
        ),
        ("def a(p, q, r, f): return [1]\n", 1, "a returned [1], not a finite number"),
        ("def a(p, q, r, f): yield 1\n", 1, "not a finite number"),
        ("def a(p, q, r, f): return float('nan')\n", 1, "a returned nan"),
        ("\ndef a(p, q, r, f):\n    return 1 / 0\n", 1, "mine.py:3: a raised ZeroDivisionError"),
        (
            "def _b(x):\n    return int(x)\n\ndef a(p, q, r, f):\n    return _b('x')\n",
            1,
            "mine.py:2: a raised ValueError",
        ),
        (
            "import json\n\ndef a(p, q, r, f):\n    return json.loads('{')\n",
            1,
            "mine.py:4: a raised JSONDecodeError",
        ),
        (
            "import sys\ndef a(p, q, r, f):\n    sys.exit(3)\n",
            1,
            "mine.py:3: a raised SystemExit: 3, for",
        ),
        ("import sys\n\nsys.exit()\n", 1, "mine.py:3: does not run: SystemExit\n"),
        ("async def a(p, q, r, f): return 1\n", 2, "mine.py:1: a is async"),
        ("def a(:\n", 1, "mine.py:1: does not run: SyntaxError"),
        ("\nimport nothing_of_this_name\n", 1, "mine.py:2: does not run: ModuleNotFoundError"),
        ("def a(p, q, r, f): return 1\na.better = 'more'\n", 2, "a.better is 'more'"),
    ],
)
def test_what_is_not_a_score(tmp_path: Path, text: str, code: int, words: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(FtcliError) as caught:
        scorer = custom_scorer(file, {"chrf", "prompt_tokens"})
        scorer.score("An answer", Question("A prompt", "A reference", ""))
    assert caught.value.exit_code == code and words in f"{caught.value}\n"


def test_what_a_score_prints_goes_to_stderr(
    eval_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("print('loaded')\ndef a(p, q, r, f):\n    print('called')\n    return 1\n")
    flags = ["--scores", str(file), "--limit", "2", "--no-base", "--json"]
    assert run(["eval", str(eval_run), *flags]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["tuned"]["a"] == 1
    assert (err.count("loaded\n"), err.count("called\n")) == (1, 4)  # the rows' own answers too


def test_a_relative_file_is_named_at_its_line(
    eval_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.py").write_text("def a(p, q, r, f):\n    assert not q\n")
    monkeypatch.chdir(tmp_path)
    assert run(["eval", str(eval_run), "--scores", "mine.py", "--limit", "2", "--no-base"]) == 1
    assert "mine.py:2: a raised AssertionError, for the answer" in capsys.readouterr().err


def test_only_one_file_of_scores(eval_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(eval_run), "--scores", "a.py", "--scores", "b.py"]) == 2
    assert "--scores was given 2 times" in capsys.readouterr().err
