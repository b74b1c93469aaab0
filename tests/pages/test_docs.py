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


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["train", "missing.yaml"], 2),
        (["train", "."], 2),
        (["report", "missing"], 1),
        (["train", "missing.yaml", "--bogus"], 2),
        (["train", str(ROOT / "recipes/ecommerce-lora.yaml"), "--set", "lr=3"], 2),
        (["estimate-vram", "--model", "no-such-model"], 2),
    ],
)
def test_exit_codes_are_those_of_the_table(
    words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words) == code
    assert f"\n| {code} | " in (ROOT / "docs/commands.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_says_first_where_it_runs() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 250
    assert any("Linux; Windows: WSL2; macOS: not tested" in line for line in lines[:10])


def test_every_link_in_the_docs_leads_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_heading_that_is_linked_to_is_there() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for link, place in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            text = (page.parent / link if link else page).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            names = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
            assert place in names, f"{page.name} links to {link}#{place}"


def test_the_index_lists_every_page_and_they_are_few() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert pages - {"README.md"} <= set(re.findall(r"\]\(([\w.]+)\)", index))
    assert len(pages) <= 17


def test_files_that_the_architecture_page_names_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:ftcli|tests)/[\w/]+(?:\.py|/))`", text):
        assert (ROOT / name).exists(), name
    tests = {file.name for file in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(?:\w+/)?(test_\w+\.py)", text)) <= tests
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "ftcli").rglob("*.py"))
    how_to = text.partition("## One more")[2].partition("## Decisions")[0]
    for name in re.findall(r"`(?:\w+\.)?([A-Z]\w+|[a-z]+_\w+)(?:\(|`)", how_to):
        assert name.startswith(("NAME", "test_")) or re.search(rf"\b{name}\b", code), name
