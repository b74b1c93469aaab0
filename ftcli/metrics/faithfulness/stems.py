"""Words as one, whatever their ending; and near words for the same thing."""

from __future__ import annotations

from functools import lru_cache

import snowballstemmer

from ftcli.metrics.faithfulness.lexicon import word_list

STEMMER = snowballstemmer.stemmer("english")


@lru_cache
def _same() -> dict[str, str]:
    return {word: line.split()[0] for line in word_list("same") for word in line.split()}


@lru_cache(maxsize=50_000)
def same_thing(word: str) -> str:
    """One name for all forms of a word and for near words."""
    plain = word.removesuffix("'s").removesuffix("'").replace("'", "")
    table = _same()
    if plain in table:
        return table[plain]
    stem = str(STEMMER.stemWord(plain))
    return table.get(stem, stem)


@lru_cache(maxsize=50_000)
def root(word: str) -> str:
    """The same without an ending that makes an adjective or a noun: washable, wash."""
    stem = same_thing(word)
    for ending in ("abil", "abl", "ibl", "er", "or"):
        if stem.endswith(ending) and len(stem) - len(ending) >= 3:
            stem = stem.removesuffix(ending)
            # dimmer, spinner
            stem = stem[:-1] if stem[-1] == stem[-2] else stem
            break
    return stem.removesuffix("i") if len(stem) > 4 else stem
