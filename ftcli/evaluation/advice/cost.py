"""`--cost-per-hour`: time and cost of a run, and after how many calls its shorter prompt pays."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ftcli.config.recipe import Recipe
from ftcli.console import Reporter, counted, duration, shown_path
from ftcli.evaluation.advice.prompting import choose_rows, fitting_examples
from ftcli.evaluation.advice.row_statistics import PreparedRows
from ftcli.training.run_record import known_speed, tokens_to_train

if TYPE_CHECKING:
    from ftcli.training.job import TrainJob

TIMED_CALLS = 3


@dataclass(frozen=True)
class Call:
    """One call at a time, on this machine."""

    prompt_tokens: float
    seconds: float


@dataclass(frozen=True)
class Calls:
    """A call with examples in its prompt, and one without."""

    shots: int
    answer_tokens: float
    long: Call
    short: Call


@dataclass(frozen=True)
class RunCost:
    """Time and cost of a run's optimizer steps."""

    tokens: int
    tokens_per_second: float
    measured: str
    """The source of the speed."""
    seconds: float
    cost: float
    """In the currency of `per_hour`."""


@dataclass(frozen=True)
class Cost:
    """Time and cost of a run, and the time of calls."""

    per_hour: float
    run: RunCost
    call: Calls | None
    """None: rows have no prompts."""

    @property
    def calls_to_pay_back(self) -> int | None:
        """Calls that save as much time as the run took; None: a call saves nothing.

        The cost per hour cancels, because both are on the same machine.
        """
        saved = self.call.long.seconds - self.call.short.seconds if self.call else 0.0
        return math.ceil(self.run.seconds / saved) if saved > 0 else None

    def as_json(self) -> dict[str, Any]:
        paid = {"calls_to_pay_back": self.calls_to_pay_back, "sentences": self.sentences()}
        return asdict(self) | paid

    def sentences(self) -> list[str]:
        """The figures in words: the run, a call, the break-even."""
        run, call = self.run, self.call
        cost = f"{run.cost:,.2f}" if run.cost >= 0.1 else f"{run.cost:.2g}"
        of_run = (
            f"The run: {run.tokens:,} tokens at {run.tokens_per_second:,.0f} per second "
            f"({run.measured}): {duration(run.seconds)}, {cost} at {self.per_hour:g} per hour, "
            "without validations and loading."
        )
        if call is None:
            return [of_run]
        long, short = call.long, call.short
        of_call = (
            f"A call with {counted(call.shots, 'example')}: {long.prompt_tokens:,.0f} prompt "
            f"tokens, {_seconds(long.seconds)}; without them, as the tuned model is asked: "
            f"{short.prompt_tokens:,.0f}, {_seconds(short.seconds)} (one call at a time on this "
            f"machine, answers of {call.answer_tokens:.0f} tokens)."
        )
        count = self.calls_to_pay_back
        if count is None:
            return [of_run, of_call, "The shorter prompt saves no time here."]
        about = round(count, min(0, 2 - len(str(count))))  # two significant digits
        paid = f"The shorter prompt pays for the run after about {about:,} calls."
        return [of_run, of_call, paid]


def measure_cost(
    job: TrainJob, recipe: Recipe, per_hour: float, shots: int, reporter: Reporter
) -> Cost:
    """Measure what no earlier run has measured: a few steps, a few calls; raises FtcliError."""
    if (known := known_speed(job)) is not None:
        speed, measured = known[0], f"measured by {shown_path(known[1].path)}"
    else:
        speed, measured = _measured_speed(job, reporter)
    tokens = tokens_to_train(job)
    seconds = tokens / speed
    run = RunCost(tokens, speed, measured, seconds, seconds / 3600 * per_hour)
    calls = None
    if shots and not job.dataset.plain_text:
        calls = _timed_calls(job, recipe, shots, reporter)
    return Cost(per_hour, run, calls)


def _measured_speed(job: TrainJob, reporter: Reporter) -> tuple[float, str]:
    """Of a few steps that are discarded, and its source."""
    from ftcli.models.device import explain_out_of_memory, free_memory
    from ftcli.training.preflight import TIMED_STEPS, UNTIMED_STEPS, measure_speed

    training = job.recipe.training.model_copy(update={"report_to": []})
    silent = replace(job, recipe=job.recipe.model_copy(update={"training": training}))
    reporter.note(f"timing {UNTIMED_STEPS + TIMED_STEPS} steps, which are discarded")
    logs = job.run.path / "logs"
    there = logs.is_dir()
    try:
        with explain_out_of_memory(
            "set training.micro_batch_size lower, or stop what else runs on it"
        ):
            tokens_per_second = measure_speed(silent)
        free_memory()
    finally:
        if not there:
            shutil.rmtree(logs, ignore_errors=True)  # Trainer creates a folder for trackers
    return tokens_per_second, f"{TIMED_STEPS} steps timed here"


def _timed_calls(job: TrainJob, recipe: Recipe, shots: int, reporter: Reporter) -> Calls:
    """Time a few rows one by one, with and without examples."""
    from ftcli.inference.call_speed import time_calls
    from ftcli.inference.open_model import load_untrained
    from ftcli.models.device import explain_out_of_memory

    rows = PreparedRows(job.run.data, job.dataset)
    asked = choose_rows(rows, shots, recipe.training.seed)
    reporter.note("timing a few calls of the base")
    answer_tokens = sum(row.answer_tokens for row in rows.all()) / job.dataset.rows_accepted
    with explain_out_of_memory("stop what else runs on it"):
        model = load_untrained(recipe, job.model.renderer)
        used = fitting_examples(model, asked, round(answer_tokens))
        renderer = model.prompt_format.renderer
        kinds = [asked.prompts(renderer, count)[:TIMED_CALLS] for count in (used, 0)]
        found = time_calls(model, kinds)
    long, short = (
        Call(fmean(map(len, prompts)), seconds + answer_tokens * found.seconds_per_answer_token)
        for prompts, seconds in zip(kinds, found.prompt_seconds, strict=True)
    )
    return Calls(used, answer_tokens, long, short)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
