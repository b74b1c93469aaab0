"""What a model has forgotten: general text, general instructions, following and stopping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from ftcli.metrics import general_instructions
from ftcli.metrics.forgotten import loss_in_words
from ftcli.metrics.general_instructions import Instruction
from ftcli.metrics.likelihood import Scored, forgetting
from ftcli.metrics.scores import FEWEST_ROWS, Counts, compared, mean_of
from ftcli.stages.evaluate.sets import Sets
from ftcli.stages.evaluate.work import Done

Verdict = Literal["worse", "better", "no difference shown", "too few"]
WORDS: dict[str, str] = {
    "worse": "forgets",
    "better": "better than before",
    "no difference shown": "nothing shown to be forgotten",
}
# Of a change that is shown, with one decimal; a lesser one is said to be less.
LEAST_SHOWN = 0.001


def forgotten(sets: Sets, before: dict[str, Done], after: dict[str, Done]) -> dict[str, Any]:
    """Both models on the general sets, by the names `text` and `instructions`."""
    found: dict[str, Any] = {}
    if sets.general is not None and sets.text is not None:
        name = sets.general.name
        passages = [row.line for row in sets.text.rows]
        found["text"] = {"name": name, **_perplexity(before["text"], after["text"], passages)}
    if sets.instructions is not None:
        ours, theirs = before["instructions"], after["instructions"]
        file = sets.instructions.rows[0].file
        found["instructions"] = {
            "name": "built-in" if file == str(general_instructions.OWN) else file,
            "rows": len(ours.answers),
            **_perplexity(ours, theirs, range(len(ours.answers))),
        }
        follows = [_follows(done, sets.asked_of_all) for done in (ours, theirs)]
        if follows[0].rows:
            found["follows"] = _behaviour(*follows)
        found["stops"] = _behaviour(_stops(ours), _stops(theirs))
    return found


def _perplexity(before: Done, after: Done, passages: Sequence[int]) -> dict[str, Any]:
    """Resampled passage by passage: pieces of one text are no independent rows."""
    found = forgetting(*(_by_passage(done.scored, passages) for done in (before, after)))
    low, high = found.change_interval
    count = len(set(passages))
    verdict = _verdict(low, high, count)
    what = WORDS.get(verdict, f"{count} texts are too few to say")
    if verdict == "worse":
        what = loss_in_words(found.change, what)
    return {
        "texts": count,
        "tokens": sum(before.scored.tokens),
        "before": found.before,
        "after": found.after,
        "change": found.change,
        "change_interval": [low, high],
        "verdict": verdict,
        "words": f"{_percent(found.change, is_shown=verdict in ('worse', 'better'))}: {what}",
    }


def _verdict(low: float, high: float, count: int) -> Verdict:
    """Of a perplexity, which is worse where it rises."""
    if count < FEWEST_ROWS:
        return "too few"
    if low > 0:
        return "worse"
    return "better" if high < 0 else "no difference shown"


def _percent(change: float, *, is_shown: bool) -> str:
    """`+12%`; of a change that rounds to none `±0%`, or `+0.4%` where it is shown."""
    shown = f"{change:+.0%}"
    if float(shown[:-1]):
        return shown
    if not is_shown or not change:
        return "±0%"
    if abs(change) < LEAST_SHOWN:
        return f"less than {math.copysign(LEAST_SHOWN, change):+.1%}"
    return f"{change:+.1%}"


def _by_passage(scored: Scored, passages: Sequence[int]) -> Scored:
    losses: dict[int, float] = {}
    tokens: dict[int, int] = {}
    for passage, loss, count in zip(passages, scored.losses, scored.tokens, strict=True):
        losses[passage] = losses.get(passage, 0.0) + loss
        tokens[passage] = tokens.get(passage, 0) + count
    return Scored(tuple(losses.values()), tuple(tokens.values()))


def _behaviour(before: Counts, after: Counts) -> dict[str, Any]:
    found = compared(before, after, "higher")
    assert found is not None
    too_few = min(before.rows, after.rows) < FEWEST_ROWS
    return {
        "before": before.value,
        "after": after.value,
        "difference": found.value,
        "interval": list(found.interval),
        "rows": found.rows,
        "verdict": "too few" if too_few else found.word,
        "words": loss_in_words(found.value, "worse") if found.word == "worse" else found.words,
    }


def _follows(done: Done, asked: Sequence[Instruction]) -> Counts:
    """One where an answer does as it was told; instructions without a check do not count."""
    pairs = zip(asked, done.answers, strict=True)
    found = [instruction.is_followed_by(answer.text) for instruction, answer in pairs]
    return Counts(
        tuple(float(bool(each)) for each in found),
        tuple(float(each is not None) for each in found),
    )


def _stops(done: Done) -> Counts:
    return mean_of([answer.stopped for answer in done.answers])
