"""What stands around a number: what it counts, and how surely it is meant."""

from __future__ import annotations

from ftcli.metrics.faithfulness.amount import Direction, Hedge
from ftcli.metrics.faithfulness.lexicon import word_set
from ftcli.metrics.faithfulness.number_words import GROUPS, number_at
from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text, named


def counted(text: Text, after: int, *, has_unit: bool) -> tuple[int, frozenset[str]]:
    """What is counted. A unit may be a thing that is counted too: three feet of a pan."""
    if not has_unit:
        return nouns_behind(text, after)
    word = text.at(after - 1)
    return after, frozenset({same_thing(word)}) if word in COUNTED_UNITS else frozenset()


COUNTED_UNITS = frozenset({"feet", "yards", "seconds", "pixels", "bars"})


def nouns_behind(text: Text, after: int) -> tuple[int, frozenset[str]]:
    """What is counted: up to four words behind the number, and where they end."""
    stop = word_set("stop")
    found: list[str] = []
    place = after
    if text.at(place) == "of" and text.at(place - 1) in GROUPS:
        place += 1
    while len(found) < 4 and text.is_word(place):
        token = text.tokens[place]
        if (token.low in stop and not token.joined) or not text.same_clause(place, after - 1):
            break
        if number_at(text, place) is not None or (token.glued and not token.joined):
            break
        found.append(token.low)
        place += 1
    end = place if found else after
    if found and text.at(place) == "," and not found[-1].endswith("s"):
        # `three durable, braided cables`: what is counted is more than one.
        found += _words_behind(text, place + 1)
    return end, frozenset(same_thing(word) for word in found)


def _words_behind(text: Text, place: int) -> list[str]:
    first = place
    while place - first < 4 and text.is_word(place) and text.same_clause(place, first):
        if text.at(place) in word_set("stop") and not text.tokens[place].joined:
            break
        place += 1
    return [text.at(each) for each in range(first, place)]


def noun_before(text: Text, first: int) -> frozenset[str]:
    """`Bluetooth 5.0`, `seats three`: the word before the number; of `set of four` pieces."""
    if text.at(first - 1) == "of" and text.at(first - 2) in SETS:
        return frozenset({same_thing("pieces")})
    before = first - 1
    if text.at(before) in {"-", ":", "/"}:
        before -= 1
    if not text.is_word(before) or not text.same_sentence(before, first):
        return frozenset()
    word = text.at(before)
    return frozenset() if word in word_set("stop") else frozenset({same_thing(word)})


# `set of four`: the four are of what the set is of.
SETS = named("set pack box case bundle pair bag kit group total lot assortment")


HEDGES: dict[str, Hedge] = {
    **dict.fromkeys(
        named("about around approximately approx roughly circa ca some ~ ≈ close"), "about"
    ),
    **dict.fromkeys(named("under below nearly almost"), "under"),
    **dict.fromkeys(named("over above"), "over"),
}
TWO_WORDS: dict[tuple[str, str], tuple[Hedge, Direction]] = {
    ("less", "than"): ("under", "high"),
    ("fewer", "than"): ("under", "high"),
    ("more", "than"): ("over", "low"),
    ("up", "to"): ("under", "high"),
    ("at", "most"): ("under", "high"),
    ("at", "least"): ("over", "low"),
    ("close", "to"): ("about", ""),
    ("starting", "at"): ("", "low"),
    ("as", "low"): ("", "low"),
    ("not", "exceeding"): ("under", "high"),
}


DIRECTIONS: dict[str, Direction] = {
    "from": "low",
    "minimum": "low",
    "min": "low",
    "max": "high",
    "maximum": "high",
    "within": "high",
    "until": "high",
    "to": "high",
    "≥": "low",
    "≤": "high",
}


def hedge_before(text: Text, first: int) -> tuple[Hedge, Direction]:
    before = first - 1
    if before >= 0 and not text.same_sentence(before, first):
        return "", ""
    for skipped in ("of", "a", "an", "the", "as"):
        before -= text.at(before) == skipped
    pair = (text.at(before - 1), text.at(before))
    if pair == ("more", "than") and text.at(before - 2) == "no":
        return "under", "high"
    if pair == ("less", "than") and text.at(before - 2) == "no":
        return "over", "low"
    if pair in TWO_WORDS:
        return TWO_WORDS[pair]
    word = text.at(before)
    if word == "." and text.at(before - 1) in {"approx", "ca"}:
        word = "approx"
    hedge = HEDGES.get(word, "")
    return hedge, DIRECTIONS.get(word, "high" if hedge == "under" else "")
