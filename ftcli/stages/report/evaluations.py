"""Evaluations of a run, as `eval/*.json` keeps them, also those of before differences were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from ftcli.stages.report.plain import Plain, Reading, count, items, mapping, number, pair, text

Side = Literal["base", "prompted", "tuned"]
SIDES: tuple[Side, ...] = ("base", "prompted", "tuned")
SIDE_NAMES: Mapping[str, str] = {
    "base": "base",
    "prompted": "base with a long prompt",
    "tuned": "tuned",
}
HELD_OUT = ("test", "validation")


@dataclass(frozen=True)
class Score:
    """What is measured, how it is shown, and which way is better (none: neither)."""

    name: str
    label: str
    is_share: bool
    better: str | None

    def shown(self, value: float) -> str:
        """`97%`, `0.88`, `72.0`, `812`."""
        if self.is_share:
            return f"{value:.0%}"
        decimals = 2 if abs(value) < 10 else int(abs(value) < 100)
        return f"{value:,.{decimals}f}"

    def reach(self, ends: tuple[float, float]) -> tuple[str, str]:
        """Both ends of an interval, the unit at the second alone."""
        return self.shown(ends[0]).removesuffix("%"), self.shown(ends[1])

    def signed(self, value: float) -> str:
        """A difference in points of a share, or as it is: `+95`, `−1.58`."""
        shown = f"{100 * value:+.0f}" if self.is_share else f"{'+' if value > 0 else ''}{value:.2f}"
        return shown.replace("-", "−")


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
class Measured:
    """A score of one side with its 95% interval."""

    value: float
    interval: tuple[float, float] | None

    def shown(self, score: Score) -> str:
        """`97% (89–99)`."""
        if self.interval is None:
            return score.shown(self.value)
        low, high = score.reach(self.interval)
        return f"{score.shown(self.value)} ({low}–{high.removesuffix('%')})"


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
        reaches = {side: m.interval or (m.value, m.value) for side, m in self.sides.items()}
        least = min((low for low, _ in reaches.values()), default=0.0)
        most = max((high for _, high in reaches.values()), default=1.0)
        if self.score.is_share:
            least, most = min(0.0, least), max(1.0, most)
        width = (most - least) or 1.0
        return [
            Place(side, *((end - least) / width for end in (low, self.sides[side].value, high)))
            for side, (low, high) in reaches.items()
        ]


@dataclass(frozen=True)
class Forgotten:
    """One general ability before and after; `is_shown`: the interval leaves out that it stayed."""

    key: str
    label: str
    before: str
    after: str
    words: str
    is_shown: bool
    change: float | None
    """Of a perplexity relative to before, of a share in hundredths of it."""


@dataclass(frozen=True)
class Speed:
    """What one call of a side takes."""

    side: str
    prompt_tokens: float | None
    answer_tokens: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Column:
    """A column of a table of scores: a side, or tuned against one."""

    side: str
    against: str = ""


@dataclass(frozen=True)
class Evaluation:
    """One file of `eval/`."""

    key: str
    rows: int
    data: str
    chose_checkpoint: bool
    sides: tuple[str, ...]
    scores: tuple[ScoreRow, ...]
    forgotten: tuple[Forgotten, ...]
    speeds: tuple[Speed, ...]
    prompt_words: str
    """What the long prompt was made of; empty where none was asked."""
    samples: tuple[Plain, ...]
    """The first rows, in evaluations that kept no more."""

    @property
    def held_out(self) -> bool:
        """Of the rows that the run itself has held out."""
        return self.data in HELD_OUT

    @property
    def data_words(self) -> str:
        """`60 held-out rows (test)`."""
        rows = f"{self.rows:,} row{'s' if self.rows != 1 else ''}"
        if self.held_out:
            return f"{rows.replace(' ', ' held-out ', 1)} ({self.data})"
        return f"{rows} of {self.data}"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of a table: base, tuned, tuned against base, and then the base with a long prompt."""
        wanted = [Column("base"), Column("tuned"), Column("", "base")]
        wanted += [Column("prompted"), Column("", "prompted")]
        return tuple(column for column in wanted if (column.side or column.against) in self.sides)

    @property
    def has_speeds(self) -> bool:
        """Whether anything is known of what a call takes."""
        return any(speed.answer_tokens is not None for speed in self.speeds)

    def row(self, name: str) -> ScoreRow | None:
        """The scores of this name."""
        return next((row for row in self.scores if row.score.name == name), None)


def evaluations_in(folder: Path, reading: Reading) -> tuple[Evaluation, ...]:
    """All evaluations, the one that says most first; of those that say as much, the newest."""
    reports = {file: reading.object_in(file) for file in sorted(folder.glob("*.json"))}
    newest = sorted(reports, key=lambda file: _moment(file, reports[file]), reverse=True)
    found = [_evaluation(file.stem, reports[file]) for file in newest]
    whole = [evaluation for evaluation in found if "tuned" in evaluation.sides]
    return tuple(sorted(whole, key=_says, reverse=True))


