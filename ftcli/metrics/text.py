"""How near an answer is to its reference, each between 0 and 1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

WORD = re.compile(r"\w+")


class _Words:
    """Words of any script: rouge-score's own tokenizer drops all but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """F-measure of the longest common subsequence of words (Lin 2004), each pair."""
    pairs = zip(answers, references, strict=True)
    return [_rouge().score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs]


def chrf(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Character n-gram F-score (Popović 2015), each pair."""
    pairs = zip(answers, references, strict=True)
    return [_chrf().sentence_score(answer, [ref]).score / 100 for answer, ref in pairs]


def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 where the two are equal but for white space at the ends."""
    pairs = zip(answers, references, strict=True)
    return [float(answer.strip() == reference.strip()) for answer, reference in pairs]
