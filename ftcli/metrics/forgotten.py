"""How much of a general ability may be lost, and what a loss is called everywhere."""

from __future__ import annotations

# A general text one twentieth more perplexing is less than what quantising to 4 bits does.
MOST_FORGOTTEN = 0.05


def is_much(change: float) -> bool:
    """Of a perplexity relative to before, of a share in hundredths of it."""
    return abs(change) > MOST_FORGOTTEN


def loss_in_words(change: float, much: str) -> str:
    """Of an ability that is shown to be lost: `much`, or that it only moved."""
    if is_much(change):
        return much
    return "slightly higher" if change > 0 else "slightly lower"
