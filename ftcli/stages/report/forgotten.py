"""General abilities before and after a training, as an evaluation keeps them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ftcli.metrics.forgotten import is_much
from ftcli.metrics.scores import FEWEST_ROWS
from ftcli.stages.report.plain import Plain, mapping, number, pair, text
from ftcli.stages.report.scored import Score

# A change in words that rounds to nothing has no sign.
NOTHING = re.compile(r"^[+-]0%")
# What evaluations of before have said of texts whose number they did not keep.
TOO_FEW = "too few to say"


@dataclass(frozen=True)
class Forgotten:
    """One general ability before and after; `is_shown`: that it is lost."""

    key: str
    label: str
    before: str
    after: str
    words: str
    is_shown: bool
    change: float | None
    """Of a perplexity relative to before, of a share in hundredths of it."""

    @property
    def matters(self) -> bool:
        """Shown, and by more than a trifle; how much is unknown: it counts."""
        return self.is_shown and (self.change is None or is_much(self.change))


# Ability → what it is called, the unit of its figures, and whether more of it is worse.
ABILITIES: Mapping[str, tuple[str, str, bool]] = {
    "text": ("general text", "perplexity", True),
    "instructions": ("general instructions", "perplexity", True),
    "follows": ("follows unrelated instructions", "share", False),
    "stops": ("stops behind them", "share", False),
}


def forgotten_in(forgetting: Plain) -> list[Forgotten]:
    """Abilities that an evaluation has measured before and after."""
    found = []
    for key, (label, unit, more_is_worse) in ABILITIES.items():
        plain = mapping(forgetting.get(key))
        before, after = number(plain.get("before")), number(plain.get("after"))
        if before is None or after is None:
            continue
        score = Score(key, label, unit == "share", None)
        change = number(plain.get("change"))
        if change is None:
            change = number(plain.get("difference"))
        named = unit if unit != "share" else ""
        found.append(
            Forgotten(
                key,
                f"{label}, {named}" if named else label,
                score.shown(before),
                score.shown(after),
                NOTHING.sub("±0%", text(plain.get("words"))),
                _is_lost(plain, more_is_worse=more_is_worse),
                change,
            )
        )
    return found


def _is_lost(plain: Plain, *, more_is_worse: bool) -> bool:
    """As the evaluation says; of before it did, by the interval, unless it is of too few."""
    if verdict := text(plain.get("verdict")):
        return verdict == "worse"
    of = number(plain.get("texts", plain.get("rows")))
    if (of is not None and of < FEWEST_ROWS) or TOO_FEW in text(plain.get("words")):
        return False
    interval = pair(plain.get("change_interval")) or pair(plain.get("interval"))
    return interval is not None and (interval[0] > 0 if more_is_worse else interval[1] < 0)
