"""Words that are numbers: half, quarter, twice, pair, dozen, trio, couple, type II."""

from __future__ import annotations

from ftcli.metrics.faithfulness.amount import Amount, Scan, Value
from ftcli.metrics.faithfulness.around import nouns_behind
from ftcli.metrics.faithfulness.lexicon import word_set
from ftcli.metrics.faithfulness.number_words import GROUPS
from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text, named
from ftcli.metrics.faithfulness.units import CURRENCIES, Unit, unit_at


def number_word(scan: Scan, index: int) -> Amount | None:
    """Words that are numbers: half, quarter, twice, pair, dozen, trio, couple, type II."""
    text = scan.text
    word = text.at(index)
    if word in {"half", "quarter"}:
        return _part(scan, index)
    if word in {"twice", "thrice"} or (word == "once" and scan.given):
        return _times(scan, index)
    if word in GROUPS or word == "couple":
        return _group(scan, index)
    if word in {"type", "stage", "grade", "class", "phase"}:
        return _roman(text, index)
    return None


PARTED = named(
    "pack packs tablet tablets pill pills cup cups glass portion bottle teaspoon slice serving"
)


def _part(scan: Scan, index: int) -> Amount | None:
    text = scan.text
    worth = 0.5 if text.at(index) == "half" else 0.25
    if text.at(index) == "half" and text.at(index + 1) == "price":
        return Amount(index, index + 2, (Value((50.0,), 0, (Unit("share"),)),))
    if text.at(index) == "quarter" and text.at(index + 1) == "turn":
        return Amount(index, index + 2, (Value((0.25,), 2),), nouns=frozenset({"turn"}))
    after = index + 1
    after += text.at(after) == "of" and text.at(after + 1) in {"a", "an"}
    has_article = text.at(after) in {"a", "an"}
    after += has_article
    if text.at(after) == "dozen":
        end, nouns = nouns_behind(text, after + 1)
        return Amount(index, end, (Value((12 * worth,), 0),), nouns=nouns, in_words=True)
    if after >= len(text.tokens):
        return None
    unit = unit_at(text, after, value=worth, in_words=True)
    if unit is not None and unit.units[0].dimension not in CURRENCIES | {"fold"}:
        # "half a day" goes with an article, "half day" is a way of working.
        return Amount(index, unit.after, (Value((worth,), 2, unit.units),), in_words=True)
    if has_article and (scan.given or text.at(after) in PARTED):
        end, nouns = nouns_behind(text, after)
        return Amount(index, end, (Value((worth,), 1),), nouns=nouns, in_words=True)
    return None


TIMES = named("daily weekly monthly yearly a per each every as the more")


def _times(scan: Scan, index: int) -> Amount | None:
    text = scan.text
    following = text.at(index + 1)
    if following not in TIMES and not scan.given:
        return None
    value = {"once": 1.0, "twice": 2.0, "thrice": 3.0}[text.at(index)]
    after = index + 1
    if following == "as" and text.is_word(index + 2):
        after = index + 3
    return Amount(
        index, after, (Value((value,), 0),), nouns=frozenset({same_thing("times")}), in_words=True
    )


def _group(scan: Scan, index: int) -> Amount | None:
    """`a pair of mugs`, `a dozen`, `a trio of bowls`; not of what comes in pairs by nature."""
    text = scan.text
    word = text.at(index)
    if word == "couple":
        return _couple(scan, index)
    has_of = text.at(index + 1) == "of"
    after = index + 1 + has_of
    if not scan.given and (word == "pairs" or not (has_of or word == "dozen")):
        return None
    if not scan.given and word == "pair" and _by_nature(text, after):
        return None
    after += text.at(after) in {"a", "an", "the", "these", "our", "your"}
    end, nouns = nouns_behind(text, after)
    value = Value((float(GROUPS[word]),), 0)
    return Amount(index, end, (value,), nouns=nouns, is_group=True, in_words=True)


def _couple(scan: Scan, index: int) -> Amount | None:
    """`a couple of hours`; of things it is vague, unless the facts say it."""
    text = scan.text
    if text.at(index + 1) != "of" or index + 2 >= len(text.tokens):
        return None
    unit = unit_at(text, index + 2, value=2.0, in_words=True)
    if unit is not None:
        return Amount(index, unit.after, (Value((2.0,), 0, unit.units),), in_words=True)
    if not scan.given:
        return None
    end, nouns = nouns_behind(text, index + 2)
    return Amount(index, end, (Value((2.0,), 0),), nouns=nouns, in_words=True)


def _by_nature(text: Text, after: int) -> bool:
    """Whether what stands behind `pair of` comes in pairs: shoes, these."""
    if text.at(after) in {"these", "those"}:
        return True
    return not word_set("pairs_by_nature").isdisjoint(_named(text, after))


def _named(text: Text, after: int) -> set[str]:
    """Words of the clause behind `pair of`: the last word of a longer name."""
    ends = named("with for that and to")
    found: set[str] = set()
    for place in range(after, min(after + 8, len(text.tokens))):
        if not text.same_clause(place, after) or text.at(place) in ends:
            break
        found.add(text.at(place))
    return found


ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5}


def _roman(text: Text, index: int) -> Amount | None:
    following = index + 1
    if text.at(following) not in ROMAN or not text.tokens[following].capital:
        return None
    value = float(ROMAN[text.at(following)])
    if text.at(following) == "i" and text.is_word(following + 1):
        return None
    return Amount(
        index, index + 2, (Value((value,), 0),), nouns=frozenset({same_thing(text.at(index))})
    )
