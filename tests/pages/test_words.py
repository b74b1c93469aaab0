"""Words that a reader of the libraries' docs would not know, or know as something else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Word, as a regular expression → what to write.
BANNED = {
    r"told|tells?|telling": "print, show, report; distinguish",
    r"sitting": "process",
    r"laid|lays?|laying": "collate, collator; put",
    r"plant(s|ed|ing)?": "write, make; in a batch: pack",
    r"twins?": "tiny random model; near-duplicates",
    r"levers?": "optimisation",
    r"beside": "next to, with, besides",
    r"behind": "after",
    r"anew": "again",
    r"by which": "that, with which",
    r"is none|as no|what there is of": "say what it is",
    r"rehears(e|al|als|ed)": "smoke test",
    r"training\.hold|hold\.strength": "training.l2_sp",
    r"labelled tokens?|trained tokens?": "label tokens",
}
# The changelog has the old names; data is text of others.
FOLDERS = ("ftcli", "scripts", "tests", "docs", "recipes", "README.md", "CONTRIBUTING.md")
SUFFIXES = {".py", ".md", ".jinja", ".yaml", ".toml", ""}
WORDS = re.compile(rf"(?<![\w'])({'|'.join(BANNED)})(?!\w)")


def named() -> list[Path]:
    """The files that are committed, and may have no banned word."""
    listed = subprocess.run(
        ["git", "ls-files", "--", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.splitlines()]
    return [file for file in files if file.suffix in SUFFIXES and file != Path(__file__)]


def found_in(text: str) -> list[tuple[int, str]]:
    """Line and word; parts of a name count as words."""
    lines = text.replace("_", " ").splitlines()
    return [(n, found[0]) for n, line in enumerate(lines, 1) for found in WORDS.finditer(line)]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout, which lists the files")
def test_no_banned_word_is_left() -> None:
    assert len(named()) > 400
    found = [
        f"{file.relative_to(ROOT)}:{line}: {word}"
        for file in named()
        if file.is_file()
        for line, word in found_in(file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_a_banned_word_is_found() -> None:
    assert found_in("fine\nwe_told the user\nstoryteller") == [(2, "told")]
