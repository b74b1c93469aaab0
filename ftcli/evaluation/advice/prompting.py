"""What prompting reaches and costs.

`prepare --try-prompting` scores the base on a few rows with and without examples in its prompt;
`--cost-per-hour` says what a run takes and costs, and after how many calls its short prompt has
paid for it.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ftcli.config.recipe import Recipe
from ftcli.config.section import named_files, without_folders
from ftcli.console import Reporter, counted, duration, shown_path
from ftcli.data.dataset import Dataset, Split
from ftcli.data.prompts import Turns, choose_examples, few_shot
from ftcli.errors import DataError
from ftcli.evaluation.advice.answer_form import AnswerForm, read_format
from ftcli.evaluation.advice.row_statistics import PreparedRows
from ftcli.evaluation.scorers.facts import question_of
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.scorer import Scorer, code_digest
from ftcli.evaluation.scorers.text import TextScorer
from ftcli.evaluation.scoring import score_answers
from ftcli.evaluation.statistics import mean_of
from ftcli.memory.shapes import model_source
from ftcli.models.base_files import base_fingerprint
from ftcli.runs.atomic import sha256_file, short_digest
from ftcli.training.run_record import known_speed, tokens_to_train

if TYPE_CHECKING:
    from ftcli.data.tokenizing.rendering import Renderer
    from ftcli.inference.generation import Model
    from ftcli.training.job import TrainJob

TIMED_CALLS = 3
ROWS = 30
# How right what a form holds is; the first that was measured.
RIGHT = ("execution_match", "sql_match", "field_accuracy")
# Answers of these kinds are right or wrong, whatever form the recipe asks for.
ONE_IS_RIGHT = ("labels", "sql")
# Goes up when the same model and rows would be asked otherwise.
VERSION = 3


@dataclass(frozen=True)
class PromptingResult:
    """Scores of the base on a few rows, with examples in its prompt and without."""

    key: str
    """Changes with everything that the scores depend on."""
    rows: int
    rows_from: Mapping[Split, int]
    shots: int
    """Examples in a prompt: fewer than were asked for where the context holds no more."""
    shots_asked: int
    format: Mapping[str, Any] | None
    decided_by: Mapping[str, str]
    """The scores, with their labels, on which the verdict rests."""
    zero_shot: Mapping[str, Any]
    """Scores with their intervals, named as in `ftcli eval`."""
    few_shot: Mapping[str, Any]


@dataclass(frozen=True)
class PromptedRows:
    """The rows that are asked, and the examples that may stand before them."""

    rows_from: Mapping[Split, int]
    """How many of the rows are of each split."""
    rows: tuple[Turns, ...]
    examples: tuple[Turns, ...]

    def prompts(self, renderer: Renderer, shots: int) -> list[list[int]]:
        """Ids of the turns before each row's answer, after so many examples."""
        from ftcli.inference.open_model import ids_of

        shown = self.examples[:shots]
        return [ids_of(renderer, few_shot(row[:-1], None, shown)) for row in self.rows]


def prompting_key(recipe: Recipe, prepared: Dataset, shots: int) -> str:
    """16 hex digits of everything that the scores depend on."""
    source = model_source(recipe.model.id)
    form = without_folders(recipe.eval).format
    files = named_files(recipe.eval)
    parts = {
        "version": VERSION,
        "rows": prepared.fingerprint,
        "model": [source, recipe.model.revision, base_fingerprint(source, recipe.model.revision)],
        "precision": [recipe.training.precision, recipe.method.mode],
        "generation": recipe.generation.model_dump(),
        "format": form.model_dump(mode="json") if form is not None else None,
        "files": [sha256_file(file) if file.is_file() else None for file in files],
        "code": code_digest(),
        "shots": shots,
    }
    return short_digest(parts, 16)


