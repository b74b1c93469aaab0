"""`eval.faithfulness` of a recipe: what in an answer is looked for in its prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from pydantic import field_validator

from ftcli.recipe.section import Section, require_regex

Kind = Literal["number", "material", "colour", "size", "brand"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Faithfulness(Section):
    """Terms of answers that are not in their prompts, facts left out, banned phrases."""

    facts: str | None = None
    """Regular expression that finds the facts in the user turns, which a blank line parts: its
    group `facts`, or all that it matches; none: all of them."""
    kinds: list[Kind] = list(KINDS)
    """What is looked for in the prompt; all five by default."""
    banned: list[str] | str = []
    """Phrases that no answer may have, or a .txt file with one a line."""
    allowed: list[str] = []
    """Words and phrases that are never marked, such as the shop's own name."""
    ignore: list[str] = []
    """Keys of facts that need not be mentioned, as Price."""
    materials: list[str] = []
    """More words that name a material."""
    colours: list[str] = []
    """More words that name a colour."""
    brands: list[str] = []
    """More names of makers and trade marks."""

    @field_validator("facts")
    @classmethod
    def facts_compile(cls, value: str | None) -> str | None:
        if value is not None:
            require_regex(value)
        return value

    @field_validator("kinds")
    @classmethod
    def kinds_name_some(cls, value: list[Kind]) -> list[Kind]:
        if not value:
            raise ValueError(
                f"names nothing to look at; leave it out for all of {', '.join(KINDS)}"
            )
        return value

    @field_validator("banned")
    @classmethod
    def banned_file_is_text(cls, value: list[str] | str) -> list[str] | str:
        if isinstance(value, str) and not value.endswith(".txt"):
            raise ValueError(
                f"{value!r} is no .txt file; give the phrases as a list, or a file with one a line"
            )
        return value

    @field_validator("banned", "allowed", "ignore", "materials", "colours", "brands")
    @classmethod
    def words_are_words(cls, value: list[str] | str) -> list[str] | str:
        if isinstance(value, list) and any(not word.strip() for word in value):
            raise ValueError("holds an empty word")
        return value


def with_banned_file(
    wanted: Faithfulness | None, moved: Callable[[str], str]
) -> Faithfulness | None:
    """The same, with the path of its list moved."""
    if wanted is None or not isinstance(wanted.banned, str):
        return wanted
    return wanted.model_copy(update={"banned": moved(wanted.banned)})
