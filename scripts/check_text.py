"""Overlap and repetition computed from their published definitions alone (for check_scores.py).

ROUGE-L: Lin (2004), F-measure of the longest common subsequence. chrF: Popović (2015), character
n-grams of 1 to 6, β = 2. seq-rep-4: Welleck et al. (2020).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

Counted = tuple[float, float]
"""What one answer adds to the top and to the bottom of a score."""

# Scripts that part no words, by the names of their characters: there each is a word of its own.
UNSPACED = ("THAI", "LAO", "MYANMAR", "KHMER", "HIRAGANA", "KATAKANA", "CJK")
CHARACTER_ORDERS = 6
BETA = 2
GROUP = 4


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits of any script, in lower case."""
    found: list[str] = []
    run = ""
    for character in [*text.lower(), " "]:
        belongs = unicodedata.category(character)[0] in "LMN"
        alone = belongs and unicodedata.name(character, "").startswith(UNSPACED)
        if belongs and not alone:
            run += character
            continue
        found += [run] if run else []
        found += [character] if alone else []
        run = ""
    return found


def rouge_l(answer: str, reference: str) -> float:
    """Harmonic mean of LCS ÷ words of the answer and LCS ÷ words of the reference."""
    ours, theirs = words(answer), words(reference)
    common = _longest_common(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, row by row of the table."""
    above = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for column, other in enumerate(second, 1):
            longer = above[column - 1] + 1 if word == other else max(above[column], row[-1])
            row.append(longer)
        above = row
    return above[-1]


def chrf(answer: str, reference: str) -> float:
    """Precision and recall averaged over the orders that both texts are long enough for."""
    ours, theirs = "".join(answer.split()), "".join(reference.split())
    orders = range(1, min(CHARACTER_ORDERS, len(ours), len(theirs)) + 1)
    if not orders:
        return 0.0
    precision = recall = 0.0
    for order in orders:
        mine, wanted = _groups(ours, order), _groups(theirs, order)
        shared = sum(min(count, wanted[group]) for group, count in mine.items())
        precision += shared / sum(mine.values()) / len(orders)
        recall += shared / sum(wanted.values()) / len(orders)
    weighted = BETA**2 * precision + recall
    return (1 + BETA**2) * precision * recall / weighted if weighted else 0.0


def _groups(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def repetition(answer: str) -> Counted:
    """Groups of four words less the different ones, and all groups."""
    found = words(answer)
    groups = list(zip(*(found[start:] for start in range(GROUP)), strict=False))
    return float(len(groups) - len(set(groups))), float(len(groups))


def text_counts(answer: str, reference: str) -> dict[str, Counted]:
    """Every score of an answer as text."""
    return {
        "exact_match": (float(answer.strip() == reference.strip()), 1.0),
        "rouge_l": (rouge_l(answer, reference), 1.0),
        "chrf": (chrf(answer, reference), 1.0),
        "repetition": repetition(answer),
    }