def _says(found: Evaluation) -> tuple[bool, bool, int, bool]:
    """A look at a few rows, or at the tuned model alone, is not to stand for a whole evaluation."""
    return found.held_out, "base" in found.sides, found.rows, bool(found.forgotten)


def _moment(file: Path, report: Plain) -> float:
    """When an evaluation ended; earlier versions left it to the file's own time."""
    try:
        return datetime.fromisoformat(text(report.get("evaluated"))).timestamp()
    except ValueError:
        return file.stat().st_mtime


def _evaluation(key: str, report: Plain) -> Evaluation:
    sides = tuple(side for side in SIDES if mapping(report.get(side)))
    return Evaluation(
        key=key,
        rows=count(report.get("rows")),
        data=text(report.get("data")),
        chose_checkpoint=report.get("rows_chose_checkpoint") is True,
        sides=sides,
        scores=tuple(_score_rows(report, sides)),
        forgotten=tuple(_forgotten(mapping(report.get("forgetting")))),
        speeds=tuple(_speed(side, mapping(report[side])) for side in sides),
        prompt_words=_prompt_words(report) if "prompted" in sides else "",
        samples=tuple(each for each in items(report.get("samples")) if mapping(each)),
    )


def _prompt_words(report: Plain) -> str:
    shots = count(report.get("shots"))
    examples = f"{shots} example{'s' if shots != 1 else ''} from the training rows"
    instruction = text(report.get("instruction"))
    return f"The long prompt: the instruction of {instruction} and {examples}."


def _score_rows(report: Plain, sides: Sequence[str]) -> list[ScoreRow]:
    rows = []
    differences = mapping(report.get("differences"))
    for score in _scores(report):
        measured = {}
        for side in sides:
            value = number(report[side].get(score.name))
            if value is not None:
                measured[side] = Measured(value, pair(report[side].get(f"{score.name}_interval")))
        against = {
            other: _difference(differences, other, score, measured)
            for other in measured
            if other != "tuned" and "tuned" in measured
        }
        if measured:
            rows.append(ScoreRow(score, measured, against))
    return rows


def _scores(report: Plain) -> list[Score]:
    named = mapping(report.get("scores"))
    if not named:
        return list(EARLIER.values())
    found = []
    for name, kind in named.items():
        plain = mapping(kind)
        better = text(plain.get("better")) or None
        label = text(plain.get("label")) or name
        found.append(Score(name, label, plain.get("unit") == "share", better))
    return found


def _difference(
    differences: Plain, other: str, score: Score, measured: Mapping[str, Measured]
) -> Difference:
    plain = mapping(mapping(differences.get(f"tuned_vs_{other}")).get(score.name))
    if not plain:
        return _by_intervals(score, measured[other], measured["tuned"])
    verdict = text(plain.get("verdict"))
    return Difference(
        verdict,
        text(plain.get("words")) or verdict,
        number(plain.get("difference")),
        pair(plain.get("interval")),
        count(plain.get("rows_to_show")) or None,
    )


def _by_intervals(score: Score, other: Measured, tuned: Measured) -> Difference:
    """Without a paired interval: intervals of both sides that do not meet show a difference.

    This asks for more than a paired interval would (Schenker and Gentleman 2001).
    """
    verdict = "no difference shown" if score.better else "no change shown"
    if other.interval is not None and tuned.interval is not None:
        rises = tuned.interval[0] > other.interval[1]
        if rises or tuned.interval[1] < other.interval[0]:
            gains = rises == (score.better == "higher")
            verdict = ("better" if gains else "worse") if score.better else "changed"
    return Difference(verdict, verdict, tuned.value - other.value)


def _speed(side: str, scores: Plain) -> Speed:
    names = ("prompt_tokens", "answer_tokens", "tokens_per_second")
    return Speed(side, *(number(scores.get(name)) for name in names))


# Ability → what it is called, the unit of its figures, and whether more of it is worse.
ABILITIES: Mapping[str, tuple[str, str, bool]] = {
    "text": ("general text", "perplexity", True),
    "instructions": ("general instructions", "perplexity", True),
    "follows": ("follows unrelated instructions", "share", False),
    "stops": ("stops behind them", "share", False),
}


def _forgotten(forgetting: Plain) -> list[Forgotten]:
    found = []
    for key, (label, unit, more_is_worse) in ABILITIES.items():
        plain = mapping(forgetting.get(key))
        before, after = number(plain.get("before")), number(plain.get("after"))
        if before is None or after is None:
            continue
        score = Score(key, label, unit == "share", None)
        interval = pair(plain.get("change_interval")) or pair(plain.get("interval"))
        change = number(plain.get("change"))
        if change is None:
            change = number(plain.get("difference"))
        lost = interval is not None and (interval[0] > 0 if more_is_worse else interval[1] < 0)
        named = unit if unit != "share" else ""
        found.append(
            Forgotten(
                key,
                f"{label}, {named}" if named else label,
                score.shown(before),
                score.shown(after),
                text(plain.get("words")),
                lost,
                change,
            )
        )
    return found
