"""Evaluations of a run, as `eval/*.json` keeps them, also those of before differences were kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from ftcli.artifacts import LAST_EVALUATION
from ftcli.stages.report.elsewhere import Told
from ftcli.stages.report.forgotten import Forgotten, forgotten_in
from ftcli.stages.report.plain import Plain, Reading, count, items, mapping, number, pair, text
from ftcli.stages.report.scored import (
    EARLIER,
    Counted,
    Difference,
    Measured,
    Score,
    ScoreRow,
    no_certainty,
)

Side = Literal["base", "prompted", "tuned"]
SIDES: tuple[Side, ...] = ("base", "prompted", "tuned")
SIDE_NAMES: Mapping[str, str] = {
    "base": "base",
    "prompted": "base with a long prompt",
    "tuned": "tuned",
}
HELD_OUT = ("test", "validation")
DAMAGE_SHOWN = 3


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
    instruction: str
    """The file of the long prompt; empty where none was asked."""
    shots: int
    """Training rows in the long prompt."""
    samples: tuple[Plain, ...]
    """The first rows, in evaluations that kept no more."""
    kept_answers: bool = False
    """Whether it has left a file of all its rows."""
    damage: tuple[str, ...] = ()
    """Figures that are no numbers, as `tuned.loss`."""
    twins: Mapping[str, str] = field(default_factory=dict)
    """Score → an earlier one that is equal in every row, as far as the rows tell."""
    labels: bool = False
    """Whether the answers of its rows are a few labels, as far as the rows tell."""
    missing: str = ""
    """What is gone of the file of its rows; empty: nothing."""
    flags: tuple[str, ...] = ()
    """What was asked beyond a plain `ftcli eval`."""
    trained_on: int = 0
    """Rows that ask what the run was trained on, as far as that is known."""
    in_validation: int = 0
    """Rows that chose the checkpoint, as far as it is known which."""
    references: tuple[str, ...] = ()
    """What the data's own answers score, in words, where a score needs that beside it."""

    def told(self, told: Told) -> Evaluation:
        """With its paths as the page says them."""
        return replace(self, data=told(self.data), instruction=told(self.instruction))

    @property
    def prompt_words(self) -> str:
        """What the long prompt was made of; empty where none was asked."""
        if "prompted" not in self.sides:
            return ""
        examples = f"{self.shots} example{'s' if self.shots != 1 else ''} from the training rows"
        return f"The long prompt: the instruction of {self.instruction} and {examples}."

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
    def flattered(self) -> tuple[str, ...]:
        """What makes the tuned model look better on these rows than it is."""
        found = []
        if self.trained_on:
            found.append(f"{self._part(self.trained_on)} ask what the run was trained on")
        if self.chose_checkpoint:
            found.append(f"{self._part(self.in_validation or self.rows)} chose the checkpoint")
        return tuple(found)

    def _part(self, rows: int) -> str:
        return "these rows" if rows >= self.rows else f"{rows:,} of {self.rows:,} rows"

    @property
    def answered(self) -> bool:
        """Whether anything but losses was measured: plain texts have no answers."""
        return any(row.score.name not in ("loss", "perplexity") for row in self.scores)

    @property
    def has_speeds(self) -> bool:
        """Whether anything is known of what a call takes."""
        return any(speed.answer_tokens is not None for speed in self.speeds)

    def row(self, name: str) -> ScoreRow | None:
        """The scores of this name."""
        return next((row for row in self.scores if row.score.name == name), None)


def evaluations_in(folder: Path, reading: Reading) -> tuple[Evaluation, ...]:
    """All evaluations, the one that says most first; of those that say as much, the one that was
    asked for last."""
    reports = {file: reading.object_in(file) for file in sorted(folder.glob("*.json"))}
    last = _last(folder / LAST_EVALUATION)
    newest = sorted(
        reports, key=lambda file: (file.stem == last, _moment(file, reports[file])), reverse=True
    )
    found = [_evaluation(file.stem, reports[file]) for file in newest]
    for file, evaluation in zip(newest, found, strict=True):
        if evaluation.damage:
            reading.note(file, f"no figures, and left out: {_few(evaluation.damage)}")
    whole = [evaluation for evaluation in found if "tuned" in evaluation.sides]
    return tuple(sorted(whole, key=_says, reverse=True))


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:DAMAGE_SHOWN])
    more = len(names) - DAMAGE_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _says(found: Evaluation) -> tuple[bool, bool, int, bool, bool]:
    """A look at a few rows, or at the tuned model alone, is not to stand for a whole evaluation;
    nor is a later one, without the long prompt, to hide that the base with it is better."""
    sides = found.sides
    against = "base" in sides, found.rows, "prompted" in sides
    return found.held_out, *against, bool(found.forgotten)


def _last(file: Path) -> str:
    """The key of what was asked for last, also where it had been evaluated before."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _moment(file: Path, report: Plain) -> float:
    """When an evaluation ended; earlier versions left it to the file's own time."""
    try:
        return datetime.fromisoformat(text(report.get("evaluated"))).timestamp()
    except ValueError:
        return file.stat().st_mtime


