"""`--price-per-hour`: time and cost of the run, and when its short prompt has paid for it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftcli.artifacts import RunFolder, runs_at
from ftcli.console import Reporter, duration, shown_path
from ftcli.errors import FtcliError
from ftcli.loading import differences, load_recipe, resolved
from ftcli.metrics.price import Call, calls_to_pay_back, cost, training_seconds
from ftcli.stages.advice.probe import choose_rows, fitting
from ftcli.stages.advice.rows import PreparedRows
from ftcli.stages.job import Job
from ftcli.stages.opening import FREE_KEYS

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
ADVICE = "set training.micro_batch_size lower, or stop what else runs on it"


@dataclass(frozen=True)
class Speed:
    """Tokens that a training takes in a second here, and where that is known from."""

    tokens_per_second: float
    measured: str


@dataclass(frozen=True)
class Calls:
    """A call with examples in its prompt, and one without."""

    shots: int
    long: Call
    short: Call


@dataclass(frozen=True)
class Price:
    """What the run takes and costs; `calls`: none where rows have no prompts."""

    per_hour: float
    tokens: float
    speed: Speed
    calls: Calls | None

    @property
    def seconds(self) -> float:
        return training_seconds(self.tokens, self.speed.tokens_per_second)

    @property
    def calls_to_pay_back(self) -> int | None:
        if self.calls is None:
            return None
        return calls_to_pay_back(self.seconds, self.calls.long, self.calls.short)

    def as_json(self) -> dict[str, Any]:
        calls = self.calls
        return {
            "per_hour": self.per_hour,
            "run": {
                "tokens": round(self.tokens),
                "tokens_per_second": self.speed.tokens_per_second,
                "measured": self.speed.measured,
                "seconds": self.seconds,
                "cost": cost(self.seconds, self.per_hour),
            },
            "call": None if calls is None else _calls_json(calls),
            "calls_to_pay_back": self.calls_to_pay_back,
            "sentences": self.sentences(),
        }

    def sentences(self) -> list[str]:
        """The figures in words: the run, a call, the break-even."""
        run = (
            f"The run: {self.tokens:,.0f} tokens at {self.speed.tokens_per_second:,.0f} a second "
            f"({self.speed.measured}): {duration(self.seconds)}, "
            f"{money(cost(self.seconds, self.per_hour))} at {self.per_hour:g} an hour; validations "
            "and loading come on top."
        )
        return [run] if self.calls is None else [run, *self._of_calls(self.calls)]

    def _of_calls(self, calls: Calls) -> list[str]:
        long, short = calls.long, calls.short
        call = (
            f"A call with {calls.shots} examples: {long.prompt_tokens:,.0f} prompt tokens, "
            f"{_seconds(long.seconds)}; as the tuned model is asked: {short.prompt_tokens:,.0f}, "
            f"{_seconds(short.seconds)} (one call at a time on this machine, answers of "
            f"{short.answer_tokens:.0f} tokens)."
        )
        count = self.calls_to_pay_back
        if count is None:
            return [call, "The shorter prompt saves no time here: it does not pay for the run."]
        paid = f"The shorter prompt has paid for the run after about {_about(count):,} calls."
        return [call, paid]


def price_of(job: Job, per_hour: float, shots: int, reporter: Reporter) -> Price:
    """Measure what is not known yet; raises FtcliError. Takes a few steps and a few calls."""
    rows = job.prepared.trained_on
    steps, batch = job.plan.steps.value, job.recipe.training.batch_size
    tokens = steps * batch * rows.tokens / rows.rows
    speed = _earlier_speed(job) or _measured_speed(job, reporter)
    calls = None
    if shots and not job.prepared.plain_text:
        calls = _timed_calls(job, shots, reporter)
    return Price(per_hour, tokens, speed, calls)


def _earlier_speed(job: Job) -> Speed | None:
    """That of the newest finished run of the same recipe on the same machine."""
    scene = job.scene
    for run in reversed(runs_at(scene.loaded.output)):
        try:
            manifest = run.read_manifest()
            if _is_as_fast(run, manifest, job):
                found = float(manifest["result"]["tokens_per_second"])
                return Speed(found, f"measured by {shown_path(run.path)}")
        except (FtcliError, KeyError, TypeError, ValueError):
            continue  # a run that cannot be read tells nothing
    return None


def _is_as_fast(run: RunFolder, manifest: Mapping[str, Any], job: Job) -> bool:
    scene = job.scene
    if manifest["state"] != "finished" or manifest["hardware"]["name"] != scene.hardware.name:
        return False
    if manifest["data"] != scene.fingerprint or not manifest["result"]["tokens_per_second"]:
        return False
    return not differences(load_recipe(run.recipe).recipe, resolved(scene.loaded), SPEED_KEYS)


def _measured_speed(job: Job, reporter: Reporter) -> Speed:
    """Of a few steps that are thrown away."""
    from ftcli.engine.building import Setup
    from ftcli.engine.device import free_memory, memory_in_words
    from ftcli.engine.timing import TIMED_STEPS, UNTIMED_STEPS, measure_speed

    scene, training = job.scene, job.recipe.training.model_copy(update={"report_to": []})
    recipe = job.recipe.model_copy(update={"training": training})
    setup = Setup(
        recipe,
        scene.source,
        scene.hardware,
        job.plan,
        job.prepared,
        scene.renderer,
        job.parent_adapter,
    )
    reporter.note(f"timing {UNTIMED_STEPS + TIMED_STEPS} steps, which are thrown away")
    logs = job.run.path / "logs"
    there = logs.is_dir()
    try:
        with memory_in_words(ADVICE):
            found = measure_speed(setup, job.run)
        free_memory()
    finally:
        if not there and logs.is_dir():
            shutil.rmtree(logs)  # Trainer makes a folder for trackers
    return Speed(found.tokens_per_second, f"{TIMED_STEPS} steps timed here")


def _timed_calls(job: Job, shots: int, reporter: Reporter) -> Calls:
    """A few rows asked one by one, behind examples and without."""
    from ftcli.engine.device import memory_in_words
    from ftcli.engine.untrained import ids_of, load_untrained, time_calls

    loaded, rows = job.scene.loaded, PreparedRows(job.run.data, job.prepared)
    asked = choose_rows(rows, shots, loaded.recipe.training.seed)
    reporter.note("timing a few calls of the base")
    answer_tokens = _mean_answer(rows)
    with memory_in_words("stop what else runs on it"):
        model = load_untrained(loaded, job.scene.renderer)
        used = fitting(model, asked, round(answer_tokens))
        renderer = model.contract.renderer
        kinds = [
            [ids_of(renderer, asked.prompt(row, count)) for row in asked.rows[:TIMED_CALLS]]
            for count in (used, 0)
        ]
        found = time_calls(model, kinds)
    lengths = [sum(map(len, prompts)) / len(prompts) for prompts in kinds]
    each = 1 / found.seconds_per_answer_token
    long, short = (
        Call(tokens, tokens / seconds, answer_tokens, each)
        for tokens, seconds in zip(lengths, found.prompt_seconds, strict=True)
    )
    return Calls(used, long, short)


def _mean_answer(rows: PreparedRows) -> float:
    """Tokens of an answer, over all rows."""
    total = sum(row.answer_tokens for row in rows.all())
    return total / rows.count


def _calls_json(calls: Calls) -> dict[str, Any]:
    sides = {name: getattr(calls, name) for name in ("long", "short")}
    found: dict[str, Any] = {
        name: {
            "prompt_tokens": call.prompt_tokens,
            "prompt_tokens_per_second": call.prompt_tokens_per_second,
            "answer_tokens_per_second": call.answer_tokens_per_second,
            "seconds": call.seconds,
        }
        for name, call in sides.items()
    }
    return {
        "shots": calls.shots,
        "answer_tokens": calls.short.answer_tokens,
        **found,
        "saved_seconds": calls.long.seconds - calls.short.seconds,
    }


def money(amount: float) -> str:
    """`12.40`, `0.10`, `0.0021`: two digits that say something."""
    return f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.2g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _about(count: int) -> int:
    """Two digits: the times behind it are not known any better."""
    return round(count, 2 - len(str(count))) if count >= 100 else count
