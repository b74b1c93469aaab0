"""Scores of an evaluation with their intervals, and differences, in the words of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ftcli.metrics.scores import FEWEST_ROWS, percent, percents

# Shares of facts, fields, sections or groups of words: unlike a share of rows they have no
# interval of Wilson's, which stays wide with few rows and with rows that are all alike. Their names
# are looked at only where an evaluation of before does not say what it counted.
NOT_OF_ROWS = {"coverage", "field_accuracy", "field_f1", "repetition", "sections_present"}


@dataclass(frozen=True)
class Score:
    """What is measured, how it is shown, and which way is better (none: neither)."""

    name: str
    label: str
    is_share: bool
    better: str | None
    own: bool = False
    """The user's own (`--scores`)."""

    @property
    def is_of_rows(self) -> bool:
        """Whether its name says that it is the share of rows that hit something."""
        return self.is_share and self.name.partition(".")[0] not in NOT_OF_ROWS

    def shown(self, value: float, below: float | None = None) -> str:
        """`97%`, `0.88`, `72.0`, `812`; a share below a limit that it rounds to has a decimal."""
        if self.is_share:
            return _apart(percent(value), value, below)
        decimals = 2 if abs(value) < 10 else int(abs(value) < 100)
        return f"{value:,.{decimals}f}"

    def reach(self, ends: tuple[float, float], below: float | None = None) -> tuple[str, str]:
        """Both ends of an interval, the unit at the second alone."""
        if not self.is_share:
            return self.shown(ends[0]), self.shown(ends[1])
        pairs = zip(percents(*ends), ends, strict=True)
        low, high = (_apart(shown, end, below) for shown, end in pairs)
        return low.removesuffix("%"), high

    def signed(self, value: float) -> str:
        """A difference in points of a share, or as it is: `+95`, `−1.58`, `±0`."""
        return signed(100 * value, 0) if self.is_share else signed(value, 2)


def _apart(shown: str, share: float, limit: float | None) -> str:
    """With one decimal where a share below a limit would be shown as the limit."""
    if limit is None or share >= limit or shown != f"{limit:.0%}":
        return shown
    tenths = min(round(1000 * share), round(1000 * limit) - 1)
    return f"{tenths / 10:.1f}%"


def signed(value: float, decimals: int) -> str:
    """`+95`, `−1.58`; what rounds to nothing has neither sign: `±0`."""
    shown = f"{value:+.{decimals}f}"
    return shown.replace("-", "−") if float(shown) else f"±{shown[1:]}"


# Score → what evaluations of before their JSON named its scores have called it.
EARLIER = {
    "loss": Score("loss", "loss", False, "lower"),
    "perplexity": Score("perplexity", "perplexity", False, "lower"),
    "format_rate": Score("format_rate", "in the format", True, "higher"),
    "stop_rate": Score("stop_rate", "stops by itself", True, "higher"),
    "rouge_l": Score("rouge_l", "ROUGE-L", False, "higher"),
    "chrf": Score("chrf", "chrF", False, "higher"),
    "exact_match": Score("exact_match", "exact match", True, "higher"),
}


@dataclass(frozen=True)
class Counted:
    """What a score of one side was counted from."""

    rows: int
    """Those that count."""
    are_hits: bool
    """Each of them is a hit or a miss."""


@dataclass(frozen=True)
class Measured:
    """A score of one side with its 95% interval."""

    value: float
    interval: tuple[float, float] | None
    counted: Counted

    @property
    def instead(self) -> str:
        """Words in the interval's place, where it would look like certainty."""
        return no_certainty(self.interval, self.counted)

    def shown(self, score: Score, below: float | None = None) -> str:
        """`97% (89–99)`, `0.50 (all rows alike)`; `below`: a limit to tell it from."""
        value = score.shown(self.value, below)
        if self.instead:
            return f"{value} ({self.instead})"
        if self.interval is None:
            return value
        low, high = score.reach(self.interval, below)
        return f"{value} ({low}–{high.removesuffix('%')})"

    def ends(self) -> tuple[float, float]:
        """Of the interval as it is shown; the value twice where none is."""
        shown = None if self.instead else self.interval
        return shown or (self.value, self.value)


@dataclass(frozen=True)
class Difference:
    """Tuned against another side."""

    verdict: str
    """`better`, `worse`, `no difference shown`, `changed`, `no change shown`."""
    words: str
    difference: float | None = None
    interval: tuple[float, float] | None = None
    """Paired, 95%."""
    rows_to_show: int | None = None
    """About how many rows would show a difference of this size."""
    instead: str = ""
    """Words in the interval's place, where it would look like certainty."""

    def figures(self, score: Score) -> str:
        """`+95 (+80 to +99) points`; empty where the difference is not known."""
        if self.difference is None:
            return ""
        reach = self.instead
        if not reach and self.interval is not None:
            reach = " to ".join(score.signed(end) for end in self.interval)
        unit = " points" if score.is_share else ""
        return f"{score.signed(self.difference)}{f' ({reach})' if reach else ''}{unit}"


def no_certainty(interval: tuple[float, float] | None, counted: Counted) -> str:
    """What is said in place of an interval that resampling made of too few or of equal rows."""
    if interval is None or counted.are_hits:
        return ""
    if counted.rows < FEWEST_ROWS:
        return "too few rows"
    return "all rows alike" if interval[0] == interval[1] else ""


@dataclass(frozen=True)
class Place:
    """Where a side's interval stands on a line from 0 to 1."""

    side: str
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class ScoreRow:
    """One score of every side, and what the differences come to."""

    score: Score
    sides: Mapping[str, Measured]
    against: Mapping[str, Difference]
    """Side → tuned against it."""

    def track(self) -> list[Place]:
        """Where each side and its interval stand between the least and the greatest figure shown;
        shares stand between 0 and 1."""
        reaches = {side: measured.ends() for side, measured in self.sides.items()}
        least = min((low for low, _ in reaches.values()), default=0.0)
        most = max((high for _, high in reaches.values()), default=1.0)
        if self.score.is_share:
            least, most = min(0.0, least), max(1.0, most)
        width = (most - least) or 1.0
        return [
            Place(side, *((end - least) / width for end in (low, self.sides[side].value, high)))
            for side, (low, high) in reaches.items()
        ]
