"""What a row asks: one reading of its turns for `ftcli eval` and for `ftcli prepare --probe`."""

from __future__ import annotations

from collections.abc import Sequence

from ftcli.config.grounding import Grounding
from ftcli.data.example import Message
from ftcli.evaluation.scorers.grounding import facts_text
from ftcli.evaluation.scorers.scorer import Question


def question_of(turns: Sequence[Message], wanted: Grounding | None) -> Question:
    """The question of a row whose last turn is its own answer; empty of a plain text.

    Facts may stand in any user turn, as in a conversation that ends in "Shorter, please.". Raises
    DataError (`facts_expression`) as `facts_text`.
    """
    before = turns[:-1]
    asked = [turn.content for turn in before if turn.role == "user"]
    return Question(
        prompt=asked[-1] if asked else "",
        reference=turns[-1].content if turns else "",
        facts=facts_text(wanted, "\n\n".join(asked)),
        conversation="\n\n".join(turn.content for turn in before),
    )
