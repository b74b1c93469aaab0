"""Whether a word with a capital is an ordinary one or a coined name."""

from __future__ import annotations

import re
from functools import lru_cache

from ftcli.metrics.faithfulness.lexicon import word_list, word_set
from ftcli.metrics.faithfulness.text import named

# Endings of ordinary words: no coined name is looked for in them.
ORDINARY_ENDINGS = tuple(
    named(
        "ing ed ly ness ful less able ible ive ous ic al ment tion sion ity est ish ant ent "
        "ance ence ship ward wise proof ized ised y"
    )
)


@lru_cache(maxsize=50_000)
def is_plain(word: str) -> bool:
    """Words with a capital that name no maker."""
    plain = word.removesuffix("'s")
    return (
        len(plain) < 3
        or plain in word_set("no_brands")
        or plain in word_set("stop")
        or plain in word_set("ordinary")
        or plain in word_set("parts")
        or plain in word_set("scene")
        or plain in _lexical()
        or (plain.endswith("s") and plain[:-1] in word_set("ordinary"))
    )


@lru_cache
def _lexical() -> frozenset[str]:
    """Single words of the lists of colours and materials."""
    words: set[str] = set()
    for name in ("colours", "materials"):
        for line in word_list(name):
            words |= set(re.split(r"[\s,~+]+", line.partition("<")[0]))
    return frozenset(words)


@lru_cache(maxsize=50_000)
def is_coined(word: str) -> bool:
    plain = word.removesuffix("'s")
    return (
        len(plain) >= 4
        and plain.isalpha()
        and not is_plain(plain)
        and not plain.endswith(ORDINARY_ENDINGS)
    )
