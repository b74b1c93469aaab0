"""Plain texts → rows whose every token is scored but the first, and no end token is expected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ftcli.data.tokenizing.rendering import IGNORED, Renderer

# Longer passages are cut: a bound on memory that prose of a page or two does not reach.
MOST_TOKENS = 1024


def passage_rows(renderer: Renderer, passages: Sequence[str]) -> list[dict[str, list[int]]]:
    """input_ids and labels of each passage, in pieces of at most MOST_TOKENS.

    How a model ends a text is what it was trained on anew, so that token is left out.
    """
    rows = [row for passage in passages for row in _pieces(renderer.text_prompt_ids(passage))]
    return [row for row in rows if len(row["input_ids"]) > 1]


def _pieces(ids: Sequence[int]) -> Iterator[dict[str, list[int]]]:
    for start in range(0, len(ids), MOST_TOKENS):
        piece = list(ids[start : start + MOST_TOKENS])
        yield {"input_ids": piece, "labels": [IGNORED, *piece[1:]]}
