"""Reads the amounts of a text."""

from __future__ import annotations

from dataclasses import replace

from ftcli.metrics.faithfulness.amount import Amount, Scan, Value
from ftcli.metrics.faithfulness.amount_words import number_word
from ftcli.metrics.faithfulness.around import counted, hedge_before, noun_before, nouns_behind
from ftcli.metrics.faithfulness.dates import date_at
from ftcli.metrics.faithfulness.joined import joined_numbers, mixed_units
from ftcli.metrics.faithfulness.no_claims import (
    claims_something,
    grade_before,
    is_no_amount,
    list_number,
)
from ftcli.metrics.faithfulness.number_words import FRACTIONS, Number, number_at
from ftcli.metrics.faithfulness.text import Text
from ftcli.metrics.faithfulness.units import Unit, currency_before, unit_at


def amounts_in(scan: Scan) -> list[Amount]:
    """Every amount, from left to right."""
    found: list[Amount] = []
    index, tokens, item = 0, scan.text.tokens, 0
    while index < len(tokens):
        marked = list_number(scan.text, index, item) if tokens[index].sort == "number" else None
        item = marked or item
        amount = None
        if index not in scan.hidden and (marked is None or scan.given):
            amount = amount_at(scan, index)
        if amount is not None:
            found.append(amount)
        # What is no amount is none of its parts either.
        whole = amount or number_at(scan.text, index)
        index = max(index + 1, whole.after if whole is not None else 0)
    return found


def amount_at(scan: Scan, index: int) -> Amount | None:
    """The amount that begins at this token."""
    text = scan.text
    token = text.tokens[index]
    if token.sort == "sign" and token.low not in FRACTIONS:
        return _with_currency(scan, index)
    whole = number_word(scan, index) or date_at(scan, index)
    if whole is not None:
        return whole
    if scan.given and token.low in {"a", "an"}:
        return _one_unit(text, index)
    number = number_at(text, index)
    if number is None:
        return _with_currency(scan, index) if token.sort == "word" else None
    if not number.readings or is_no_amount(scan, number):
        return None
    return _completed(scan, number, index, None)


def _with_currency(scan: Scan, index: int) -> Amount | None:
    """`$49.99`, `USD 20`."""
    unit = currency_before(scan.text, index)
    after = index + 1
    if unit is None or after >= len(scan.text.tokens):
        return None
    number = number_at(scan.text, after)
    if number is None or not number.readings or number.in_words:
        return None
    return _completed(scan, number, index, unit)


def _one_unit(text: Text, index: int) -> Amount | None:
    """`a week` in the facts: one week."""
    unit = unit_at(text, index + 1, value=1.0, in_words=True)
    if unit is None or unit.units[0].dimension == "fold" or not text.is_word(index + 1):
        return None
    return Amount(index, unit.after, (Value((1.0,), 0, unit.units),), in_words=True)


def _completed(scan: Scan, number: Number, first: int, currency: Unit | None) -> Amount | None:
    """The number with further numbers of a range or of dimensions, its unit, and its noun."""
    text = scan.text
    group = joined_numbers(scan, number, first, currency)
    mixed = mixed_units(text, group) if group.shape == "one" else None
    if mixed is not None:
        return replace(mixed, first=first)
    values, after = group.values, group.after
    if text.at(after) == "dozen" and group.shape == "one" and not values[0].units:
        values, after = (Value((12 * values[0].readings[0],), 0),), after + 1
    end, nouns = counted(text, after, has_unit=group.has_last_unit)
    hedge, direction = hedge_before(text, first)
    whole = Amount(
        first - grade_before(text, first),
        end,
        values,
        group.shape,
        nouns | noun_before(text, first),
        hedge,
        direction,
        number.in_words,
    )
    whole = _rating(text, _in_one(text, whole, after))
    return whole if scan.given or claims_something(text, whole, nouns, after) else None


def _in_one(text: Text, amount: Amount, after: int) -> Amount:
    """`2-in-1`."""
    if text.at(after) == "in" and text.at(after + 1) in {"1", "one"} and not amount.has_unit:
        return replace(amount, after=after + 2, nouns=frozenset({"in one"}))
    return amount


def _rating(text: Text, amount: Amount) -> Amount:
    """`4.8 out of 5 stars`."""
    after = amount.after
    if text.at(after) != "out" or text.at(after + 1) != "of" or after + 2 >= len(text.tokens):
        return amount
    whole = number_at(text, after + 2)
    if whole is None or not whole.readings:
        return amount
    end, nouns = nouns_behind(text, whole.after)
    return replace(
        amount,
        after=end,
        values=(*amount.values, Value(whole.readings, whole.decimals)),
        shape="set",
        nouns=amount.nouns | nouns,
    )
