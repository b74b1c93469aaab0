"""Settings of `eval` that nothing in the rows answers to: mostly a slip of the pen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ftcli.errors import did_you_mean
from ftcli.loading import Loaded
from ftcli.metrics.format import format_scorer
from ftcli.metrics.scorer import Question
from ftcli.recipe.faithfulness import Faithfulness

# Enough to tell, and soon read.
MOST_LOOKED_AT = 200
# Where the rows' own answers are this seldom in the form, a model cannot have learnt it of them.
IN_THE_FORM = 0.5


def unmatched(loaded: Loaded, questions: Sequence[Question]) -> Iterator[str]:
    """What to look at, one setting a sentence; mostly nothing."""
    looked_at = questions[:MOST_LOOKED_AT]
    yield from _form(loaded, looked_at)
    if loaded.recipe.eval.faithfulness is not None:
        yield from _facts(loaded.recipe.eval.faithfulness, looked_at)
        yield from _ignored(loaded.recipe.eval.faithfulness, looked_at)


def _form(loaded: Loaded, questions: Sequence[Question]) -> Iterator[str]:
    wanted = loaded.recipe.eval.format
    answered = [question for question in questions if question.reference]
    if wanted is None or not answered:
        return
    judge = format_scorer(wanted, loaded.base)
    judged = (judge.score(question.reference, question) for question in answered)
    fitting = sum(int(found.counts["format_rate"][0]) for found in judged)
    if fitting < IN_THE_FORM * len(answered):
        yield (
            f"eval.format: {fitting} of {len(answered)} answers of the rows themselves have that "
            "form"
        )


def _facts(wanted: Faithfulness, questions: Sequence[Question]) -> Iterator[str]:
    expression = wanted.facts
    if expression is None:
        return
    # Where it finds nothing, all that was asked is the facts (`facts_of`).
    without = sum(
        question.prompt in question.facts and re.search(expression, question.facts) is None
        for question in questions
    )
    if without:
        yield (
            f"eval.faithfulness.facts: found nothing in {without} of {len(questions)} prompts, "
            "whose facts are the whole prompt"
        )


def _ignored(wanted: Faithfulness, questions: Sequence[Question]) -> Iterator[str]:
    from ftcli.metrics.faithfulness.given import given

    if not wanted.ignore:
        return
    keys = {item.key for question in questions for item in given(question.facts).items}
    known = {key.lower() for key in keys}
    for name in wanted.ignore:
        if name.lower() not in known:
            yield (
                f"eval.faithfulness.ignore: no row has a fact {name!r}{did_you_mean(name, keys)}"
            )
