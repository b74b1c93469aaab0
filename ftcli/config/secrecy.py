"""Secrets that a recipe holds: it is copied into every run, so none may be in it."""

from __future__ import annotations

from collections.abc import Iterator

from ftcli.config.nodes import Found, KeyPath
from ftcli.errors import Problem
from ftcli.redact import secret_in


def secrets_of(value: object, path: KeyPath, found: Found) -> Iterator[Problem]:
    """A problem for each value that holds a password or a token, at its line."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from secrets_of(inner, (*path, str(key)), found)
        case list():
            for index, inner in enumerate(value):
                yield from secrets_of(inner, (*path, str(index)), found)
        case str() if (kind := secret_in(value)) is not None:
            yield found.problem(
                path,
                f"holds {kind}, and a recipe is copied into every run; take it out: private models "
                "and data are reached with `hf auth login` or with HF_TOKEN in the environment",
            )
