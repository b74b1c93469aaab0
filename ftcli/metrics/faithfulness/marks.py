"""Trade marks that are known, and whether a word is written as a name."""

from __future__ import annotations

from functools import lru_cache

from ftcli.metrics.faithfulness.lexicon import phrase_of, word_list, word_set
from ftcli.metrics.faithfulness.text import Text, named


@lru_cache
def known_marks() -> dict[tuple[str, ...], bool]:
    """Trade mark → whether it is also an ordinary word."""
    marks: dict[tuple[str, ...], bool] = {}
    for line in (*word_list("brands"), *word_list("medicines")):
        marks[phrase_of(line.removeprefix("="))] = line.startswith("=")
    return marks


# Trade marks that people write as if they were ordinary words.
WITHOUT_CAPITAL = named(
    "velcro lycra kevlar teflon iphone ipad ipod youtube google facebook instagram "
    "cordura goretex gore-tex tupperware jacuzzi alexa tencel perspex plexiglass "
    "plexiglas vibram ykk xbox playstation swarovski pyrex tylenol advil spotify "
    "netflix whatsapp thinsulate primaloft polartec"
)


def is_written_as_name(text: Text, first: int, after: int, *, ordinary: bool) -> bool:
    if text.tokens[first].glued and text.at(first - 1) not in named("# ( \" ' * / @ -"):
        return False
    raw = text.raw[text.tokens[first].start : text.tokens[after - 1].end]
    if not ordinary:
        return any(sign.isupper() for sign in raw) or raw in WITHOUT_CAPITAL
    if not raw[0].isupper():
        return False
    if after - first > 1:
        return text.tokens[after - 1].capital or not text.is_word(after - 1)
    return not begins_sentence(text, first) and not is_title(text, first)


def begins_sentence(text: Text, index: int) -> bool:
    before = index - 1
    while before >= 0 and text.tokens[before].sort == "sign" and text.at(before) not in {",", ";"}:
        if not text.same_sentence(before, index) or text.at(before) in {":"}:
            return True
        before -= 1
    return before < 0 or not text.same_sentence(before, index)


def is_title(text: Text, index: int) -> bool:
    """Whether nearly every word of its sentence has a capital."""
    sentence = text.tokens[index].sentence
    words = small = 0
    for way in (-1, 1):
        place = index if way < 0 else index + 1
        while 0 <= place < len(text.tokens) and abs(place - index) < 15:
            token = text.tokens[place]
            if token.sentence != sentence:
                break
            if token.sort == "word" and token.low not in word_set("stop") and not token.joined:
                words += 1
                small += not token.capital
            place += way
    return words > 2 and small * 4 <= words
