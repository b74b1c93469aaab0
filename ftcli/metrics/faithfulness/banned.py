"""Banned claims: phrases of a list that an answer makes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ftcli.metrics.faithfulness.context import negated
from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text, named

# Endings that a listed word and a found one may differ in: cures, cured; guarantee, guaranteed.
ENDINGS = named("'s s es ed d ing ies ied y ly e er r est st ers") | {""}
# pure, purest, purely.
DEGREES = named("r st er est ly y") | {""}
WORD = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class BannedClaim:
    """A listed phrase at the tokens [first, after)."""

    first: int
    after: int
    phrase: str


class Banned:
    """Finds listed phrases: any case, hyphen or space, whole words, their endings free."""

    def __init__(self, phrases: Sequence[str]) -> None:
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for phrase in phrases:
            words = tuple(token.low for token in Text(phrase).tokens)
            if words:
                self._by_first.setdefault(_start(words[0]), []).append((words, phrase))

    def claims(self, text: Text, hidden: frozenset[int]) -> list[BannedClaim]:
        """Hits that are not denied and stand outside the product's name."""
        found = []
        for index, token in enumerate(text.tokens):
            for words, phrase in self._by_first.get(_start(token.low), ()):
                after = index + len(words)
                if not self._matches(text, index, words) or not hidden.isdisjoint(
                    range(index, after)
                ):
                    continue
                if not negated(text, index, after):
                    found.append(BannedClaim(index, after, phrase))
        return found

    def _matches(self, text: Text, index: int, words: tuple[str, ...]) -> bool:
        if not text.same_sentence(index, index + len(words) - 1):
            return False
        return all(_same_word(text.at(index + step), word) for step, word in enumerate(words))


def _start(word: str) -> str:
    """What two forms of one word share at the least."""
    return word[:3]


@lru_cache(maxsize=50_000)
def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    if not WORD.match(one) or not WORD.match(other):
        return False
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    if shared < 3 or one[shared:] not in ENDINGS or other[shared:] not in ENDINGS:
        return False
    return same_thing(one) == same_thing(other) or {one[shared:], other[shared:]} <= DEGREES
