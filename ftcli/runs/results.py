"""Results of evaluations and comparisons, as written and as printed with --json.

`eval/<key>.json` is an EvalResult, `compare.json` a CompareResult. Those of a training are in
`training_records.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ftcli import __version__
from ftcli.errors import FtcliError
from ftcli.runs.atomic import write_text

Side = Literal["base", "prompted", "tuned"]
SIDES: tuple[Side, ...] = ("base", "prompted", "tuned")
Better = Literal["higher", "lower"]
Verdict = Literal["better", "worse", "not significant", "too few rows"]
Interval = tuple[float, float]


class Result(BaseModel):
    """A frozen record; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    error_code: ClassVar[str] = "result_damaged"
    error_remedy: ClassVar[str] = "remove it and evaluate again"

    def write(self, file: Path) -> None:
        """Atomically, as indented JSON."""
        write_text(file, f"{self.model_dump_json(indent=2)}\n")

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raises FtcliError (`cls.error_code`) if the file is not as ftcli writes it."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise cls._damaged(file, error) from error

    @classmethod
    def of(cls, values: object, file: Path) -> Self:
        """From values that will be written to a file; raises FtcliError (`cls.error_code`)."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise cls._damaged(file, error) from error

    @classmethod
    def _damaged(cls, file: Path, error: OSError | ValidationError) -> FtcliError:
        message = f"not as ftcli {__version__} writes it ({_first(error)}); {cls.error_remedy}"
        return FtcliError(cls.error_code, message, file=str(file))


def _first(error: OSError | ValidationError) -> str:
    """`scores.0.unit: Field required`."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


class Score(Result):
    """One score of one side."""

    value: float
    interval: Interval
    """Of 95%."""
    n: int
    """Rows that count."""


class Difference(Result):
    """The tuned model minus another side, over the same rows."""

    value: float
    interval: Interval
    """Of 95%, paired; of this score alone."""
    n: int
    rows_better: int | None
    rows_worse: int | None
    """None if neither direction is better."""
    p_value: float
    verdict: Verdict | None
    """Corrected for all scores shown (Holm); None if neither direction is better."""


class ScoreRow(Result):
    """One score of every side: a row of the table."""

    name: str
    label: str
    unit: Literal["share", "value", "perplexity"]
    """A perplexity is stored as its logarithm, the loss."""
    better: Literal["higher", "lower"] | None
    shown: bool = True
    """Whether the tables show it; the JSON has all."""
    own: bool = False
    """A score of the user's (`--scores`)."""
    your_answers: Score | None = None
    """Of the reference answers, if they can have this score."""
    base: Score | None = None
    prompted: Score | None = None
    tuned: Score | None = None
    tuned_vs_base: Difference | None = None
    tuned_vs_prompted: Difference | None = None

    def side(self, name: Side) -> Score | None:
        score: Score | None = getattr(self, name)
        return score

    def against(self, other: Side) -> Difference | None:
        found: Difference | None = getattr(self, f"tuned_vs_{other}", None)
        return found


class Call(Result):
    """Tokens and speed of answering one row."""

    prompt_tokens: float
    answer_tokens: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class Finding:
    """A fault of one answer."""

    kind: str
    """`number not in the prompt`, `banned phrase`, `not JSON`, …"""
    message: str
    start: int | None = None
    """Characters [start, end) of the answer that show it; None: in no single place."""
    end: int | None = None


class Answer(Result):
    """One side's answer to a row."""

    text: str
    tokens: int
    stopped: bool
    loss: float
    """Of the reference answer, summed, in nats."""
    loss_tokens: int
    prompt_tokens: int
    counts: dict[str, tuple[float, float]] = {}
    """Name of a score → what this answer adds to its numerator and to its denominator."""
    findings: tuple[Finding, ...] = ()


class AnsweredRow(Result):
    """A held-out row and all answers to it: a line of `eval/answers/<key>.jsonl`."""

    number: int
    """From 1, in the order of the evaluation."""
    file: str
    line: int
    prompt: str
    reference: str
    facts: str | None = None
    """If they are not the prompt."""
    sides: dict[Side, Answer]


