"""Texts as sets of numbers, one for each three words in a row."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ftcli.metrics.dataset.row import DataRow
from ftcli.metrics.text import UNSPACED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Shingles = NDArray[Any]

WORDS = 3
WORD = re.compile(r"\w+")
# Odd numbers of 64 bits from the digits of the golden ratio and of √2, √3, √5.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0x6A09E667F3BCC909, 0xBB67AE8584CAA73B)
ANSWER_SALT = 0x3C6EF372FE94F82B
MOST_WORDS_KNOWN = 200_000
# What stands in more prompts than this is their instruction, and makes no two of them alike.
COMMON = 0.5


class Shingler:
    """Makes shingles of texts, and remembers the numbers of words."""

    def __init__(self) -> None:
        self._known = _Numbers()

    def shingles(self, text: str) -> Shingles:
        """Sorted numbers of 32 bits, each once; of a shorter text all its words are one."""
        import numpy

        return numpy.unique(self._mixed(text))

    def of(self, row: DataRow, common: Shingles) -> Shingles:
        """Of a row's prompt, without what is common to prompts, and of its answer."""
        import numpy

        both = numpy.concatenate([self._mixed(row.prompt), self._mixed(row.answer, ANSWER_SALT)])
        return numpy.setdiff1d(numpy.unique(both), common, assume_unique=True)

    def _mixed(self, text: str, salt: int = 0) -> Shingles:
        """Numbers of the shingles as they stand in the text."""
        import numpy

        words = self._numbers(text)
        if not words:
            return numpy.empty(0, numpy.uint32)
        words += [0] * (WORDS - len(words))
        numbers = numpy.array(words, numpy.uint64)
        last = len(words) - WORDS + 1
        mixed = numpy.full(last, salt, numpy.uint64)
        for place, multiplier in enumerate(MULTIPLIERS):
            mixed += numbers[place : place + last] * numpy.uint64(multiplier)
            mixed ^= mixed >> numpy.uint64(29)
        return (mixed >> numpy.uint64(32)).astype(numpy.uint32)

    def _numbers(self, text: str) -> list[int]:
        lowered = text.lower()
        if UNSPACED.search(lowered):
            lowered = UNSPACED.sub(r" \g<0> ", lowered)
        if len(self._known) > MOST_WORDS_KNOWN:
            self._known.clear()
        return list(map(self._known.__getitem__, WORD.findall(lowered)))


class _Numbers(dict[str, int]):
    """A number from 1 on for each word that was asked for."""

    def __missing__(self, word: str) -> int:
        number = self[word] = zlib.crc32(word.encode("utf-8", "surrogatepass")) + 1
        return number


def common_shingles(prompts: Iterable[str], shingler: Shingler) -> Shingles:
    """Those of more than half of the prompts, sorted."""
    import numpy

    each = [shingler.shingles(prompt) for prompt in prompts]
    if not each:
        return numpy.empty(0, numpy.uint32)
    values, counts = numpy.unique(numpy.concatenate(each), return_counts=True)
    return values[counts > COMMON * len(each)]


def jaccard(first: Shingles, second: Shingles) -> float:
    """Share of the shingles of both that both have."""
    import numpy

    both = len(numpy.intersect1d(first, second, assume_unique=True))
    return both / max(len(first) + len(second) - both, 1)
