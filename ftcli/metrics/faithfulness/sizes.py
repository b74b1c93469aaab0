"""Sizes from a system of sizes: letters, numbers of clothes and shoes, beds, paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ftcli.metrics.faithfulness.context import in_specification
from ftcli.metrics.faithfulness.number_words import number_at
from ftcli.metrics.faithfulness.text import Text, named
from ftcli.metrics.faithfulness.units import unit_at

LETTERS = ("xxxs", "xxs", "xs", "s", "m", "l", "xl", "xxl", "xxxl", "xxxxl", "xxxxxl")
NAMES = {
    "2xs": "xxs",
    "3xs": "xxxs",
    "2xl": "xxl",
    "3xl": "xxxl",
    "4xl": "xxxxl",
    "5xl": "xxxxxl",
    "small": "s",
    "medium": "m",
    "large": "l",
} | {letters: letters for letters in LETTERS}
CLEAR = named("xs xxs xl xxl xxxl 2xl 3xl 4xl 5xl xxxs 2xs 3xs")
BEDS = frozenset({"twin", "full", "queen", "king", "double", "single"})
SIZE_WORDS = frozenset({"size", "sizes", "sized", "sizing"})
REGIONS = named("eu uk us eur fr it de")
JOINS = named(", and or / & to through")
LIST_JOINS = JOINS - {"to", "through"}
# Behind one of these a number is a size of the product.
SIZE_INTROS = SIZE_WORDS | REGIONS


@dataclass(frozen=True)
class SizeClaim:
    """Sizes at the tokens [first, after); a range has two."""

    first: int
    after: int
    sizes: tuple[str, ...]
    is_range: bool = False


def sizes_in(
    text: Text, hidden: frozenset[int] = frozenset(), *, given: bool = False
) -> list[SizeClaim]:
    """Every size, from left to right."""
    found: list[SizeClaim] = []
    index = 0
    while index < len(text.tokens):
        claims = [] if index in hidden else _sizes_at(text, index, given)
        found += claims
        index = max([index + 1, *(claim.after for claim in claims)])
    return found


def _sizes_at(text: Text, index: int, given: bool) -> list[SizeClaim]:
    for reads in (_one_size, _ranges, _paper, _beds, _waist):
        claim = reads(text, index)
        if claim is not None:
            return [claim]
    return _letters(text, index, given) or _numbers(text, index)


def _one_size(text: Text, index: int) -> SizeClaim | None:
    if text.at(index) != "one" or text.at(index + 1) != "size":
        return None
    after = index + 2
    if text.at(after) in {"fits", "fit"} and text.at(after + 1) in {"all", "most"}:
        after += 2
    return SizeClaim(index, after, ("one size",))


def _ranges(text: Text, index: int) -> SizeClaim | None:
    word, following = text.at(index), text.at(index + 1)
    if word == "plus" and following in {"size", "sizes"}:
        return SizeClaim(index, index + 2, ("plus size",))
    near = {text.at(index + step) for step in (-2, -1, 1, 2, 3)}
    if word == "petite" and near & (SIZE_WORDS | {"plus", "range", "ranges", "fit", "fits"}):
        return SizeClaim(index, index + 1, ("petite",))
    return None


def _paper(text: Text, index: int) -> SizeClaim | None:
    if text.at(index) in {"a", "b"} and index + 1 < len(text.tokens):
        digit = text.tokens[index + 1]
        if (
            digit.glued
            and not digit.joined
            and re.fullmatch("[0-7]", digit.low)
            and text.tokens[index].capital
        ):
            after = index + 2
            ends = after >= len(text.tokens) or not text.tokens[after].glued
            if ends or not text.tokens[after].low.isalnum():
                return SizeClaim(index, after, (f"{text.at(index)}{digit.low}",))
    return None


def _beds(text: Text, index: int) -> SizeClaim | None:
    word = text.at(index)
    if word not in BEDS:
        return None
    sized = text.at(index + 1) in SIZE_WORDS and word in {"twin", "queen", "king"}
    bed = text.at(index + 1) in {"bed", "beds", "mattress", "mattresses"} and word in {
        "twin",
        "queen",
        "king",
    }
    in_list = any(_neighbour(text, index, way) in {"twin", "queen", "king"} for way in (-1, 1))
    behind = text.at(index - 1) in SIZE_WORDS | {":"} and text.at(index - 2) in SIZE_WORDS | {":"}
    if sized or bed or in_list or (behind and word in {"twin", "queen", "king"}):
        return SizeClaim(index, index + 1, (word,))
    return None


def _waist(text: Text, index: int) -> SizeClaim | None:
    """`W32`, `W28 to W40`: the waist and the leg of trousers, in inches."""
    here = _waist_at(text, index)
    if here is None:
        return None
    to = _waist_at(text, index + 3) if text.at(index + 2) in {"to", "-", "–"} else None
    if to is not None:
        return SizeClaim(index, index + 5, (here, to), is_range=True)
    return SizeClaim(index, index + 2, (here,))


def _waist_at(text: Text, index: int) -> str | None:
    number = text.at(index + 1)
    if text.at(index) not in {"w", "l"} or not re.fullmatch("[2-5][0-9]", number):
        return None
    glued = text.tokens[index + 1].glued and not text.tokens[index].glued
    return f"{text.at(index)}{number}" if glued and text.tokens[index].capital else None


def _neighbour(text: Text, index: int, way: int) -> str:
    """The next item of a list, over commas and `and`."""
    place = index + way
    while text.at(place) in JOINS and text.same_sentence(place, index):
        place += way
    if abs(place - index) < 2 or not text.same_sentence(place, index):
        return ""
    return text.at(place)


def _letter_at(text: Text, index: int) -> tuple[str, int] | None:
    """A size in letters, as `LETTERS` spells it, and where it ends."""
    if not 0 <= index < len(text.tokens):
        return None
    token, following = text.tokens[index], text.at(index + 1)
    name = token.low + following
    if token.sort == "number":
        is_size = name in NAMES and text.tokens[index + 1].glued
        return (NAMES[name], index + 2) if is_size else None
    if following in {"small", "large"}:
        is_extra = token.low == "extra" or (token.low == "x" and text.tokens[index + 1].joined)
        if is_extra:
            return ("xs" if following == "small" else "xl"), index + 2
    if token.low not in NAMES or not _stands_free(text, index):
        return None
    return NAMES[token.low], index + 1


def _stands_free(text: Text, index: int) -> bool:
    """Whether letters are no part of a code or of a word, and single ones are capitals."""
    token = text.tokens[index]
    if len(token.low) == 1 and not token.capital:
        return False
    return not token.glued or bool(token.joined) or text.at(index - 1) in {"(", "/", ",", "[", ":"}


def _letters(text: Text, index: int, given: bool) -> list[SizeClaim]:
    here = _letter_at(text, index)
    if here is None:
        return []
    size, after = here
    to = _range_end(text, after)
    if to is not None:
        rises = LETTERS.index(size) < LETTERS.index(to[0])
        # "graded from large to small" describes, and "small to medium-sized dogs".
        names = rises and not _describes(text, index, to[1])
        return [SizeClaim(index, to[1], (size, to[0]), is_range=True)] if names else []
    if _is_size(text, index, after, given):
        return [SizeClaim(index, after, (size,))]
    return []


# Who or what is small or large himself.
SIZED = named("sized dogs dog cats cat breeds breed pets pet animals rooms spaces kitchens groups")


def _describes(text: Text, index: int, after: int) -> bool:
    is_word = text.at(index) in {"small", "medium", "large", "extra"}
    return is_word and text.at(after) in SIZED and text.same_clause(after, index)


def _range_end(text: Text, after: int) -> tuple[str, int] | None:
    place = after
    if text.at(place) in {"to", "-", "–", "through"}:
        place += 1
    elif not (place < len(text.tokens) and text.tokens[place].joined):
        return None
    return _letter_at(text, place)


def _is_size(text: Text, index: int, after: int, given: bool) -> bool:
    word = text.at(index)
    if word in CLEAR or after - index == 2:
        return word != "extra" or _has_context(text, index, after)
    return _has_context(text, index, after)


def _has_context(text: Text, index: int, after: int) -> bool:
    """Behind `size`, or in a list with another size."""
    word = text.at(index)
    is_word = word in {"small", "medium", "large", "extra"}
    if _behind_size(text, index) or (
        text.at(after) in SIZE_WORDS and text.same_clause(after, index)
    ):
        # `a large size range`, `medium-sized` describe.
        return not is_word or (text.at(after) not in {"sized"} and text.at(after + 1) != "range")
    before = index - 1
    while text.at(before) in LIST_JOINS and text.same_sentence(before, index):
        before -= 1
    ahead = after
    while text.at(ahead) in LIST_JOINS and text.same_sentence(ahead, index):
        ahead += 1
    if in_specification(text, index, after):
        return True
    in_list = (before < index - 1 and _size_ending_at(text, before)) or (
        ahead > after and text.same_sentence(ahead, index) and _letter_at(text, ahead) is not None
    )
    return in_list


def _size_ending_at(text: Text, place: int) -> bool:
    return _letter_at(text, place) is not None or text.at(place) in {"xl", "xs"}


def _behind_size(text: Text, index: int) -> bool:
    for place in range(index - 1, max(-1, index - 3), -1):
        if not text.same_sentence(place, index):
            return False
        if text.at(place) in SIZE_WORDS:
            return True
        if text.at(place) not in named(": in * ** a us eu uk"):
            return False
    return False


def _numbers(text: Text, index: int) -> list[SizeClaim]:
    """`size 9`, `EU 42`, `sizes 36 to 42`, `sizes 38, 40 and 42`."""
    word = text.at(index)
    if word not in SIZE_INTROS or not text.is_word(index) or text.tokens[index].joined:
        return []
    if word in REGIONS and not text.raw[text.tokens[index].start].isupper():
        return []
    place = _over(text, index + 1, REGIONS | {":", "*"})
    claims: list[SizeClaim] = []
    while (claim := _number_or_range(text, place, place if claims else index)) is not None:
        claims.append(claim)
        place = _over(text, claim.after, JOINS | REGIONS)
        if place == claim.after:
            break
    return claims


def _over(text: Text, place: int, words: frozenset[str]) -> int:
    """The first token that is none of these words."""
    start = place
    while text.at(place) in words and text.same_sentence(place, start):
        place += 1
    return place


def _number_or_range(text: Text, place: int, first: int) -> SizeClaim | None:
    number = _size_number(text, place)
    if number is None:
        return None
    value, after = number
    to = _size_number(text, after + 1) if text.at(after) in {"to", "-", "–"} else None
    if to is None and after < len(text.tokens) and text.tokens[after].joined:
        to = _size_number(text, after)
    if to is not None:
        return SizeClaim(first, to[1], (value, to[0]), is_range=True)
    return SizeClaim(first, after, (value,))


def _size_number(text: Text, place: int) -> tuple[str, int] | None:
    """A number below 100 without unit."""
    if place >= len(text.tokens) or not place >= 0:
        return None
    number = number_at(text, place)
    if number is None or number.in_words or len(number.readings) != 1 or number.readings[0] >= 200:
        return None
    if number.after < len(text.tokens) and text.same_clause(number.after, place):
        if unit_at(text, number.after, value=number.readings[0]) is not None:
            return None
        if text.at(number.after) in {"x", "×"}:
            return None
    return f"{number.readings[0]:g}", number.after


class GivenSizes:
    """Sizes that the facts give."""

    def __init__(self, text: Text) -> None:
        self.claims = sizes_in(text, given=True)
        self._single = {size for claim in self.claims for size in claim.sizes}
        self._between = set(self._single)
        self._ranges = {claim.sizes for claim in self.claims if claim.is_range}
        for claim in self.claims:
            if claim.is_range:
                self._between |= set(_between(*claim.sizes))

    def support(self, claim: SizeClaim) -> bool:
        """Whether the size, or both ends of the range, are given."""
        return all(size in self._between for size in claim.sizes)


def _between(low: str, high: str) -> Iterator[str]:
    if low in LETTERS and high in LETTERS:
        yield from LETTERS[LETTERS.index(low) : LETTERS.index(high) + 1]
