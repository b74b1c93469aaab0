"""Dates with a month's name or in digits."""

from __future__ import annotations

from ftcli.metrics.faithfulness.amount import Amount, Scan, Value
from ftcli.metrics.faithfulness.number_words import ORDINALS, number_at
from ftcli.metrics.faithfulness.text import Text

NAMES = """
january jan
february feb
march mar
april apr
may
june jun
july jul
august aug
september sep sept
october oct
november nov
december dec
"""
MONTHS = {
    name: number
    for number, names in enumerate(NAMES.strip().splitlines(), start=1)
    for name in names.split()
}
# Words of a date at the most: "on the third of May, two thousand eighteen".
LONGEST = 9


def date_at(scan: Scan, index: int) -> Amount | None:
    """A date with a month's name, or in digits: 3 May 2018, 5/3/2018, 2018-05-03."""
    text = scan.text
    token = text.tokens[index]
    if token.sort != "number" and token.low not in MONTHS and token.low not in ORDINALS:
        return None
    if any(text.at(index + step) in MONTHS for step in range(6)):
        found = _with_month(text, index)
        if found is not None:
            return found
    return _day_month_year(text, index) or _with_dashes(text, index)


def _with_month(text: Text, index: int) -> Amount | None:
    parts: list[float] = []
    months, place = 0, index
    while place < len(text.tokens) and place - index < LONGEST and text.same_sentence(place, index):
        month = _month(text, place)
        months += month is not None
        step = (month, place + 1) if month is not None else _date_part(text, place)
        if step is None:
            break
        value, place = step
        if value is not None:
            parts.append(value)
    while place > index and text.at(place - 1) in {",", "of", "the", "."}:
        place -= 1
    if months != 1 or len(parts) < 2:
        return None
    return Amount(index, place, tuple(Value((part,), 0) for part in parts), "set")


def _month(text: Text, place: int) -> float | None:
    word = text.at(place)
    is_verb = word in {"may", "march", "mar"} and not text.tokens[place].capital
    return float(MONTHS[word]) if word in MONTHS and not is_verb else None


def _date_part(text: Text, place: int) -> tuple[float | None, int] | None:
    """A day or a year of a date, or a word between its parts."""
    word = text.at(place)
    if word in {",", "of", "the"}:
        return None, place + 1
    if word in ORDINALS:
        return float(ORDINALS[word]), place + 1
    number = number_at(text, place)
    if number is None or len(number.readings) != 1 or number.decimals:
        return None
    value, after = number.readings[0], number.after
    if number.in_words and text.at(after) in ORDINALS and value in {20, 30}:
        return value + ORDINALS[text.at(after)], after + 1
    is_ordinal = text.at(after) in {"st", "nd", "rd", "th"} and text.tokens[after].glued
    return (value, after + is_ordinal) if 1 <= value <= 31 or 1000 <= value <= 2999 else None


def _day_month_year(text: Text, index: int) -> Amount | None:
    """5/3/2018."""
    parts = [text.at(index + step) for step in range(5)]
    numbers = parts[0::2]
    if parts[1] != "/" or parts[3] != "/" or not all(_is_short(each) for each in numbers):
        return None
    return Amount(index, index + 5, tuple(Value((float(each),), 0) for each in numbers), "set")


def _with_dashes(text: Text, index: int) -> Amount | None:
    """2018-05-03, and telephone numbers."""
    after = index + 1
    while after < len(text.tokens) and text.tokens[after].joined and _is_short(text.at(after)):
        after += 1
    if after - index < 3 or not _is_short(text.at(index)):
        return None
    values = tuple(Value((float(text.at(place)),), 0) for place in range(index, after))
    return Amount(index, after, values, "set")


def _is_short(digits: str) -> bool:
    return digits.isdecimal() and len(digits) <= 4
