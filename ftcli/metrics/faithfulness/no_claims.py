"""Numbers that claim nothing: of names, of lists, in fixed ways of speaking."""

from __future__ import annotations

from functools import lru_cache

from ftcli.metrics.faithfulness.amount import Amount, Scan
from ftcli.metrics.faithfulness.lexicon import word_set
from ftcli.metrics.faithfulness.number_words import ORDINALS, SCALES, Number, number_at
from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text, named
from ftcli.metrics.faithfulness.units import unit_at

# Names and grades: letters right before the digits that belong to the amount.
GRADES = named("ip spf upf uv ipx q x us eu uk")


MARKERS = named(
    "product step tip figure fig section chapter table appendix question q answer part "
    "item page note no number nr lesson option example exercise"
)


def list_number(text: Text, index: int, item: int) -> int | None:
    """The number of a list's item, on a line of its own or behind the item before."""
    digits = text.at(index)
    is_mark = text.at(index + 1) in {".", ")"} and text.tokens[index + 1].glued
    if not is_mark or not digits.isdecimal() or len(digits) > 2:
        return None
    number = int(digits)
    if text.line_begins(index):
        return number
    follows = index + 2 < len(text.tokens) and text.tokens[index + 2].capital
    return number if item and number == item + 1 and follows else None


def is_no_amount(scan: Scan, number: Number) -> bool:
    """Numbers of names, list markers, ordinals."""
    text = scan.text
    first, after = number.first, number.after
    token, before = text.tokens[first], text.at(first - 1)
    glued_to_word = text.is_word(first - 1) and (token.glued or bool(token.joined))
    if glued_to_word and not _belongs_to_amount(scan, number):
        return True
    if _glued_behind(text, number) and not scan.given:
        return True
    if scan.given:
        return False
    if text.at(after) in ORDINALS and text.tokens[after].joined:
        # `twenty-first`
        return True
    if before == "(" and text.at(after) == ")" and len(text.at(first)) == 1:
        # `(2)`: a note.
        return True
    if before == "#" or (before == "." and text.at(first - 2) == "no"):
        return True
    if before in MARKERS and not (before == "part" and number.in_words):
        return True
    return _is_list_marker(text, first, after)


def grade_before(text: Text, first: int) -> bool:
    """Whether the letters right before the digits belong to them: IP67, SPF15, x3."""
    is_grade = text.at(first - 1) in GRADES and text.tokens[first].glued
    return is_grade and not text.tokens[first].joined


def _belongs_to_amount(scan: Scan, number: Number) -> bool:
    text = scan.text
    token, before = text.tokens[number.first], text.at(number.first - 1)
    if number.in_words and token.joined:
        return True
    if grade_before(text, number.first):
        return before != "x" or not text.tokens[number.first - 1].glued
    if token.joined:
        unit = unit_at(text, number.first - 1, value=1.0) if number.first > 1 else None
        return unit is not None and text.tokens[number.first - 2].sort == "number"
    return len(token.low) == 4 and _in_hashtag(text, number.first)


def _in_hashtag(text: Text, index: int) -> bool:
    place = index
    while place > 0 and text.tokens[place].glued and index - place < 12:
        place -= 1
    return text.at(place) == "#"


def _glued_behind(text: Text, number: Number) -> bool:
    """Letters right behind the digits that are no unit: 3D, 5G, 2nd, 2XL."""
    after = number.after
    if after >= len(text.tokens) or number.in_words:
        return False
    token = text.tokens[after]
    if token.low in {"\ufe0f", "\u20e3"}:
        return True
    if token.sort != "word" or not token.glued or token.joined:
        return False
    if token.low == "s":
        return not (len(text.at(after - 1)) in {2, 4} and text.at(after - 1).endswith("0"))
    if token.low == "x" or ("." in text.at(after - 1) and token.capital and len(token.low) > 3):
        # Of `19.99Each` only the space is missing.
        return False
    return unit_at(text, after, value=number.readings[0]) is None


def _is_list_marker(text: Text, first: int, after: int) -> bool:
    if text.at(after) == ":" and text.tokens[after].glued and text.is_word(first - 1):
        # `Myth 3: …`
        return text.line_begins(first - 1) and len(text.at(first)) <= 2
    if not text.line_begins(first) or after - first > 1:
        return False
    if len(text.at(first)) <= 2 and not text.same_sentence(after, first):
        # A figure alone on its line.
        return True
    if text.at(after) in {")", "."}:
        return text.tokens[after].glued
    return text.at(after) == ":" and text.tokens[after].glued and len(text.at(first)) <= 2


# `two-way`, `four-sided`: how it is made.
WAYS_OF_MAKING = named("fold way sided tone toned dimensional legged")


# Everybody has two of them.
BODY = frozenset({"hands", "feet", "eyes", "ears", "legs"})


def claims_something(text: Text, amount: Amount, nouns: frozenset[str], after: int) -> bool:
    """Whether an amount of an answer claims something.

    `nouns`: what is counted behind the number, which ends before the token `after`.
    """
    value = amount.values[0].readings[0]
    if nouns & unnamed() and not amount.has_unit:
        return False
    if amount.shape != "one" or len(amount.values) > 1:
        return True
    if value == 1 and not amount.has_unit:
        return _claims_one(text, amount, after)
    if value == 1 and amount.in_words:
        return _is_one_of_a_unit(text, amount)
    if text.at(after) in WAYS_OF_MAKING and text.tokens[after].joined:
        return False
    return not _is_idiom(text, amount, value)


def _is_idiom(text: Text, amount: Amount, value: float) -> bool:
    """`zero effort`, `ukulele 101`, `a thousand ways`, `two hands`."""
    if value == 2 and text.at(amount.after - 1) in BODY:
        return True
    if value == 0 and amount.in_words:
        return True
    is_scale = amount.in_words and text.at(amount.first) in SCALES
    return (is_scale or value in {0, 101}) and not amount.has_unit


def _is_one_of_a_unit(text: Text, amount: Amount) -> bool:
    """`one litre`, `one-year`; `one day` is a time to come unless something limits it."""
    last = amount.after - 1
    if text.at(last) not in {"day", "time", "x"} or last != amount.first + 1:
        return True
    return bool(text.tokens[last].joined) or text.at(amount.first - 1) in LIMITS


LIMITS = frozenset({"in", "within", "for", "only", "just"})
DOSES = named("day week month morning evening night meal hour")


def _claims_one(text: Text, amount: Amount, after: int) -> bool:
    """`one capsule a day`, and `one front and two rear pockets`; else `one` is an article."""
    end = amount.after
    if text.at(end) in {"a", "per", "every", "each"} and text.at(end + 1) in DOSES:
        return True
    if text.at(end) in {"daily", "weekly"} or text.at(end - 1) in {"daily", "weekly"}:
        return True
    if text.at(end) == "and" and end + 1 < len(text.tokens) and end - amount.first <= 4:
        other = number_at(text, end + 1)
        if other is not None and other.readings and other.readings[0] >= 2:
            return True
    # Digits state an amount, but for a lone figure.
    has_noun = end > after
    return not amount.in_words and has_noun and text.at(end) != "of"


@lru_cache
def unnamed() -> frozenset[str]:
    return frozenset(same_thing(word) for word in word_set("unnamed"))
