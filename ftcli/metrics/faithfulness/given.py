"""What was given: lines of `Key: value`, or free text, and what they support."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text

KEY_LINE = re.compile(
    r"^\s*(?:[-*•]\s*)?(?:\*\*)?([^\W\d_][^:\n]{0,40}?)(?:\*\*)?\s*:(?:\*\*)?[ \t]+(\S.*)$"
)
NAME_KEYS = frozenset(
    {"product", "name", "title", "product name", "item", "model", "product title"}
)
KIND_KEYS = frozenset({"category", "type", "product type", "kind", "subcategory"})
YES = frozenset({"yes", "true", "y", "✓", "included"})
NO = frozenset({"no", "false", "n", "none", "not included"})
# Not between digits: 1,299 and 1,5 are numbers.
COMMA = re.compile(r",(?!\d)|(?<!\d),")
# More words of a value than this are a sentence.
LONG_VALUE = 12


@dataclass(frozen=True)
class Item:
    """One fact: a value, or one of the items of its list."""

    key: str
    value: str
    start: int
    """Where the value begins, in characters of the facts."""
    is_name: bool = False

    @property
    def says_yes(self) -> bool:
        return self.value.lower() in YES

    @property
    def says_no(self) -> bool:
        return self.value.lower() in NO


@dataclass(frozen=True)
class Line:
    """`Key: value`."""

    key: str
    value: str
    key_start: int
    value_start: int

    @property
    def is_name(self) -> bool:
        return self.key.lower() in NAME_KEYS

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The items of the list; a name is one, whatever stands in it."""
        if self.is_name:
            return (Item(self.key, self.value, self.value_start, is_name=True),)
        mark = re.compile(";") if ";" in self.value else COMMA
        found, start = [], 0
        ends = [(cut.start(), cut.end()) for cut in mark.finditer(self.value)]
        for end, following in [*ends, (len(self.value), len(self.value))]:
            piece = self.value[start:end]
            if piece.strip():
                lead = len(piece) - len(piece.lstrip())
                found.append(Item(self.key, piece.strip(), self.value_start + start + lead))
            start = following
        return tuple(found)


@dataclass(frozen=True)
class Given:
    """The facts of one question."""

    raw: str
    text: Text = field(compare=False)
    lines: tuple[Line, ...]
    """Empty where the facts are free text."""
    is_talk: bool
    """A conversation or a paragraph: what a number counts may stand anywhere."""

    @property
    def items(self) -> list[Item]:
        return [item for line in self.lines for item in line.items]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the product."""
        return tuple(line.value for line in self.lines if line.is_name)

    @cached_property
    def name_words(self) -> frozenset[str]:
        """Words of its names, as they are."""
        return frozenset(token.low for name in self.names for token in Text(name).tokens)

    @cached_property
    def product(self) -> frozenset[str]:
        """Words of its names and of its kind, each as `same_thing` names it."""
        kinds = [line.value for line in self.lines if line.key.lower() in KIND_KEYS]
        return frozenset(
            same_thing(token.low)
            for value in (*self.names, *kinds)
            for token in Text(value).tokens
            if token.sort == "word"
        )

    @cached_property
    def words(self) -> frozenset[str]:
        """Every word, as it is."""
        return frozenset(token.low for token in self.text.tokens)

    @cached_property
    def words_by_line(self) -> tuple[frozenset[str], ...]:
        """Words of each `Key: value`."""
        return tuple(
            frozenset(token.low for token in Text(f"{line.key} {line.value}").tokens)
            for line in self.lines
        )

    @cached_property
    def squashed(self) -> str:
        """Letters and digits alone, in lower case: GORE-TEX is goretex."""
        return squashed(self.raw)


def squashed(text: str) -> str:
    return "".join(sign for sign in text.lower() if sign.isalnum())


def given(facts: str) -> Given:
    """Read the facts of a question."""
    lines, others, start = [], 0, 0
    for raw in facts.split("\n"):
        found = KEY_LINE.match(raw.rstrip())
        if found is not None and len(found[1].split()) <= 5:
            lines.append(
                Line(found[1].strip(), found[2], start + found.start(1), start + found.start(2))
            )
        start += len(raw) + 1
        others += bool(raw.strip()) and found is None
    keys = [line.key.lower() for line in lines]
    sentences = sum(_is_sentence(line.value) for line in lines)
    is_talk = (
        not lines
        or len(set(keys)) < len(keys)
        or 2 * sentences >= len(lines)
        or (len(lines) == 1 and others > 2)
    )
    return Given(facts, Text(facts), () if is_talk else tuple(lines), is_talk)


def _is_sentence(value: str) -> bool:
    ends = value.rstrip('"')[-1:] in {".", "?", "!"} and len(value.split()) >= 3
    inside = re.search(r"[.?!] [A-Z]", value) is not None and len(value.split()) >= 6
    return ends or inside or len(value.split()) > 4 * LONG_VALUE