def choose_rows(rows: PreparedRows, shots: int, seed: int) -> PromptedRows:
    """Held-out rows, filled up to ROWS with training rows that are no examples.

    Raises DataError where rows are plain texts, which have no prompts, or none is left to ask.
    """
    prepared = rows.prepared
    if prepared.plain_text:
        reason = "plain texts have no prompts to ask; leave --try-prompting out"
        raise DataError("prompting", reason, file=prepared.train_source)
    held_out: Split = "test" if prepared.test.rows or not prepared.validation.rows else "validation"
    asked = choose_examples((row.messages for row in rows.of(held_out)), ROWS, seed)
    training = (row.messages for row in rows.of("train"))
    chosen = choose_examples(training, shots + ROWS - len(asked), seed)
    examples, filling = chosen[:shots], chosen[shots:]
    if not asked and not filling:
        reason = (
            f"{prepared.train.rows} training rows are all needed as examples, and none is held "
            "out to ask; lower --shots"
        )
        raise DataError("prompting", reason, file=prepared.train_source)
    counts: dict[Split, int] = {held_out: len(asked), "train": len(filling)}
    rows_from = {name: count for name, count in counts.items() if count}
    return PromptedRows(rows_from, (*asked, *filling), tuple(examples))


def try_prompting(
    recipe: Recipe,
    renderer: Renderer,
    rows: PreparedRows,
    detected: AnswerForm | None,
    shots: int,
    reporter: Reporter,
) -> PromptingResult:
    """Scores of the base with and without examples; `detected`: the form that answers share.

    Raises FtcliError: nothing to ask, a model that cannot be opened, memory.
    """
    asked = choose_rows(rows, shots, recipe.training.seed)
    form = recipe.eval.format
    if form is None and detected is not None and detected.fixed:
        form = read_format(detected.eval_format)
    scorers: list[Scorer] = [TextScorer()]
    if form is not None:
        scorers.insert(0, format_scorer(form))

    from ftcli.inference.open_model import load_untrained
    from ftcli.models.device import explain_out_of_memory

    with explain_out_of_memory("stop what else runs on it, or leave --try-prompting out"):
        model = load_untrained(recipe, renderer)
        used = fitting(model, asked, recipe.generation.max_new_tokens)
        zero, few = (_scores(model, asked, count, recipe, scorers, reporter) for count in (0, used))
    return PromptingResult(
        key=prompting_key(recipe, rows.prepared, shots),
        rows=len(asked.rows),
        rows_from=asked.rows_from,
        shots=used,
        shots_asked=shots,
        format=form.model_dump(mode="json", exclude_defaults=True) if form is not None else None,
        decided_by=_decided_by(few, scorers, detected),
        zero_shot=zero,
        few_shot=few,
    )


def fitting(model: Model, asked: PromptedRows, answer_tokens: int) -> int:
    """As many of the examples as leave room for every question and its answer."""
    from ftcli.inference.generation import context_tokens

    context, shots = context_tokens(model), len(asked.examples)
    while context is not None and shots:
        longest = max(map(len, asked.prompts(model.prompt_format.renderer, shots)))
        if longest + answer_tokens <= context:
            break
        shots -= 1
    return shots


def _scores(
    model: Model,
    asked: PromptedRows,
    shots: int,
    recipe: Recipe,
    scorers: Sequence[Scorer],
    reporter: Reporter,
) -> dict[str, Any]:
    """Of the answers to all rows after so many examples."""
    from ftcli.inference.generation import answer_prompts, seed_sampling

    prompts = asked.prompts(model.prompt_format.renderer, shots)
    seed_sampling(recipe.training.seed)
    started = time.monotonic()
    with reporter.meter(f"prompting, {counted(shots, 'example')}", len(prompts)) as meter:
        answers = answer_prompts(model, prompts, recipe.generation, meter.update)
    seconds = time.monotonic() - started
    tokens = [answer.tokens for answer in answers]
    questions = [question_of(row, None) for row in asked.rows]
    scored = score_answers(scorers, [answer.text for answer in answers], questions, lambda: None)
    counts = {
        "stop_rate": mean_of([answer.stopped for answer in answers]),
        **scored.counts,
        "answer_tokens": mean_of(tokens),
    }
    scores: dict[str, Any] = {
        "prompt_tokens": fmean(map(len, prompts)),
        "tokens_per_second": sum(tokens) / seconds,
    }
    for name, count in counts.items():
        scores |= {name: count.value, f"{name}_interval": list(count.interval())}
    return scores


