"""`ftcli schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from ftcli.cli import options
from ftcli.console import print_result
from ftcli.errors import UsageError


def schema(
    section: Annotated[
        str | None, typer.Argument(metavar="SECTION", help="With --text: this section only.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print keys and defaults as text.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print the recipe's keys, or its JSON Schema."""
    from ftcli.config.json_schema import json_schema, key_lines

    if section is not None and (json or not text):
        raise UsageError("flag", "SECTION needs --text; the JSON Schema has no parts")
    if text and not json:
        for line in key_lines(section):
            print_result(line)
    else:
        print_result(json_schema())
