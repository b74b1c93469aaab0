"""Makers, trade marks and other products' names that an answer claims."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ftcli.metrics.faithfulness.coined import is_coined, is_plain
from ftcli.metrics.faithfulness.given import Given, squashed
from ftcli.metrics.faithfulness.lexicon import phrase_of
from ftcli.metrics.faithfulness.marks import (
    begins_sentence,
    is_title,
    is_written_as_name,
    known_marks,
)
from ftcli.metrics.faithfulness.origins import (
    company,
    is_beside,
    is_by_somebody,
    is_maker,
    is_origin,
    model_code,
    numbered_name,
    quoted_name,
)
from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text, named
from ftcli.metrics.faithfulness.units import unit_at

# WaveDry, HomeBliss: capitals inside, and more than an abbreviation.
CAMEL = re.compile(r"[a-z]?[A-Z][a-zà-ÿ]{2,}[A-Z][A-Za-zà-ÿ]+$")


SIGNS = {"™", "®", "©"}


ADDRESS = re.compile(
    r"(?:https?://|www\.)[\w-]+(?:\.[\w-]+)+(?:/[^\s\"<>)]*)?|\b[\w-]{2,40}\.(?:com|net|org|io|shop|store|co\.uk)\b"
)


INTRODUCING = frozenset({"introducing", "meet", "presenting", "discover"})


LEADS = named("the our a an new all this your")


# Names before, of which one may stand again.
LOOKED_BACK = 20


# A name that begins as the given one does and goes on otherwise.
SAME_BEGINNING = 4


@dataclass(frozen=True)
class BrandClaim:
    """A name at the tokens [first, after)."""

    first: int
    after: int
    is_given: bool


class Brands:
    """Reads names with the shop's own trade marks added."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._marks = dict(known_marks())
        for word in more:
            if phrase := phrase_of(word):
                self._marks[phrase] = False
        self._lengths: dict[str, list[int]] = {}
        for phrase in self._marks:
            lengths = self._lengths.setdefault(phrase[0], [])
            if len(phrase) not in lengths:
                lengths.append(len(phrase))

    def claims(self, text: Text, hidden: frozenset[int], facts: Given) -> list[BrandClaim]:
        """Names that stand for an origin."""
        found: list[BrandClaim] = []
        after = -1
        for index, token in enumerate(text.tokens):
            if index < after or index in hidden or token.sort == "sign":
                continue
            end = self._mark(text, index) or _shaped(text, index) or _again(text, index, found)
            if end is None and not facts.is_talk and token.capital:
                end = _placed(text, index, facts)
                if end is None and is_beside(text, index, after) and not found[-1].is_given:
                    end = index + 1
            if end is None:
                continue
            after = _with_model(text, end)
            # `iPhone 15`, or iPhone alone.
            names = (text.raw[slice(*text.span(index, last))] for last in (after, end))
            found.append(BrandClaim(index, after, any(_is_given(name, facts) for name in names)))
        return found + _addresses(text, facts)

    def _mark(self, text: Text, index: int) -> int | None:
        """The end of a known trade mark that begins here."""
        if text.at(index + 1) == "worthy":
            return None
        for length in sorted(self._lengths.get(text.at(index), ()), reverse=True):
            after = index + length
            words = tuple(text.at(place) for place in range(index, after))
            if words not in self._marks or not text.same_sentence(index, after - 1):
                continue
            if not is_written_as_name(text, index, after, ordinary=self._marks[words]):
                continue
            return after
        return None


def _again(text: Text, index: int, found: Sequence[BrandClaim]) -> int | None:
    """The end of a name that stood in the text before."""
    if not text.tokens[index].capital:
        return None
    # The last few, so that a long text takes time in proportion to it.
    for claim in found[-LOOKED_BACK:]:
        after = index + claim.after - claim.first
        words = [text.at(place) for place in range(index, after)]
        if words == [text.at(place) for place in range(claim.first, claim.after)]:
            return after
    return None


def _shaped(text: Text, index: int) -> int | None:
    """Names by their shape: WaveDry, Xyz™."""
    token = text.tokens[index]
    if token.sort != "word":
        return None
    if text.at(index + 1) in SIGNS and token.capital:
        return index + 1
    in_hashtag = token.glued and text.at(index - 1) in {"#", "@"}
    if CAMEL.match(text.raw[token.start : token.end]) and not in_hashtag:
        # Hashtags of several words look the same.
        return index + 1
    return None


def _placed(text: Text, index: int, facts: Given) -> int | None:
    """Names by where they stand: `by Marco Bellini`, `at Torkel, we`, `Introducing the Xyz`."""
    word = text.at(index)
    named_so = quoted_name(text, index, facts.words) or company(text, index)
    if named_so is not None or text.tokens[index].joined:
        # `World-Class`, `6-Folders` begin no name.
        return named_so or model_code(text, index)
    if text.at(index - 1) == "by" and not is_title(text, index):
        end = _run(text, index)
        return end if is_maker(text, index, end) else None
    coded = model_code(text, index) or numbered_name(text, index)
    if coded is not None or is_plain(word) or word in facts.words:
        return coded
    return _named_here(text, index, facts)


