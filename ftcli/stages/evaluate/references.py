"""What the rows' own answers score: a rate of listed words says nothing of a model without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftcli.metrics.scorer import Question, Scorer
from ftcli.metrics.scores import gathered, percent
from ftcli.recipe.faithfulness import Faithfulness

SCORE = "invents"


def references(
    wanted: Faithfulness, judge: Scorer, questions: Sequence[Question]
) -> dict[str, Any]:
    """The share of the rows' own answers with terms that are not in their prompts, and in words
    what the score counts and that share."""
    said = [judge.score(question.reference, question) for question in questions]
    counts = gathered(said, {SCORE: judge.kinds[SCORE]})[SCORE]
    hits = round(sum(counts.tops))
    words = (
        f"Terms not in the prompt: answers with {_listed(wanted)} not in the prompt, by lists of "
        "words that cannot tell what is true. Your own answers: "
        f"{percent(counts.value)} ({hits:,} of {counts.rows:,})"
    )
    interval = list(counts.interval())
    return {
        SCORE: {"value": counts.value, "interval": interval, "rows": counts.rows, "words": words}
    }


def _listed(wanted: Faithfulness) -> str:
    """`numbers, materials and colours`."""
    *others, last = [f"{kind}s" for kind in wanted.kinds]
    return f"{', '.join(others)} and {last}" if others else last
