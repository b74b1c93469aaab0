"""How near an answer is to its reference, and how much it repeats itself; each between 0 and 1."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from types import MappingProxyType
from typing import Any

from ftcli.evaluation.scorers.scorer import ExampleResult, Question, ScoreKind

# Scripts that put no space between words (Thai, Lao, Burmese, Khmer, kana, Han): each character
# counts as a word there.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


class _Words:
    """Words of any script: rouge-score's own tokenizer drops all but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return "".join(_spaced(character) for character in text.lower()).split()


@cache
def _spaced(character: str) -> str:
    # Marks belong to words: Indic vowels and Arabic points are no letters to Unicode.
    if unicodedata.category(character)[0] not in "LMN":
        return " "
    return f" {character} " if UNSPACED.match(character) else character


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004)."""
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """Character n-gram F-score (Popović 2015)."""
    return float(_chrf().sentence_score(answer, [reference]).score / 100)


def exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal but for white space at the ends."""
    return float(answer.strip() == reference.strip())


# Words of one group: longer ones stand twice only where a text goes round in circles.
GROUP = 4


def repetition(answer: str) -> tuple[int, int]:
    """Groups of four words that stood before in the same answer, and all of its groups.

    Their share is seq-rep-4 of Welleck et al. (2020).
    """
    words = _Words().tokenize(answer)
    groups = [tuple(words[start : start + GROUP]) for start in range(len(words) - GROUP + 1)]
    return len(groups) - len(set(groups)), len(groups)


class TextScorer:
    """Overlap with the reference, and repetition."""

    kinds = MappingProxyType(
        {
            "exact_match": ScoreKind("exact match", "share", "higher"),
            "rouge_l": ScoreKind("ROUGE-L", "value", "higher"),
            "chrf": ScoreKind("chrF", "value", "higher"),
            "repetition": ScoreKind("repeats itself", "share", "lower"),
        }
    )

    def score(self, answer: str, question: Question) -> ExampleResult:
        measures = {"exact_match": exact_match, "rouge_l": rouge_l, "chrf": chrf}
        counts = {name: (find(answer, question.reference), 1.0) for name, find in measures.items()}
        repeated, groups = repetition(answer)
        return ExampleResult({**counts, "repetition": (float(repeated), float(groups))})