def _named_here(text: Text, index: int, facts: Given) -> int | None:
    word, end = text.at(index), _capitals(text, index)
    if is_origin(text, index, end) or is_by_somebody(text, index):
        return end
    is_new = _introduced(text, index) and not any(
        _in_facts(text.at(place), facts) for place in range(index, end)
    )
    if is_new and is_coined(word) and end - index > 1:
        return end
    return index + 1 if _renames(text, index, end, facts) else None


def _capitals(text: Text, index: int) -> int:
    """The end of the run of words with a capital."""
    after = index + 1
    while after < len(text.tokens) and after - index < 6 and text.same_clause(after, index):
        token = text.tokens[after]
        if not (token.capital and not is_plain(token.low)):
            break
        after += 1
    return after


def _run(text: Text, index: int) -> int:
    """The end of the run of words with a capital, whatever words they are."""
    after = index + 1
    while after < len(text.tokens) and after - index < 5 and text.same_clause(after, index):
        if not text.tokens[after].capital:
            break
        after += 1
    return after


def _introduced(text: Text, index: int) -> bool:
    place = index - 1
    while text.at(place) in LEADS:
        place -= 1
    return text.at(place) in INTRODUCING and text.same_sentence(place, index)


INFLECTED = ("ing", "ed", "ly")


def _is_almost(word: str, name: str) -> bool:
    """A coined name that went on otherwise: Bramblewood for Bramblewick."""
    stem = name.removesuffix("s")
    return (
        len(word) > SAME_BEGINNING + 1
        and word[:SAME_BEGINNING] == name[:SAME_BEGINNING]
        and abs(len(word) - len(name)) <= 4
        and is_coined(name)
        and not word.endswith(INFLECTED)
        and not name.startswith(word.removesuffix("s"))
        and not (word.startswith(stem) and len(word) - len(stem) < 3)
    )


def _renames(text: Text, index: int, end: int, facts: Given) -> bool:
    """A coined word in the place of the product's own name: before its kind, or almost the name."""
    word = text.at(index).removesuffix("'s")
    if not facts.names or word in text.small_words or is_plain(word):
        return False
    if any(_is_almost(word, name) for name in facts.name_words):
        return same_thing(word) not in facts.product
    return is_coined(word) and _before_its_kind(text, index, facts)


def _before_its_kind(text: Text, index: int, facts: Given) -> bool:
    """In a heading or inside a sentence, before a word of the product's name or kind."""
    is_heading = text.at(index - 1) in {"#", "*"} or text.line_begins(index)
    if begins_sentence(text, index) and not (
        is_heading and text.tokens[index].capital and is_title(text, index)
    ):
        return False
    for place in range(index + 1, min(index + 4, len(text.tokens))):
        if not text.same_clause(place, index) or not text.is_word(place):
            return False
        if same_thing(text.at(place)) in facts.product:
            return text.tokens[place].capital or place == index + 1
        if not text.tokens[place].capital:
            return False
    return False


def _in_facts(word: str, facts: Given) -> bool:
    return word in facts.words or same_thing(word) in facts.product


def _with_model(text: Text, after: int) -> int:
    """Further words and digits of the name: WaveDry Pro 500, iPhone 15 Pro."""
    while after < len(text.tokens) and text.same_clause(after, after - 1):
        token = text.tokens[after]
        is_model = token.sort == "number" and token.low.isdecimal() and not token.joined
        is_model = is_model and len(token.low) < 5 and not _is_measured(text, after)
        if (is_model and text.at(after + 1) not in {"%", "x", "×"}) or (
            token.capital and token.low in named("pro max plus ultra mini lite air series elite")
        ):
            after += 1
        else:
            break
    return after


def _is_measured(text: Text, index: int) -> bool:
    """Whether a unit stands behind a number: Ozempic 5 mg."""
    behind = index + 1
    return behind < len(text.tokens) and unit_at(text, behind, value=2.0) is not None


def _is_given(name: str, facts: Given) -> bool:
    short = squashed(name)
    return (
        not short or short in facts.squashed or squashed(name.removesuffix("'s")) in facts.squashed
    )


def _addresses(text: Text, facts: Given) -> list[BrandClaim]:
    """Web addresses name a shop."""
    found = []
    if "." not in text.raw:
        return []
    places = {token.start: index for index, token in enumerate(text.tokens)}
    for each in ADDRESS.finditer(text.raw):
        index = places.get(each.start())
        if index is None:
            continue
        after = index
        while after < len(text.tokens) and text.tokens[after].end <= each.end():
            after += 1
        found.append(BrandClaim(index, max(after, index + 1), _is_given(each.group(), facts)))
    return found
