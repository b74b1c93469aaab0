"""`generation:` and `eval:` of a recipe: how answers are drawn, and what is looked at in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ftcli.config.answer_format import AnswerFormat
from ftcli.config.grounding import Grounding, Judge
from ftcli.config.section import (
    NO_BOOLEAN,
    CountFromZero,
    NotNegative,
    Positive,
    PositiveCount,
    Section,
)


class Generation(Section):
    """How answers are drawn in eval and generate; the flags of `ftcli generate` go before it."""

    max_new_tokens: PositiveCount = 256
    """Longest answer in tokens."""
    temperature: NotNegative = 0.0
    """0: greedy, the most likely token at each place."""
    top_p: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN] = 1.0
    """Draw from the smallest set of tokens with this probability (only with a temperature)."""
    top_k: CountFromZero = 0
    """Draw from this many likeliest tokens; 0: all."""
    repetition_penalty: Positive = 1.0
    """Above 1: tokens already used become less likely (CTRL, Keskar et al. 2019)."""


class Evaluation(Section):
    """What `ftcli eval` scores besides loss, EOS rate and text overlap."""

    format: AnswerFormat | None = None
    """Form every answer must have; its share is reported as `format_rate`."""
    grounding: Grounding | None = None
    """Compare answers with their prompts: numbers, names and terms that are not there, facts left
    out, banned phrases. Words alone cannot say whether an answer is true."""
    judge: Judge | None = None
    """Ask a language model whether each answer is supported by its facts."""
    decides_by: str | None = None
    """The score that decides, tested alone; the others are corrected for their number (Holm)."""
