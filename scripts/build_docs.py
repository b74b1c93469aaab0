"""Write the generated pages of docs/: commands, recipe keys, what runs each proof.

python -m scripts.build_docs [--check]    # --check: exit 1 where a page is not current
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from pathlib import Path

from ftcli.cli import app, run
from ftcli.config.json_schema import json_schema, key_lines
from ftcli.config.recipe import Recipe
from scripts.tiers import with_tiers

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTE = "<!-- written by make docs -->\n"
EXIT_CODES = """| exit code | when |
| --- | --- |
| 0 | done |
| 1 | what files, model or machine show: no such run, model or rows; rows that \
cannot be used; no memory or disk; a score that `--require` asks for and that does not hold |
| 2 | what the words show: a flag, a `--set`, no such recipe, a key or value in it, an alias |
| 70 | a bug of ftcli |
| 130, 143 | stopped by Ctrl-C (SIGINT) or SIGTERM; the same command resumes |
"""


def main(check: bool) -> int:
    stale = [name for name, text in pages().items() if not _current(name, text)]
    if check:
        for name in stale:
            print(f"docs/{name} is not current: make docs", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(pages()[name], encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


def pages() -> dict[str, str]:
    """Name → text of every generated page."""
    return {
        "commands.md": _commands(),
        "recipe.md": _recipe(),
        "recipe.schema.json": json_schema() + "\n",
        "guarantees.md": with_tiers((DOCS / "guarantees.md").read_text(encoding="utf-8")),
    }


def _current(name: str, text: str) -> bool:
    page = DOCS / name
    return page.is_file() and page.read_text(encoding="utf-8") == text


def _commands() -> str:
    parts = [f"{NOTE}# Commands\n", EXIT_CODES]
    for name in command_names():
        parts.append(f"## ftcli {name}\n\n```\n{_help(name)}```\n")
    return "\n".join(parts)


def command_names() -> list[str]:
    """Every command of the program, in the order in which its help lists them."""
    known = app.registered_commands
    return [command.name for command in known if command.name and not command.hidden]


def _help(name: str) -> str:
    os.environ["COLUMNS"] = "100"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        run([name, "--help"])
    # The program's name is that of the script which calls it.
    lines = text.getvalue().strip().splitlines()
    usage = lines[0].partition(name)
    return "\n".join([f"Usage: ftcli {name}{usage[2]}", *lines[1:]]) + "\n"


def _recipe() -> str:
    paths = (
        "Paths in a recipe start at its folder, those of `--set` at the working directory; `~` is "
        "expanded."
    )
    parts = [f"{NOTE}# Recipe keys\n\n{paths}\n"]
    for section in Recipe.model_fields:
        parts.append(f"## {section}\n")
        for line in key_lines(section):
            key, _, text = line.partition("\n    ")
            parts.append(f"- `{key}`: {text}" if text else f"\n{key.strip().capitalize()}\n")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    sys.exit(main(parser.parse_args().check))
