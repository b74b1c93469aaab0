"""Overlap of an answer with its reference, and repetition within it; each between 0 and 1."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from types import MappingProxyType
from typing import Any

from ftcli.evaluation.scorers.scorer import ExampleResult, Question, ScoreKind

# Scripts without spaces between words (Thai, Lao, Burmese, Khmer, kana, Han): each character is a
# word.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


class _Words:
    """Words of any script: rouge-score's own tokenizer keeps only a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return "".join(_spaced(character) for character in text.lower()).split()


@cache
def _spaced(character: str) -> str:
    # Marks belong to words: to Unicode, Indic vowels and Arabic points are not letters.
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
    """1 if the two are equal without white space at the ends."""
    return float(answer.strip() == reference.strip())


# Longer n-grams occur twice only in a text that loops.
NGRAM = 4


def repetition(answer: str) -> tuple[int, int]:
    """4-grams that occurred earlier in the same answer, and all of its 4-grams.

    Their ratio is seq-rep-4 of Welleck et al. (2020).
    """
    words = _Words().tokenize(answer)
    ngrams = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    return len(ngrams) - len(set(ngrams)), len(ngrams)


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
        repeated, ngrams = repetition(answer)
        return ExampleResult({**counts, "repetition": (float(repeated), float(ngrams))})