def _decided_by(
    scores: Mapping[str, Any], scorers: Sequence[Scorer], detected: AnswerForm | None
) -> dict[str, str]:
    """The scores, with their labels, that say together whether prompting does."""
    names = [name for name in ("format_rate",) if name in scores]
    right = next((name for name in RIGHT if name in scores), None)
    if right is not None:
        names.append(right)
    elif not names or (detected is not None and detected.kind in ONE_IS_RIGHT):
        names.append("exact_match")
    kinds = {name: kind for scorer in scorers for name, kind in scorer.kinds.items()}
    return {name: kinds[name].label for name in names}


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
    """In the currency of the cost."""


@dataclass(frozen=True)
class Cost:
    """What a run takes and costs, and what calls take."""

    per_hour: float
    run: RunCost
    call: Calls | None
    """None: rows have no prompts."""

    @property
    def calls_to_pay_back(self) -> int | None:
        """Calls after which the time saved is that of the run; None: a call saves nothing.

        The cost of an hour plays no part, as long as both are on one machine.
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
            f"A call with {counted(call.shots, 'example')}: {long.prompt_tokens:,.0f} prompt "
            f"tokens, {_seconds(long.seconds)}; as the tuned model is asked: "
            f"{short.prompt_tokens:,.0f}, "
            f"{_seconds(short.seconds)} (one call at a time on this machine, answers of "
            f"{call.answer_tokens:.0f} tokens)."
        )
        count = self.calls_to_pay_back
        if count is None:
            return [of_run, of_call, "The shorter prompt saves no time here: it does not pay."]
        about = round(count, min(0, 2 - len(str(count))))  # two digits: no more is known
        paid = f"The shorter prompt has paid for the run after about {about:,} calls."
        return [of_run, of_call, paid]


def measure_cost(
    job: TrainJob, recipe: Recipe, per_hour: float, shots: int, reporter: Reporter
) -> Cost:
    """Measure what is not known yet; raises FtcliError. Takes a few steps and a few calls."""
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
    """Of a few steps that are thrown away."""
    from ftcli.models.device import explain_out_of_memory, free_memory
    from ftcli.training.preflight import TIMED_STEPS, UNTIMED_STEPS, measure_speed

    training = job.recipe.training.model_copy(update={"report_to": []})
    silent = replace(job, recipe=job.recipe.model_copy(update={"training": training}))
    reporter.note(f"timing {UNTIMED_STEPS + TIMED_STEPS} steps, which are thrown away")
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
            shutil.rmtree(logs, ignore_errors=True)  # Trainer makes a folder for trackers
    return tokens_per_second, f"{TIMED_STEPS} steps timed here"


def _timed_calls(job: TrainJob, recipe: Recipe, shots: int, reporter: Reporter) -> Calls:
    """A few rows asked one by one, after examples and without."""
    from ftcli.inference.generation import time_calls
    from ftcli.inference.open_model import load_untrained
    from ftcli.models.device import explain_out_of_memory

    rows = PreparedRows(job.run.data, job.dataset)
    asked = choose_rows(rows, shots, recipe.training.seed)
    reporter.note("timing a few calls of the base")
    answer_tokens = sum(row.answer_tokens for row in rows.all()) / job.dataset.rows_accepted
    with explain_out_of_memory("stop what else runs on it"):
        model = load_untrained(recipe, job.model.renderer)
        used = fitting(model, asked, round(answer_tokens))
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
