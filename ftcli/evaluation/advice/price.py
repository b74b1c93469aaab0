"""`--price-per-hour`: time and cost of the run, and when its short prompt has paid for it."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ftcli.config.loader import Loaded, differences, load_recipe
from ftcli.console import Reporter, duration, shown_path
from ftcli.errors import FtcliError
from ftcli.evaluation.advice.probe import choose_rows, fitting
from ftcli.evaluation.advice.statistics import PreparedRows
from ftcli.runs.folder import runs_at
from ftcli.training.job import TrainJob
from ftcli.training.opening import FREE_KEYS

# What may differ between two runs that are as fast as each other.
SPEED_KEYS = FREE_KEYS | {
    "training.epochs",
    "training.max_steps",
    "training.learning_rate",
    "training.scheduler",
    "training.warmup_ratio",
    "training.weight_decay",
    "training.seed",
}
TIMED_CALLS = 3


@dataclass(frozen=True)
class Call:
    """One call of a model by itself, on the machine that was timed."""

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
    """What the optimizer steps of a run take and cost."""

    tokens: int
    tokens_per_second: float
    measured: str
    """Where the speed is known from."""
    seconds: float
    cost: float
    """In the currency of the price."""


@dataclass(frozen=True)
class Price:
    """What a run takes and costs, and what calls take."""

    per_hour: float
    run: RunCost
    call: Calls | None
    """None: rows have no prompts."""

    @property
    def calls_to_pay_back(self) -> int | None:
        """Calls after which the time saved is that of the run; none: a call saves nothing.

        The price of an hour plays no part, as long as both are on one machine.
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
            f"The run: {run.tokens:,} tokens at {run.tokens_per_second:,.0f} a second "
            f"({run.measured}): {duration(run.seconds)}, {cost} at {self.per_hour:g} an hour; "
            "validations and loading come on top."
        )
        if call is None:
            return [of_run]
        long, short = call.long, call.short
        of_call = (
            f"A call with {call.shots} examples: {long.prompt_tokens:,.0f} prompt tokens, "
            f"{_seconds(long.seconds)}; as the tuned model is asked: {short.prompt_tokens:,.0f}, "
            f"{_seconds(short.seconds)} (one call at a time on this machine, answers of "
            f"{call.answer_tokens:.0f} tokens)."
        )
        count = self.calls_to_pay_back
        if count is None:
            return [of_run, of_call, "The shorter prompt saves no time here: it does not pay."]
        about = round(count, min(0, 2 - len(str(count))))  # two digits: no more is known
        paid = f"The shorter prompt has paid for the run after about {about:,} calls."
        return [of_run, of_call, paid]


def price_of(
    job: TrainJob, loaded: Loaded, per_hour: float, shots: int, reporter: Reporter
) -> Price:
    """Measure what is not known yet; raises FtcliError. Takes a few steps and a few calls."""
    rows = job.dataset.trained_on
    seen = job.plan.steps * job.recipe.training.batch_size
    tokens = round(seen * rows.tokens / rows.rows)
    speed, measured = _earlier_speed(job) or _measured_speed(job, reporter)
    seconds = tokens / speed
    run = RunCost(tokens, speed, measured, seconds, seconds / 3600 * per_hour)
    calls = None
    if shots and not job.dataset.plain_text:
        calls = _timed_calls(job, loaded, shots, reporter)
    return Price(per_hour, run, calls)


def _earlier_speed(job: TrainJob) -> tuple[float, str] | None:
    """Tokens a second of the newest finished run of the same recipe on the same machine."""
    wanted = ("finished", job.model.hardware.name, job.dataset.fingerprint)
    assert job.recipe.output is not None, "the recipe's paths are absolute"
    for run in reversed(runs_at(Path(job.recipe.output))):
        try:
            manifest = run.read_manifest()
            speed = float(manifest["result"]["tokens_per_second"])
            found = (manifest["state"], manifest["hardware"]["name"], manifest["data"])
            recipe = load_recipe(run.recipe).recipe
        except (FtcliError, KeyError, TypeError, ValueError):
            continue  # a run that cannot be read says nothing
        same = found == wanted and not differences(recipe, job.recipe, SPEED_KEYS)
        if speed and same:
            return speed, f"measured by {shown_path(run.path)}"
    return None


def _measured_speed(job: TrainJob, reporter: Reporter) -> tuple[float, str]:
    """Of a few steps that are thrown away."""
    from ftcli.models.device import free_memory, memory_in_words
    from ftcli.training.timing import TIMED_STEPS, UNTIMED_STEPS, measure_speed

    training = job.recipe.training.model_copy(update={"report_to": []})
    silent = replace(job, recipe=job.recipe.model_copy(update={"training": training}))
    reporter.note(f"timing {UNTIMED_STEPS + TIMED_STEPS} steps, which are thrown away")
    logs = job.run.path / "logs"
    there = logs.is_dir()
    try:
        with memory_in_words("set training.micro_batch_size lower, or stop what else runs on it"):
            found = measure_speed(silent)
        free_memory()
    finally:
        if not there:
            shutil.rmtree(logs, ignore_errors=True)  # Trainer makes a folder for trackers
    return found.tokens_per_second, f"{TIMED_STEPS} steps timed here"


def _timed_calls(job: TrainJob, loaded: Loaded, shots: int, reporter: Reporter) -> Calls:
    """A few rows asked one by one, after examples and without."""
    from ftcli.inference.untrained import load_untrained, time_calls
    from ftcli.models.device import memory_in_words

    rows = PreparedRows(job.run.data, job.dataset)
    asked = choose_rows(rows, shots, loaded.recipe.training.seed)
    reporter.note("timing a few calls of the base")
    answer_tokens = sum(row.answer_tokens for row in rows.all()) / job.dataset.rows_accepted
    with memory_in_words("stop what else runs on it"):
        model = load_untrained(loaded, job.model.renderer)
        used = fitting(model, asked, round(answer_tokens))
        renderer = model.contract.renderer
        kinds = [asked.prompts(renderer, count)[:TIMED_CALLS] for count in (used, 0)]
        found = time_calls(model, kinds)
    long, short = (
        Call(fmean(map(len, prompts)), seconds + answer_tokens * found.seconds_per_answer_token)
        for prompts, seconds in zip(kinds, found.prompt_seconds, strict=True)
    )
    return Calls(used, answer_tokens, long, short)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
