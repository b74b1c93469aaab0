"""Numbers in digits and in words, spoken ones too: what value they can have."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ftcli.metrics.faithfulness.text import Text, in_order

UNITS = {
    word: value
    for value, word in enumerate(
        in_order(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen "
            "fourteen fifteen sixteen seventeen eighteen nineteen"
        )
    )
}
TENS = {
    word: 10 * value
    for value, word in enumerate(
        in_order("twenty thirty forty fifty sixty seventy eighty ninety"), start=2
    )
} | {"fourty": 40}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
ORDINALS = {
    word: value
    for value, word in enumerate(
        in_order(
            "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
            "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth "
            "twentieth"
        ),
        start=1,
    )
} | {"thirtieth": 30}
FRACTIONS = {"½": 0.5, "¼": 0.25, "¾": 0.75, "⅓": 1 / 3, "⅔": 2 / 3, "⅛": 0.125}
GROUPS = {"pair": 2, "pairs": 2, "duo": 2, "trio": 3, "quartet": 4, "dozen": 12, "quintet": 5}
# Numbers longer than this are codes: what they are worth is not asked.
LONGEST_DIGITS = 18


@dataclass(frozen=True)
class Number:
    """A number at the tokens [first, after)."""

    first: int
    after: int
    readings: tuple[float, ...]
    """Values that it can have: 1.299 is 1.299, and 1299 in German."""
    decimals: int
    """Digits shown after the decimal mark."""
    in_words: bool


def number_at(text: Text, index: int) -> Number | None:
    """The number that begins at this token, as far as it goes."""
    token = text.tokens[index]
    if token.sort == "number":
        return _in_digits(text, index)
    if token.low in FRACTIONS:
        return Number(index, index + 1, (FRACTIONS[token.low],), 2, False)
    if token.low in UNITS or token.low in TENS or token.low in SCALES:
        return _in_words(text, index)
    return None


def readings_of(digits: str) -> tuple[tuple[float, ...], int]:
    """Values of digits with points and commas, and how many digits the decimal part shows."""
    if len(digits) > LONGEST_DIGITS:
        return (), 0
    if digits.isdecimal():
        return (float(digits),), 0
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+\.\d+", digits):
        return (float(digits.replace(",", "")),), len(digits.rpartition(".")[2])
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", digits):
        plain = digits.replace(".", "").replace(",", ".")
        return (float(plain),), len(plain.rpartition(".")[2])
    if re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", digits):
        more = (float(digits.replace(",", ".")),) if digits.count(",") == 1 else ()
        return (float(digits.replace(",", "")), *more), 0
    if re.fullmatch(r"[1-9]\d{0,2}(?:\.\d{3})+", digits):
        more = (float(digits),) if digits.count(".") == 1 else ()
        return (*more, float(digits.replace(".", ""))), 3
    if re.fullmatch(r"\d+[.,]\d+", digits):
        whole, decimals = re.split("[.,]", digits)
        return (float(f"{whole}.{decimals}"),), len(decimals)
    # A list without spaces, or a version such as 1.2.3.
    return tuple(float(part) for part in re.split("[.,]", digits)), 0


def _in_digits(text: Text, index: int) -> Number:
    token = text.tokens[index]
    readings, decimals = readings_of(token.low)
    after = index + 1
    # `.5`
    if text.at(index - 1) == "." and token.glued and not text.tokens[index - 1].glued:
        readings, decimals = (float(f"0.{token.low}"),) if token.low.isdecimal() else (), 1
    # `1/2`, `1 1/2`, `1½`
    if text.at(after) in FRACTIONS and len(readings) == 1:
        return Number(index, after + 1, (readings[0] + FRACTIONS[text.at(after)],), 2, False)
    fraction = _fraction(text, after)
    if fraction is not None and len(readings) == 1 and not text.tokens[after].glued:
        return Number(index, after + 3, (readings[0] + fraction,), 2, False)
    own = _fraction(text, index)
    if own is not None and token.low != "0":
        return Number(index, index + 3, (own,), 2, False)
    scale = SCALES.get(text.at(after))
    if scale is not None and scale >= 1000:
        return Number(index, after + 1, tuple(value * scale for value in readings), 0, False)
    return Number(index, after, readings, decimals, False)


def _fraction(text: Text, index: int) -> float | None:
    """`3/4` of small numbers, glued: 0.75."""
    if text.at(index + 1) != "/":
        return None
    top, sign, bottom = text.at(index), text.at(index + 1), text.at(index + 2)
    small = re.fullmatch("[1-9]", top) and re.fullmatch("[2-8]|16", bottom)
    if sign == "/" and small and int(top) < int(bottom) and text.tokens[index + 2].glued:
        return int(top) / int(bottom) if text.at(index + 3) != "/" else None
    return None


def _in_words(text: Text, index: int) -> Number | None:
    groups: list[list[int]] = []
    after = index
    while after < len(text.tokens) and after - index < 12:
        word = text.at(after)
        if after > index and not text.same_clause(after, index):
            break
        if word == "and" and groups and groups[-1][-1] >= 100 and _counts(text.at(after + 1)):
            after += 1
            continue
        if not _counts(word):
            break
        if not _extends(groups, word):
            groups.append([])
        groups[-1].append(UNITS.get(word, TENS.get(word, SCALES.get(word, 0))))
        after += 1
    if not groups:
        return None
    values = [_worth(group) for group in groups]
    decimals = _spoken_decimals(text, after)
    if decimals:
        digits = "".join(str(each) for each in decimals)
        return Number(
            index,
            after + 1 + len(decimals),
            (float(f"{_spoken(values)}.{digits}"),),
            len(digits),
            True,
        )
    together = float(_spoken(values))
    return Number(index, after, (together,), 0, True)


def _counts(word: str) -> bool:
    return word in UNITS or word in TENS or word in SCALES


def _extends(groups: list[list[int]], word: str) -> bool:
    """Whether the word goes on with the group: twenty five, two thousand eighteen."""
    if not groups:
        return False
    last = groups[-1][-1]
    if word in SCALES:
        return True
    if last >= 100:
        return True
    return word in UNITS and 0 < UNITS[word] < 10 and last in TENS.values()


def _worth(group: list[int]) -> int:
    total, part = 0, 0
    for value in group:
        if value == 100:
            part = max(part, 1) * 100
        elif value >= 1000:
            total, part = total + max(part, 1) * value, 0
        else:
            part += value
    return total + part


def _spoken(values: list[int]) -> int:
    """Numbers said one after the other: nineteen ninety seven, one thirty five."""
    together = values[0]
    for value in values[1:]:
        shift = 10 if value < 10 else 100
        together = together * shift + value if value < 100 and together < 10**6 else value
    return together


def _spoken_decimals(text: Text, after: int) -> list[int]:
    """Digits after `point`."""
    if text.at(after) != "point":
        return []
    found: list[int] = []
    while UNITS.get(text.at(after + 1 + len(found)), 10) < 10 and len(found) < 6:
        found.append(UNITS[text.at(after + 1 + len(found))])
    return found
