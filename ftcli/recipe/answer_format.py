"""`eval.format` of a recipe: the form that every answer must have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ftcli.recipe.section import Section, require_regex


class RegexFormat(Section):
    """The whole answer matches a regular expression."""

    type: Literal["regex"]
    pattern: str
    """Python regular expression; `^` and `$` are implied, `.` stays within a line."""

    @field_validator("pattern")
    @classmethod
    def pattern_compiles(cls, value: str) -> str:
        require_regex(value)
        return value


class JsonFormat(Section):
    """The whole answer is one JSON object."""

    type: Literal["json"]
    keys: list[str] = []
    """Exactly these keys, in any order; empty: any object."""


AnswerFormat = Annotated[RegexFormat | JsonFormat, Field(discriminator="type")]
