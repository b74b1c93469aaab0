"""Whether an amount of an answer stands in the facts: the same value of the same unit."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ftcli.metrics.faithfulness.amount import Amount, Direction, Scan, Value
from ftcli.metrics.faithfulness.amounts import amounts_in
from ftcli.metrics.faithfulness.context import negated
from ftcli.metrics.faithfulness.dates import MONTHS
from ftcli.metrics.faithfulness.given import Given, Item, Line
from ftcli.metrics.faithfulness.number_words import ORDINALS
from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text, in_order
from ftcli.metrics.faithfulness.units import CURRENCIES, Unit, unit_at

# A value with "about" or "under" may be this far from the given one.
HEDGED = 0.05
# Values looked at for one number: facts of any sensible length have fewer that are so near.
MOST_NEAR = 200
GENERIC = frozenset(
    same_thing(word)
    for word in in_order("pieces items pack set quantity count contents parts units amount number")
)
PRICES = frozenset(same_thing(word) for word in ["price", "cost", "msrp", "rrp", "sale"])
# A number behind them is a name of a kind, and no count.
CLASSES = frozenset(same_thing(word) for word in in_order("type stage grade class phase"))


@dataclass(frozen=True, slots=True)
class GivenValue:
    """One number of the facts, in one of its readings and one of its units."""

    worth: float
    """In base units; without a unit the number itself."""
    value: float
    unit: Unit | None
    nouns: frozenset[str]
    end: Direction
    """Of a range."""
    only_dates: bool = False
    is_count: bool = False
    """How long a list is: only an amount that counts its items agrees."""
    place: tuple[int, int] = (-1, 0)
    """Where it stands, in characters of the facts, and which number of its amount it is; -1: it
    stands nowhere, as the count of a list."""


class GivenNumbers:
    """Every number that the facts give."""

    def __init__(self, values: Iterable[GivenValue], *, is_talk: bool) -> None:
        by_unit: dict[str, list[GivenValue]] = {}
        for each in values:
            by_unit.setdefault(each.unit.dimension if each.unit else "", []).append(each)
            by_unit.setdefault("any", []).append(replace(each, worth=each.value))
        self._by_unit = {
            name: sorted(set(found), key=lambda each: (each.worth, each.place))
            for name, found in by_unit.items()
        }
        self._worths = {
            name: [each.worth for each in found] for name, found in self._by_unit.items()
        }
        self._is_talk = is_talk

    def support(self, amount: Amount) -> bool:
        """Whether every number of the amount is given; 200 x 200 takes two of them."""
        used: set[tuple[int, int]] = set()
        for value in amount.values:
            source = next(
                (each for each in self.sources(amount, value) if each.place not in used), None
            )
            if source is None:
                return False
            if amount.shape == "set":
                used.add(source.place)
        return True

    def gives(self, amount: Amount, part: int) -> bool:
        """Whether one number of the amount is given."""
        return any(True for _ in self.sources(amount, amount.values[part]))

    def sources(self, amount: Amount, value: Value) -> Iterator[GivenValue]:
        """Given values with which one number of an amount agrees."""
        for reading in value.readings:
            for unit in value.units or (None,):
                yield from self._agreeing(amount, value, reading, unit)

    def _agreeing(
        self, amount: Amount, value: Value, reading: float, unit: Unit | None
    ) -> Iterator[GivenValue]:
        for each in self._near(unit.dimension if unit else "any", reading, unit, value.decimals):
            if self._agrees(amount, value, reading, unit, each):
                yield each
        if unit is not None:
            for each in self._near("", reading, None, 0):
                is_counted = bool(amount.nouns & each.nouns)
                if (is_counted or self._is_unit_left_out(unit, each)) and _equal(
                    reading, each.value
                ):
                    yield each

    def _near(
        self, name: str, reading: float, unit: Unit | None, decimals: int
    ) -> Sequence[GivenValue]:
        worth = unit.worth(reading) if unit else reading
        # Half of the last digit shown, for a value that was converted and rounded.
        rounding = abs(unit.factor if unit else 1.0) * 0.51 * 10.0**-decimals
        room = max(abs(worth) * 0.06, rounding)
        worths = self._worths.get(name, [])
        low = bisect.bisect_left(worths, worth - room)
        high = bisect.bisect_right(worths, worth + room)
        return self._by_unit.get(name, [])[low : min(high, low + MOST_NEAR)]

    def _is_unit_left_out(self, unit: Unit, each: GivenValue) -> bool:
        """A number without unit in speech, or behind the key that says the unit."""
        if each.only_dates:
            return False
        if self._is_talk:
            return True
        if unit.dimension in CURRENCIES:
            return bool(each.nouns & PRICES)
        return same_thing(unit.dimension) in each.nouns

    def _agrees(
        self, amount: Amount, value: Value, reading: float, unit: Unit | None, each: GivenValue
    ) -> bool:
        if each.only_dates and amount.shape != "set":
            return False
        if each.is_count and amount.nouns.isdisjoint(each.nouns):
            return False
        if amount.shape == "one" and each.end and amount.direction != each.end:
            return False
        if unit is None and not self._counts_the_same(amount, reading, each):
            return False
        worth = unit.worth(reading) if unit else reading
        if _equal(worth, each.worth) or _hedged(amount, worth, each.worth):
            return True
        return unit is not None and _converted(reading, value.decimals, unit, each)

    def _counts_the_same(self, amount: Amount, reading: float, each: GivenValue) -> bool:
        bare = not amount.nouns or amount.shape == "set" or _is_year(reading)
        if bare or (self._is_talk and not amount.nouns & CLASSES):
            return True
        if each.unit is not None:
            return False
        return bool(amount.nouns & each.nouns or GENERIC & (each.nouns | amount.nouns))


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _is_year(value: float) -> bool:
    return 1900 <= value <= 2099 and value == int(value)


def _hedged(amount: Amount, worth: float, given: float) -> bool:
    if not amount.hedge or abs(worth - given) > HEDGED * abs(given):
        return False
    if amount.hedge == "under":
        return given <= worth
    return given >= worth if amount.hedge == "over" else True


def _converted(reading: float, decimals: int, unit: Unit, each: GivenValue) -> bool:
    """Metric to imperial or back, rounded to the digits shown."""
    other = each.unit
    if other is None or not unit.system or not other.system or unit.system == other.system:
        return False
    exact = each.worth / unit.factor - unit.offset
    return abs(exact - reading) <= 0.5 * 10.0**-decimals + 1e-9


def given_numbers(facts: Given) -> GivenNumbers:
    """Every number of the facts, with what its line says of it."""
    return GivenNumbers(
        [*_in_text(facts), *_counts_of_lists(facts.lines), *_other_numbers(facts.text)],
        is_talk=facts.is_talk,
    )


def numbers_of(item: Item) -> list[tuple[Amount, frozenset[str]]]:
    """Amounts of one fact, each with what its key adds to what is counted."""
    text = Text(item.value)
    key = key_nouns(item.key)
    return [(amount, key) for amount in amounts_in(Scan(text, given=True))]


def key_nouns(key: str) -> frozenset[str]:
    return frozenset(same_thing(token.low) for token in Text(key).tokens if token.sort == "word")


def _in_text(facts: Given) -> Iterator[GivenValue]:
    lines = sorted(facts.lines, key=lambda line: line.value_start)
    starts = [line.value_start for line in lines]
    for amount in amounts_in(Scan(facts.text, given=True)):
        start = facts.text.tokens[amount.first].start
        if negated(facts.text, amount.first, amount.after) and facts.is_talk is False:
            continue
        index = bisect.bisect_right(starts, start) - 1
        line = lines[index] if index >= 0 else None
        if line is not None and start > line.value_start + len(line.value):
            line = None
        yield from _values(amount, line, start)


def _values(amount: Amount, line: Line | None, start: int) -> Iterator[GivenValue]:
    nouns = amount.nouns | (key_nouns(line.key) if line is not None else frozenset())
    if amount.is_group and line is not None and line.is_name:
        nouns |= key_nouns(line.value)
    elif line is not None and not amount.nouns and len(line.value.split()) > 2:
        # `cutlery for four`: it counts what the reader has to guess.
        nouns |= GENERIC
    unit_of_key = _unit_of(line.key) if line is not None and not amount.has_unit else None
    is_range = amount.shape == "range"
    for index, value in enumerate(amount.values):
        end: Direction = ""
        if is_range:
            end = "low" if index == 0 else "high"
        for reading in value.readings:
            for unit in value.units or (unit_of_key,):
                worth = unit.worth(reading) if unit else reading
                yield GivenValue(worth, reading, unit, nouns, end, place=(start, index))


def _unit_of(key: str) -> Unit | None:
    """`Weight (kg)`."""
    text = Text(key)
    for index, token in enumerate(text.tokens):
        if token.low in {"(", "["} and index + 1 < len(text.tokens):
            found = unit_at(text, index + 1, value=2.0)
            return found.units[0] if found is not None else None
    return None


def _counts_of_lists(lines: Iterable[Line]) -> Iterator[GivenValue]:
    for line in lines:
        if not line.is_name and len(line.items) > 1:
            count = float(len(line.items))
            yield GivenValue(count, count, None, key_nouns(line.key), "", is_count=True)


def _other_numbers(text: Text) -> Iterator[GivenValue]:
    """Months as numbers, and ordinals: parts of dates."""
    for index, token in enumerate(text.tokens):
        value = float(MONTHS.get(token.low, 0) or ORDINALS.get(token.low, 0))
        if token.sort == "number" and text.at(index + 1) in {"st", "nd", "rd", "th"}:
            value = float(token.low) if token.low.isdecimal() and len(token.low) < 3 else 0.0
        if value:
            yield GivenValue(
                value, value, None, frozenset(), "", only_dates=True, place=(token.start, 0)
            )
