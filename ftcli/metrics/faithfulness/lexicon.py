"""Words of one kind, with what they imply: read from the package's own lists when first used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from ftcli.metrics.faithfulness.text import Text


@dataclass(frozen=True, slots=True)
class Term:
    """One thing, whatever its spelling."""

    name: str
    weak: bool
    """Also the name of something else."""
    wider: frozenset[str]
    """Names of what it implies: navy is blue."""


@dataclass(frozen=True)
class Found:
    """Words of a text that name a thing: the tokens [first, after)."""

    first: int
    after: int
    term: Term


class Lexicon:
    """Finds the longest of its phrases at a place of a text; dashes count as spaces."""

    def __init__(self, terms: Mapping[tuple[str, ...], Term]) -> None:
        self._terms = terms
        by_first: dict[str, set[int]] = {}
        for phrase in terms:
            by_first.setdefault(phrase[0], set()).add(len(phrase))
        self._lengths = {first: sorted(lengths)[::-1] for first, lengths in by_first.items()}

    def find(self, text: Text, index: int) -> Found | None:
        """What begins at this token."""
        tokens = text.tokens
        for length in self._lengths.get(tokens[index].low, ()):
            after = index + length
            if after > len(tokens) or tokens[after - 1].sentence != tokens[index].sentence:
                continue
            term = self._terms.get(tuple(token.low for token in tokens[index:after]))
            if term is not None:
                return Found(index, after, term)
        return None

    def all(self, text: Text) -> list[Found]:
        """Everything that is named, from left to right, the longest first."""
        found, index = [], 0
        while index < len(text.tokens):
            here = self.find(text, index)
            if here is not None:
                found.append(here)
            index = here.after if here is not None else index + 1
        return found

    def places(self, text: Text) -> frozenset[int]:
        """Tokens of everything that is named."""
        return frozenset(
            place for each in self.all(text) for place in range(each.first, each.after)
        )

    def names(self, words: str) -> set[str]:
        """Things named anywhere in some words."""
        return {found.term.name for found in self.all(Text(words))}

    def with_words(self, words: Iterable[str]) -> Lexicon:
        """The same and some more phrases, which imply nothing."""
        more = dict(self._terms)
        for word in words:
            if phrase := phrase_of(word):
                more[phrase] = Term(" ".join(phrase), False, frozenset())
        return Lexicon(more)


def phrase_of(words: str) -> tuple[str, ...]:
    """Words as the tokens of a text would be."""
    return tuple(token.low for token in Text(words).tokens)


@lru_cache
def word_list(name: str) -> tuple[str, ...]:
    """Lines of `words/<name>.txt`, without comments."""
    file = resources.files("ftcli.metrics.faithfulness") / "words" / f"{name}.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and line[0] != "#")


@lru_cache
def word_set(name: str) -> frozenset[str]:
    """Single words of `words/<name>.txt`."""
    return frozenset(word for line in word_list(name) for word in line.split())


@lru_cache
def phrases(name: str) -> Lexicon:
    """A list of phrases that imply nothing."""
    return Lexicon({}).with_words(word_list(name))


@lru_cache
def lexicon(name: str) -> Lexicon:
    """Words with what they imply; each line: `~ name, other spellings < wider, wider`.

    `~` or `+` right before one spelling: that one is, or is not, the name of something else too.
    """
    direct: dict[str, tuple[str, ...]] = {}
    lines = [_entry(line) for line in word_list(name)]
    for _, spellings, implied in lines:
        direct[_plain(spellings[0])] = implied
    terms: dict[tuple[str, ...], Term] = {}
    for weak, spellings, _ in lines:
        name = _plain(spellings[0])
        wider = _all_wider(name, direct)
        for spelling in spellings:
            is_weak = spelling[0] == "~" or (weak and spelling[0] != "+")
            terms[phrase_of(_plain(spelling))] = Term(name, is_weak, wider)
    return Lexicon(terms)


def _plain(spelling: str) -> str:
    return spelling.lstrip("~+")


def _entry(line: str) -> tuple[bool, list[str], tuple[str, ...]]:
    names, _, wider = line.removeprefix("~").partition("<")
    spellings = [name.strip() for name in names.split(",")]
    implied = tuple(name.strip() for name in wider.split(",") if name.strip())
    return line.startswith("~"), spellings, implied


def _all_wider(name: str, direct: Mapping[str, Sequence[str]]) -> frozenset[str]:
    found: set[str] = set()
    ahead = list(direct.get(name, ()))
    while ahead:
        wider = ahead.pop()
        if wider not in found:
            found.add(wider)
            ahead += direct.get(wider, ())
    return frozenset(found)
