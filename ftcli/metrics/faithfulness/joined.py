"""Numbers that go together: ranges, dimensions, feet and inches."""

from __future__ import annotations

from dataclasses import dataclass

from ftcli.metrics.faithfulness.amount import Amount, Scan, Shape, Value
from ftcli.metrics.faithfulness.number_words import Number, number_at
from ftcli.metrics.faithfulness.text import Text
from ftcli.metrics.faithfulness.units import Unit, UnitFound, currency_before, unit_at

JOINTS: dict[str, Shape] = {
    **dict.fromkeys(("to", "–", "-", "~"), "range"),
    **dict.fromkeys(("x", "×", "by", "/", "or", "*", ":"), "set"),
}
# Between two numbers of one thing these stand without spaces: 120/80, 17:42.
CLOSE = frozenset({"/", "*", ":"})


@dataclass(frozen=True)
class Joined:
    """Numbers one behind the other, each with its unit, up to the token `after`."""

    numbers: tuple[Number, ...]
    units: tuple[UnitFound | None, ...]
    shape: Shape
    after: int

    @property
    def has_last_unit(self) -> bool:
        return self.units[-1] is not None

    @property
    def values(self) -> tuple[Value, ...]:
        """A number without unit has that of the next one: 110 to 135 cm."""
        values: list[Value] = []
        found: tuple[Unit, ...] = ()
        for number, unit in zip(reversed(self.numbers), reversed(self.units), strict=True):
            found = unit.units if unit is not None else found
            values.append(Value(number.readings, number.decimals, found))
        return tuple(reversed(values))


def joined_numbers(scan: Scan, number: Number, first: int, currency: Unit | None) -> Joined:
    """The number, and those that are joined to it."""
    numbers, units = [number], [_unit_behind(scan.text, number, currency)]
    shape: Shape = "one"
    after = number.after if units[0] is None else units[0].after
    while (more := _next_number(scan, after, first, has_unit=units[-1] is not None)) is not None:
        joint, following = more
        unit = _unit_behind(scan.text, following, currency)
        if scan.text.at(after) == "by" and unit is None and units[-1] is None:
            # "4.7 by 1,200 customers" measures nothing.
            break
        numbers.append(following)
        units.append(unit)
        after = following.after if unit is None else unit.after
        shape = "range" if joint == "range" and shape == "one" else "set"
    return Joined(tuple(numbers), tuple(units), shape, after)


def _unit_behind(text: Text, number: Number, currency: Unit | None) -> UnitFound | None:
    after = number.after
    if currency is not None:
        # `$20 USD`
        again = unit_at(text, after, value=number.readings[0]) if after < len(text.tokens) else None
        is_same = again is not None and again.units[0].dimension == currency.dimension
        return UnitFound((currency,), again.after if again is not None and is_same else after)
    if after >= len(text.tokens) or (text.at(after) == "s" and text.tokens[after].glued):
        # `60s` is a decade.
        return None
    return unit_at(text, after, value=number.readings[0], in_words=number.in_words)


def _next_number(
    scan: Scan, after: int, first: int, *, has_unit: bool
) -> tuple[Shape, Number] | None:
    """How the next number is joined, and the number."""
    text = scan.text
    joint = _joint(text, after, first, has_unit=has_unit)
    if joint is None:
        return None
    is_dash = text.tokens[after].joined and text.tokens[after].sort == "number"
    place = after if is_dash else after + 1
    if place >= len(text.tokens) or not text.same_sentence(place, after):
        return None
    place += currency_before(text, place) is not None
    if place >= len(text.tokens) or place in scan.hidden:
        return None
    number = number_at(text, place)
    if number is None or not number.readings:
        return None
    if text.at(after) in CLOSE and not (
        text.tokens[after].glued and text.tokens[number.first].glued
    ):
        return None
    return joint, number


def _joint(text: Text, after: int, first: int, *, has_unit: bool) -> Shape | None:
    if after >= len(text.tokens):
        return None
    word = text.at(after)
    if text.tokens[after].joined and text.tokens[after].sort == "number":
        return "range"
    if (word == "and" and text.at(first - 1) == "between") or (word == "through" and not has_unit):
        return "range"
    return JOINTS.get(word)


def mixed_units(text: Text, group: Joined) -> Amount | None:
    """6 ft 2 in, 1 h 30 min, twelve dollars and ninety nine cents: one amount."""
    unit, after = group.units[0], group.after
    place = after + (text.at(after) == "and")
    if unit is None or place >= len(text.tokens) or not text.same_clause(place, after - 1):
        return None
    smaller = number_at(text, place)
    if smaller is None or not smaller.readings or smaller.after >= len(text.tokens):
        return None
    behind = unit_at(text, smaller.after, value=smaller.readings[0], in_words=smaller.in_words)
    if behind is None or not _is_part(behind.units[0], unit.units[0]):
        return None
    ratio = unit.units[0].factor / behind.units[0].factor
    value = group.numbers[0].readings[0] * ratio + smaller.readings[0]
    first = group.numbers[0].first
    return Amount(first, behind.after, (Value((value,), smaller.decimals, behind.units[:1]),))


def _is_part(small: Unit, large: Unit) -> bool:
    return small.dimension == large.dimension and small.factor < large.factor and not small.offset
