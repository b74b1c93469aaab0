"""`eval.grounding` and `eval.judge` of a recipe: answers compared with their prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import field_validator

from ftcli.recipe.section import Section, require_regex

# Snowball's stemmers (snowballstemmer.algorithms()).
Language = Literal[
    "arabic",
    "armenian",
    "basque",
    "catalan",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "greek",
    "hindi",
    "hungarian",
    "indonesian",
    "irish",
    "italian",
    "lithuanian",
    "nepali",
    "norwegian",
    "portuguese",
    "romanian",
    "russian",
    "serbian",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
    "yiddish",
]


class Grounding(Section):
    """Numbers, names and terms that answers have and their prompts do not; facts mentioned; banned
    phrases; and, with a model, the spans that the prompt does not support."""

    facts: str | None = None
    """Regular expression that finds the facts in the user turns, which a blank line separates: its
    group `facts`, or all that it matches; none: all of them."""
    language: Language = "english"
    """Of the answers: a word is compared by its stem (Snowball)."""
    optional: list[str] = []
    """Keys of facts that need not be mentioned, as Category."""
    allowed: list[str] = []
    """Words and phrases that are never marked, such as the shop's own name."""
    banned: list[str] | str = []
    """Phrases that no answer may have, or a .txt file with one a line."""

    @field_validator("facts")
    @classmethod
    def facts_compile(cls, value: str | None) -> str | None:
        if value is not None:
            require_regex(value)
        return value

    @field_validator("banned")
    @classmethod
    def banned_file_is_text(cls, value: list[str] | str) -> list[str] | str:
        if isinstance(value, str) and not value.endswith(".txt"):
            raise ValueError(
                f"{value!r} is not a .txt file; give the phrases as a list, or a file with one a "
                "line"
            )
        return value

    @field_validator("banned", "allowed", "optional")
    @classmethod
    def words_are_words(cls, value: list[str] | str) -> list[str] | str:
        if isinstance(value, list) and any(not word.strip() for word in value):
            raise ValueError("holds an empty word")
        return value


def with_banned_file(wanted: Grounding | None, moved: Callable[[str], str]) -> Grounding | None:
    """The same, with the path of its list moved."""
    if wanted is None or not isinstance(wanted.banned, str):
        return wanted
    return wanted.model_copy(update={"banned": moved(wanted.banned)})