class EvalResult(Result):
    """`eval/<key>.json`."""

    key: str
    finished: str
    rows: int
    data: str
    """`test`, `validation`, or the file of `--data`."""
    rows_trained_on: int | None
    """Rows with a prompt of the training rows; None: not known."""
    rows_in_validation: int | None
    """Rows that chose the checkpoint."""
    instruction: str | None = None
    """The file of `--baseline-prompt`."""
    examples: int = 0
    """Few-shot examples before each row of the prompted base."""
    scores: tuple[ScoreRow, ...]
    forgetting: tuple[ScoreRow, ...] = ()
    """General ability before and after."""
    general_text: str | None = None
    calls: dict[Side, Call] = {}
    replay: str | None = None
    """Source of the replayed rows."""
    decides_by: str | None = None
    truth_measured_by: tuple[str, ...] = ()
    """Scores that measure whether answers are correct."""
    notes: tuple[str, ...] = ()
    """Sentences below the table."""
    samples: tuple[AnsweredRow, ...]
    """A few example rows, drawn by a hash."""
    answers: str
    """File of all rows, relative to `eval/`; empty for plain texts."""
    eval_config: dict[str, Any]
    flags: tuple[str, ...] = ()
    """Flags besides those of a plain `ftcli eval RUN`."""

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that were measured."""
        return tuple(side for side in SIDES if any(row.side(side) for row in self.scores))

    def row(self, name: str) -> ScoreRow | None:
        """The score of this name, also of general ability."""
        return next((row for row in self.every_row if row.name == name), None)

    @property
    def every_row(self) -> tuple[ScoreRow, ...]:
        return self.scores + self.forgetting

    @property
    def shown_rows(self) -> tuple[ScoreRow, ...]:
        return tuple(row for row in self.scores if row.shown)

    def as_json(self) -> dict[str, Any]:
        """For `--json`: also each side's scores by name, as `loss` and `loss_interval`."""
        flat: dict[str, Any] = {side: dict(self._flat(side)) for side in self.sides}
        return {**self.model_dump(mode="json"), **flat}

    def _flat(self, side: Side) -> Iterator[tuple[str, Any]]:
        for row in self.scores:
            if (score := row.side(side)) is not None:
                yield row.name, score.value
                yield f"{row.name}_interval", list(score.interval)
                if row.name == "loss":
                    yield "perplexity", math.exp(score.value)
                    yield "perplexity_interval", [math.exp(end) for end in score.interval]


class ComparedBase(Result):
    """The untrained model of a comparison."""

    four_bit: bool
    scores: dict[str, Score]
    """By name, as in a cell."""


class ComparedCell(Result):
    """One training of a comparison: a method at a learning rate."""

    state: Literal["finished"] = "finished"
    name: str
    method: str
    learning_rate: float
    four_bit: bool
    """Whether its base is in 4 bits."""
    run_dir: str
    evaluation: str | None
    """Key of its EvalResult."""
    validation_loss: float | None
    scores: dict[str, Score]
    """Of the tuned model, by the names of its ScoreRows; `general_text` is a loss."""
    steps: int
    trainable_parameters: int
    total_parameters: int
    peak_memory_bytes: int
    tokens_per_second: float | None
    saved_bytes: int
    seconds: float
    resumed: bool
    """Whether `seconds` are of the last process only."""
    chosen: bool = False
    """Whether it has the lowest validation loss of its method; the others have no differences."""
    vs_base: Difference | None = None
    """Held-out loss minus that of the base."""
    vs_best: Difference | None = None
    """Minus that of the chosen cell with the lowest held-out loss; None: this is it."""


class FailedCell(Result):
    """A training of a comparison that failed."""

    state: Literal["failed"] = "failed"
    name: str
    method: str
    code: str
    reason: str


class CompareResult(Result):
    """`compare.json`."""

    run_dir: str
    recipe: str
    model: str
    steps: int | None
    """Of every cell (`--steps`); None: the recipe's own length."""
    seed: int
    data: str
    """`test` or `validation`."""
    rows: int
    general_text: str | None
    """Its name."""
    base: ComparedBase
    cells: tuple[ComparedCell | FailedCell, ...]
    """In the order of the command line."""
    take: str | None
    """Name of a cell; None: no method is better than the base."""
    among: tuple[str, ...]
    """Cells that are not significantly worse than the best, which is the first."""
    verdict: str
    """`take` in sentences."""

    @property
    def finished(self) -> tuple[ComparedCell, ...]:
        return tuple(cell for cell in self.cells if isinstance(cell, ComparedCell))

    @property
    def failed(self) -> tuple[FailedCell, ...]:
        return tuple(cell for cell in self.cells if isinstance(cell, FailedCell))

    @property
    def has_rates(self) -> bool:
        """Whether a method was trained at several learning rates."""
        return len({cell.method for cell in self.cells}) < len(self.cells)
