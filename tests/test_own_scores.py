"""Scores of the user's own: `ftcli eval --scores FILE.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.cli import run
from tests.evaluated import finished_run, rows_of, unevaluated
from tests.test_end_to_end import ask


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return finished_run(tmp_path_factory.mktemp("own"), tiny_model, max_steps=6)


@pytest.fixture
def fresh(trained: Path) -> Path:
    return unevaluated(trained)


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


def test_scores_of_ones_own(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SCORES)
    found = ask(capsys, "eval", fresh, "--scores", file, "--no-forgetting")
    rows = rows_of(fresh, found)
    texts = [row["sides"]["tuned"]["text"] for row in rows]
    assert found["tuned"]["length"] == pytest.approx(sum(map(len, texts)) / len(texts))
    assert found["scores"]["begins_with_hash"]["unit"] == "share"
    assert found["differences"]["tuned_vs_base"]["length"]["verdict"] in (
        "changed",
        "no change shown",
    )
    assert "_length" not in found["scores"] and "HASH" not in found["scores"]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("x = 1\n", 2, "holds no function (prompt, answer, reference, facts) -> float"),
        ("def a(prompt, answer): return 1\n", 2, "mine.py:1: a(prompt, answer) is no score"),
        ("def chrf(a, b, c, d): return 1\n", 2, "chrf is the name of another figure"),
        ("def prompt_tokens(a, b, c, d): return 1\n", 2, "is the name of another figure"),
        ("def loss_interval(a, b, c, d): return 1\n", 2, "is the name of another figure"),
        ("def a(p, q, r, f): return 'x'\n", 1, "a raised ValueError"),
        ("def a(p, q, r, f): return float('nan')\n", 1, "a returned nan"),
        ("\ndef a(p, q, r, f):\n    return 1 / 0\n", 1, "mine.py:2: a raised ZeroDivisionError"),
        ("def a(:\n", 1, "mine.py:1: does not run: SyntaxError"),
        ("import nothing_of_this_name\n", 1, "does not run: ModuleNotFoundError"),
        ("def a(p, q, r, f): return 1\na.better = 'more'\n", 2, "a.better is 'more'"),
    ],
)
def test_scores_that_are_none(
    fresh: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    code: int,
    words: str,
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    flags = ["--scores", str(file), "--limit", "2", "--no-base"]
    assert run(["eval", str(fresh), *flags]) == code
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err