def _evaluation(key: str, report: Plain) -> Evaluation:
    sides = tuple(side for side in SIDES if mapping(report.get(side)))
    scores = _scores(report)
    return Evaluation(
        key=key,
        rows=count(report.get("rows")),
        data=text(report.get("data")),
        chose_checkpoint=report.get("rows_chose_checkpoint") is True,
        sides=sides,
        scores=tuple(_score_rows(report, scores, sides)),
        forgotten=tuple(forgotten_in(mapping(report.get("forgetting")))),
        speeds=tuple(_speed(side, mapping(report[side])) for side in sides),
        instruction=text(report.get("instruction")),
        shots=count(report.get("shots")),
        samples=tuple(each for each in items(report.get("samples")) if mapping(each)),
        trained_on=count(report.get("rows_trained_on")),
        in_validation=count(report.get("rows_in_validation")),
        references=tuple(
            text(mapping(each).get("words")) for each in mapping(report.get("references")).values()
        ),
        flags=tuple(text(each) for each in items(report.get("flags"))),
        kept_answers=bool(text(report.get("answers"))),
        damage=tuple(_damage(report, scores, sides)),
    )


def _damage(report: Plain, scores: Sequence[Score], sides: Sequence[str]) -> Iterator[str]:
    """Figures that are there and are none."""
    differences = mapping(report.get("differences"))
    for score in scores:
        for side in sides:
            measured = report[side]
            if score.name in measured and number(measured[score.name]) is None:
                yield f"{side}.{score.name}"
            name = f"{score.name}_interval"
            if name in measured and pair(measured[name]) is None:
                yield f"{side}.{name}"
        for against, compared in differences.items():
            if score.name in mapping(compared) and not mapping(compared[score.name]):
                yield f"differences.{against}.{score.name}"


def _score_rows(report: Plain, scores: Sequence[Score], sides: Sequence[str]) -> list[ScoreRow]:
    rows = []
    differences = mapping(report.get("differences"))
    for score in scores:
        measured = {}
        for side in sides:
            value = number(report[side].get(score.name))
            if value is not None:
                interval = pair(report[side].get(f"{score.name}_interval"))
                measured[side] = Measured(value, interval, _counted(report, side, score))
        against = {}
        for other in measured:
            if other != "tuned" and "tuned" in measured:
                found = _difference(differences, other, score, measured)
                if found is not None:
                    both = measured[other].counted, measured["tuned"].counted
                    instead = no_certainty(found.interval, _of_both(*both))
                    against[other] = replace(found, instead=instead)
        if measured:
            rows.append(ScoreRow(score, measured, against))
    return rows


def _of_both(ours: Counted, theirs: Counted) -> Counted:
    """Hits of other rows on each side are resampled as all else is."""
    hits = ours.are_hits and theirs.are_hits and ours.rows == theirs.rows
    return Counted(min(ours.rows, theirs.rows), hits)


def _counted(report: Plain, side: str, score: Score) -> Counted:
    """As the evaluation says; of before it did, the rows of the differences and the score's name.

    Those rows may be fewer than all, and more than count for this side.
    """
    name = "loss" if score.name == "perplexity" else score.name
    kept = mapping(mapping(mapping(report.get("counted")).get(side)).get(name))
    if kept:
        return Counted(count(kept.get("rows")), kept.get("hits") is True)
    known = [
        count(mapping(mapping(compared).get(score.name)).get("rows"))
        for compared in mapping(report.get("differences")).values()
    ]
    return Counted(max(known, default=0) or count(report.get("rows")), score.is_of_rows)


def _scores(report: Plain) -> list[Score]:
    named = mapping(report.get("scores"))
    if not named:
        return list(EARLIER.values())
    found = []
    for name, kind in named.items():
        plain = mapping(kind)
        way = text(plain.get("better"))
        label = text(plain.get("label")) or name
        better = way if way in ("higher", "lower") else None
        is_share, own = plain.get("unit") == "share", plain.get("own") is True
        found.append(Score(name, label, is_share, better, own))
    return found


def _difference(
    differences: Plain, other: str, score: Score, measured: Mapping[str, Measured]
) -> Difference | None:
    """None where the evaluation, which compares, has not compared this score."""
    compared = differences.get(f"tuned_vs_{other}")
    if not isinstance(compared, dict):
        return _by_intervals(score, measured[other], measured["tuned"])
    plain = mapping(compared.get(score.name))
    verdict = text(plain.get("verdict"))
    if plain:
        return Difference(
            verdict,
            text(plain.get("words")) or verdict,
            number(plain.get("difference")),
            pair(plain.get("interval")),
            count(plain.get("rows_to_show")) or None,
        )
    told = text(mapping(compared.get("loss")).get("verdict"))
    if score.name != "perplexity" or not told:
        return None
    return Difference(told, f"{told}, as the loss")


def _by_intervals(score: Score, other: Measured, tuned: Measured) -> Difference:
    """Without a paired interval: intervals of both sides that do not meet show a difference.

    This asks for more than a paired interval would (Schenker and Gentleman 2001).
    """
    verdict = "no difference shown" if score.better else "no change shown"
    certain = not other.instead and not tuned.instead
    if certain and other.interval is not None and tuned.interval is not None:
        rises = tuned.interval[0] > other.interval[1]
        if rises or tuned.interval[1] < other.interval[0]:
            gains = rises == (score.better == "higher")
            verdict = ("better" if gains else "worse") if score.better else "changed"
    return Difference(verdict, verdict, tuned.value - other.value)


def _speed(side: str, scores: Plain) -> Speed:
    names = ("prompt_tokens", "answer_tokens", "tokens_per_second")
    return Speed(side, *(number(scores.get(name)) for name in names))
