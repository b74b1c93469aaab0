"""Generated pages are current, and the README speaks of every command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ftcli.cli import run
from scripts.build_docs import pages

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("prepare", "estimate-vram", "train", "eval", "report", "merge", "generate", "compare")


def test_generated_pages_are_current() -> None:
    for name, text in pages().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, f"{name}: make docs"


def test_every_command_that_the_help_lists_has_its_section(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2]
    names = re.findall(r"^  ([a-z-]+)", listed, re.MULTILINE)
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^## ftcli (.+)$", page, re.MULTILINE) == names
    assert set(names) == {*COMMANDS, "schema"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_shows_every_command(command: str) -> None:
    assert f"$ ftcli {command} " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_link_in_the_docs_leads_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"
