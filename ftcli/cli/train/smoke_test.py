"""`ftcli train --smoke-test`: every stage with a tiny random model of the same architecture.

Recipe, data, tokenizer, template, machine and disk are the real ones. The tiny model trains a few
steps on the longest rows. Only the prepared data are kept.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcli.cli.prepare import data_folder
from ftcli.cli.train.train_recipe import (
    open_recipe,
    plan_job,
    prepare_rows,
    require_weights,
    train_recipe,
)
from ftcli.config.loader import RecipeFile, load_recipe
from ftcli.config.recipe import FrozenKeys, Full, LoraKeys
from ftcli.console import Meter, Reporter, duration, print_result, wrapped
from ftcli.data.dataset import SPLITS, Dataset
from ftcli.data.example import Message
from ftcli.errors import FtcliError, MachineError, Stopped
from ftcli.evaluation.eval_rows import EvalOptions
from ftcli.evaluation.run_evaluation import evaluate_run
from ftcli.export.merge_run import MergeOptions, merge_run
from ftcli.inference.generator import GenerateOptions, open_generator
from ftcli.models.files.base_files import tokenizer_bytes
from ftcli.report.page import report_or_warn
from ftcli.runs.atomic import free_bytes, is_full
from ftcli.runs.folder import RunFolder
from ftcli.runs.signals import StopSignals
from ftcli.shell import command, set_flags, shown_path, shown_size
from ftcli.training.job import TrainJob, require_separate_output, temporary_run
from ftcli.training.opening import OpenRun, open_run
from ftcli.training.plan.plan import Plan
from ftcli.training.resuming import require_room

STAGES = (
    "check",
    "prepare",
    "plan",
    "tiny model",
    "longest batch",
    "train",
    "resume",
    "eval",
    "merge",
    "generate",
)
# Prefix of a smoke test's temporary folder.
TEMPORARY = ".tmp-smoke-test-"
STEPS = 4
# After this step the training gets a SIGTERM, as if a user stopped it.
STOPPED_AT = 2
# A step has several rows in a micro-batch and several micro-batches.
MAX_ROWS, MAX_ACCUMULATION = 2, 2
# The tiny model has the whole vocabulary: 8,192 × 150,000 logits take seconds on two cores.
MAX_TOKENS = 8192
HELD_OUT_ROWS, EVALUATED_ROWS = 4, 2
NEW_TOKENS = 8
# Remote trackers are off in a smoke test.
LOCAL_TRACKERS = ("tensorboard",)


@dataclass(frozen=True)
class Stage:
    """A stage of a smoke test, with its time and a summary."""

    name: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class SmokeTest:
    """A passed smoke test."""

    loaded: RecipeFile
    data: Path
    """The prepared data, which the real training will use."""
    plan: Plan
    stages: tuple[Stage, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "smoke_test": "passed",
            "seconds": self.seconds,
            "stages": [asdict(stage) for stage in self.stages],
            "data": str(self.data),
            "plan": self.plan.model_dump(mode="json"),
        }


def show_smoke_test(found: SmokeTest) -> None:
    """Print the verdict, and the plan and command of the real training."""
    loaded = found.loaded
    print_result(f"smoke test passed in {duration(found.seconds)}")
    print_result(wrapped(f"plan   {found.plan.headline()}", " " * 7))
    print_result(f"data   {shown_path(found.data)}")
    print_result(f"next   {command('train', loaded.path, *set_flags(loaded.overrides))}")


def run_smoke_test(recipe: Path, overrides: tuple[str, ...], reporter: Reporter) -> SmokeTest:
    """Run all stages; raises FtcliError as the real commands, and Stopped on a signal."""
    started, stages = time.monotonic(), Stages(reporter)
    with stages.named_in_errors(), _stoppable(reporter):
        loaded = load_recipe(recipe, overrides)
        require_separate_output(RunFolder(loaded.output), loaded.recipe)
        with temporary_run(loaded.output, TEMPORARY) as folder:
            with loaded.locate():
                job = _prepare_and_plan(loaded, stages)
            _run_commands(loaded, job, folder.path, stages)
    seconds = time.monotonic() - started
    return SmokeTest(loaded, job.run.data, job.plan, tuple(stages.passed), seconds)


class Stages:
    """The passed stages, and so the current one."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.passed: list[Stage] = []
        self._started = time.monotonic()

    def passes(self, name: str, detail: str) -> None:
        """Free the models of a finished stage, record it, and start the next one."""
        from ftcli.models.device import free_memory

        free_memory()
        now = time.monotonic()
        self.passed.append(Stage(name, now - self._started, detail))
        place = f"smoke test {len(self.passed):>2}/{len(STAGES)}"
        self.reporter.note(f"{place}  {name:<13}  {detail} ({now - self._started:.1f} s)")
        self._started = now

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Name the stage that failed in its error."""
        try:
            yield
        except Stopped:
            raise
        except FtcliError as error:
            raise SmokeTestError(self._now, error) from error
        except Exception as error:
            if is_full(error):
                words = "the disk is full: make room, or name another one in output"
                raise SmokeTestError(self._now, MachineError("disk_full", words)) from error
            if isinstance(error, OSError):
                parts = (error.filename, error.strerror or error)
                words = ": ".join(str(part) for part in parts if part)
                raise SmokeTestError(self._now, FtcliError("disk", words)) from error
            error.add_note(f"(in a smoke test, {self._now})")
            raise

    @property
    def _now(self) -> str:
        return STAGES[min(len(self.passed), len(STAGES) - 1)]


class SmokeTestError(FtcliError):
    """The error of the real command, with its stage."""

    def __init__(self, stage: str, error: FtcliError) -> None:
        super().__init__(error.code, error.message, file=error.file, line=error.line)
        self.exit_code = error.exit_code
        first, *others = str(error).splitlines() or [""]
        # Lines that name the temporary run, which is deleted.
        lines = [first, *(line for line in others if TEMPORARY not in line)]
        self._text = f"smoke test, {stage}: " + "\n".join(lines)

    def __str__(self) -> str:
        return self._text


@contextmanager
def _stoppable(reporter: Reporter) -> Iterator[None]:
    """Let a signal end the block immediately; raises Stopped."""
    signals = StopSignals(reporter.note)
    try:
        with signals.caught():
            yield
    except (KeyboardInterrupt, Stopped) as error:
        number = signals.number or getattr(error, "exit_code", 128 + signal.SIGINT) - 128
        raise Stopped("smoke test stopped; only the prepared data are kept", number) from error


# The real recipe


def _prepare_and_plan(loaded: RecipeFile, stages: Stages) -> TrainJob:
    from ftcli.training.smoke.rows import require_within_context

    loaded, model = open_recipe(loaded, None)
    weights = require_weights(model)
    run = data_folder(loaded, model.renderer)
    stages.passes("check", f"{model.architecture.model_type} on {model.hardware.name}; {weights}")
    with run.lock():
        dataset = prepare_rows(loaded, model, run, stages.reporter)
        require_within_context(run.data, dataset, model, loaded.recipe)
    stages.passes("prepare", _rows_in_words(dataset))
    job = plan_job(loaded, model, dataset, run)
    tokenizer = tokenizer_bytes(model.source, model.revision)
    require_room(run, job.plan, tokenizer)
    saved = job.plan.run_bytes(tokenizer)
    merged, left = 2 * model.architecture.parameters, free_bytes(run.path) - saved
    if isinstance(loaded.recipe.method, LoraKeys) and left < merged:
        stages.reporter.warn(
            f"a merge needs {shown_size(merged)}, and only {shown_size(left)} of the disk "
            "will be free after training; make room, or merge to another disk with --output"
        )
    stages.passes("plan", f"{job.plan.headline()}; {shown_size(saved)} to be saved")
    return job


def _rows_in_words(dataset: Dataset) -> str:
    longest = dataset.longest
    splits = ", ".join(f"{dataset.counts(split).rows} {split}" for split in SPLITS)
    return (
        f"{dataset.rows_read} rows: {splits}, {dataset.rows_rejected} rejected; longest "
        f"{longest.tokens} tokens ({longest.file}:{longest.line})"
    )


# The commands on the tiny model


def _run_commands(loaded: RecipeFile, job: TrainJob, folder: Path, stages: Stages) -> None:
    """Train, stop, resume, evaluate, merge and generate in `folder`; raises their errors."""
    from ftcli.training.smoke.rows import write_excerpt
    from ftcli.training.smoke.tiny_model import build_tiny_model

    model, run, longest = folder / "model", RunFolder(folder / "run"), job.dataset.longest.tokens
    quick = max(1, MAX_TOKENS // longest)
    rows = min(job.plan.training.micro_batch_size, MAX_ROWS, quick)
    accumulation = min(job.plan.accumulation, MAX_ACCUMULATION, quick // rows)
    batch_size = rows * accumulation
    tiny = build_tiny_model(job.model.source, job.recipe, model)
    counts = {"train": STEPS * batch_size, "validation": HELD_OUT_ROWS, "test": HELD_OUT_ROWS}
    write_excerpt(job.run.data, job.dataset, run.data, counts, longest=batch_size)
    size = f"{tiny.layers} layers of width {tiny.hidden}, {tiny.vocab:,} tokens"
    stages.passes("tiny model", size)
    changes = {
        "model.id": str(model),
        "model.revision": None,
        "output": str(run.path),
        "training.batch_size": batch_size,
        "training.micro_batch_size": rows,
        **_changed_keys(job),
    }
    flags = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]
    first_step = f"{rows} × {accumulation} rows, {longest} tokens"
    _train(loaded.path, (*loaded.overrides, *flags), run, first_step, stages)
    opened, quiet = open_run(run.path), Quiet(stages.reporter)
    stages.passes("eval", _evaluate(opened, quiet))
    stages.passes("merge", _merge(opened, quiet))
    stages.passes("generate", _generate(opened))


def _changed_keys(job: TrainJob) -> dict[str, object]:
    """Keys whose values the plan or the short run decides, not the recipe."""
    recipe, plan = job.recipe, job.plan
    return {
        "data.shuffle": False,  # the longest rows come first
        "training.max_steps": STEPS,
        "training.gradient_checkpointing": plan.training.gradient_checkpointing,
        "training.precision": plan.training.precision,
        "training.optimizer": plan.training.optimizer,
        "training.eval_steps": STOPPED_AT,
        "training.save_steps": STOPPED_AT,
        "training.early_stopping_patience": None,
        "training.report_to": [n for n in recipe.training.report_to if n in LOCAL_TRACKERS],
        "generation.max_new_tokens": min(recipe.generation.max_new_tokens, NEW_TOKENS),
    }


def _train(
    recipe: Path, overrides: tuple[str, ...], run: RunFolder, first_step: str, stages: Stages
) -> None:
    """Train until a signal, and resume with the same command."""

    def stop(step: int) -> None:
        if step == 1:
            stages.passes("longest batch", first_step)
        # After a real signal the next one would end the program immediately.
        if step == STOPPED_AT and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)

    def train(reporter: Reporter) -> dict[str, Any]:
        trained = train_recipe(recipe, overrides, fresh=False, init_from=None, reporter=reporter)
        return trained.report

    try:
        train(Quiet(stages.reporter, stop))
    except Stopped as stopped:
        if stopped.exit_code != 128 + signal.SIGTERM or not run.steps_saved():
            raise
    step = run.steps_saved()[-1]
    stages.passes("train", f"validated, saved, stopped by SIGTERM after step {step}")
    report = train(Quiet(stages.reporter))
    kept = f"{run.trained().name} saved ({shown_size(report['saved_bytes'])})"
    stages.passes("resume", f"from step {step} to {report['steps']}; {kept}")


def _evaluate(opened: OpenRun, reporter: Reporter) -> str:
    if not (opened.prepared.validation.rows or opened.prepared.test.rows):
        return "no rows are held out"
    found = evaluate_run(opened.run.path, (), EvalOptions(limit=EVALUATED_ROWS), reporter)
    report_or_warn(found.run, reporter)
    return f"base and tuned on {found.result.rows} {found.result.data} rows"


def _merge(opened: OpenRun, reporter: Reporter) -> str:
    method = opened.recipe.method
    if isinstance(method, FrozenKeys):
        return f"method.mode {method.mode} cannot be merged"
    found = merge_run(opened.run.path, (), output=None, options=MergeOptions(), reporter=reporter)
    if isinstance(method, Full):
        return "already a stand-alone model"
    exact, dtype = found.report["exact"], found.report["dtype"]
    return f"exact before rounding (KL {exact['kl']:.1e}), stored as {dtype}"


def _generate(opened: OpenRun) -> str:
    """Answer the prompt of a row in a batch, as --input, and alone, as PROMPT."""
    from ftcli.data.tokenizing.arrow_rows import read_split

    generator, text = open_generator(GenerateOptions(opened.run.path)), "a"
    if not opened.prepared.plain_text:
        split = next(split for split in reversed(SPLITS) if opened.prepared.counts(split).rows)
        row = read_split(opened.run.data, split).slice(0, 1).to_pylist()[0]
        messages = tuple(Message(*turn) for turn in json.loads(row["messages"])[:-1])
        generator.answers(opened.recipe.name, [messages])
        text = messages[-1].content
    if opened.prepared.system is None:
        generator.answer(text)
    return f"up to {opened.recipe.generation.max_new_tokens} tokens"


def _no_step(step: int) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Quiet:
    """A reporter of warnings only; `on_step` gets the number of each step."""

    reporter: Reporter
    on_step: Callable[[int], None] = _no_step

    def note(self, text: str) -> None:
        """Drop notes."""

    def warn(self, text: str) -> None:
        self.reporter.warn(text)

    @contextmanager
    def meter(self, label: str, total: int) -> Iterator[Meter]:
        yield self if label == "step" else Quiet(self.reporter)

    def update(self, done: int, figures: str = "") -> None:
        self.on_step(done)
