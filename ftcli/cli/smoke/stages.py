"""The second half of a rehearsal: the real commands, on a tiny twin of the model and a few rows."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.cli.smoke.walk import Quiet, StoppingUser, Walk
from ftcli.cli.train import train_recipe
from ftcli.config.loader import Loaded
from ftcli.config.recipe import FrozenKeys, Full
from ftcli.console import Reporter, megabytes
from ftcli.data.example import Message
from ftcli.data.prepared import SPLITS, Prepared, Split
from ftcli.errors import Stopped
from ftcli.evaluation.evaluation import evaluate_run
from ftcli.evaluation.rows import EvalOptions
from ftcli.export.merge import MergeOptions, merge_run
from ftcli.inference.generate import GenerateOptions, open_generator
from ftcli.report.page import report_or_say
from ftcli.runs.folder import RunFolder
from ftcli.training.job import BaseModel
from ftcli.training.opening import OpenRun, open_run
from ftcli.training.plan.plan import Plan

STEPS = 4
# The step at which the twin's training gets a SIGTERM, as from a user who stops it.
STOPPED_AT = 2
# A batch of the twin has what makes one: rows beside one another, and one after another.
MOST_ROWS, MOST_ACCUMULATION = 2, 2
# The twin's head has the whole vocabulary: 8,192 × 150,000 logits take seconds on two cores.
MOST_TOKENS = 8192
HELD_OUT_ROWS = 4
EVALUATED_ROWS = 2
NEW_TOKENS = 8
# Trackers that write to a folder alone; others would be told of a training that is none.
LOCAL_TRACKERS = ("tensorboard",)


@dataclass(frozen=True)
class Real:
    """What is to be rehearsed: the recipe with its model and machine, its data and its plan."""

    loaded: Loaded
    model: BaseModel
    run: RunFolder
    prepared: Prepared
    plan: Plan


@dataclass(frozen=True)
class _Batch:
    """Rows of one step of the twin."""

    rows: int
    accumulation: int

    @property
    def size(self) -> int:
        return self.rows * self.accumulation


def rehearse_twin(real: Real, folder: Path, walk: Walk) -> None:
    """Train, stop, resume, evaluate, merge and generate below `folder`; raises as they do."""
    twin, run = folder / "twin", RunFolder(folder / "run")
    batch = _batch(real)
    walk.passed("twin", _build(real, twin, run, batch))
    overrides = (*real.loaded.overrides, *_changes(real, twin, run, batch))
    _train(real, run, overrides, batch, walk)
    opened, quiet = open_run(run.path), Quiet(walk.reporter)
    walk.passed("eval", _evaluate(opened, quiet))
    _free()
    walk.passed("merge", _merge(opened, quiet))
    _free()
    walk.passed("generate", _generate(opened))


def _batch(real: Real) -> _Batch:
    """As the plan's, as far as the longest rows leave it quick."""
    quick = max(1, MOST_TOKENS // real.prepared.longest.tokens)
    rows = min(real.plan.training.micro_batch_size, MOST_ROWS, quick)
    return _Batch(rows, min(real.plan.accumulation, MOST_ACCUMULATION, quick // rows))


def _build(real: Real, folder: Path, run: RunFolder, batch: _Batch) -> str:
    """The twin, and the rows that it is trained on."""
    from ftcli.training.smoke.excerpt import write_excerpt
    from ftcli.training.smoke.tiny_model import build_twin

    shape = build_twin(real.model.source, real.loaded.recipe, folder)
    rows: dict[Split, int] = dict.fromkeys(SPLITS, HELD_OUT_ROWS)
    rows["train"] = STEPS * batch.size
    write_excerpt(real.run.data, real.prepared, run.data, rows, longest=batch.size)
    return f"{shape.layers} layers of width {shape.hidden}, {shape.vocab:,} tokens"


def _changes(real: Real, twin: Path, run: RunFolder, batch: _Batch) -> Iterator[str]:
    """Keys of the recipe that are others for the twin, as `--set` takes them."""
    recipe, plan = real.loaded.recipe, real.plan
    trackers = [name for name in recipe.training.report_to if name in LOCAL_TRACKERS]
    changed = {
        "model.id": str(twin),
        "model.revision": None,
        "output": str(run.path),
        "data.shuffle": False,  # the longest rows come first
        "training.max_steps": STEPS,
        "training.batch_size": batch.size,
        "training.micro_batch_size": batch.rows,
        "training.gradient_checkpointing": plan.training.gradient_checkpointing,
        "training.precision": plan.training.precision,
        "training.optimizer": plan.training.optimizer,
        "training.eval_steps": STOPPED_AT,
        "training.save_steps": STOPPED_AT,
        "training.early_stopping_patience": None,
        "training.report_to": trackers,
        "generation.max_new_tokens": min(recipe.generation.max_new_tokens, NEW_TOKENS),
    }
    for key, value in changed.items():
        yield f"{key}={json.dumps(value, ensure_ascii=False)}"


def _train(real: Real, run: RunFolder, overrides: Sequence[str], batch: _Batch, walk: Walk) -> None:
    """Train until the signal, and go on from there, both by the same command."""
    path, quiet = real.loaded.path, Quiet(walk.reporter)
    first = f"{batch.rows} × {batch.accumulation} rows, {real.prepared.longest.tokens} tokens"
    watched = Quiet(walk.reporter, StoppingUser(walk, first, STOPPED_AT))
    try:
        train_recipe(path, overrides, fresh=False, init_from=None, reporter=watched)
    except Stopped as stopped:
        if stopped.exit_code != 128 + signal.SIGTERM or not run.steps_saved():
            raise
    _free()
    step = run.steps_saved()[-1]
    walk.passed("train", f"validated, saved, stopped by SIGTERM behind step {step}")
    report = train_recipe(path, overrides, fresh=False, init_from=None, reporter=quiet).report
    _free()
    kept = f"{run.trained().name} saved ({megabytes(report['saved_bytes'])})"
    walk.passed("resume", f"from step {step} to {report['steps']}; {kept}")


def _free() -> None:
    """Give back the model and optimizer of a leg."""
    from ftcli.models.device import free_memory

    free_memory()


def _evaluate(opened: OpenRun, reporter: Reporter) -> str:
    if not (opened.prepared.validation.rows or opened.prepared.test.rows):
        return "no rows are held out"
    found = evaluate_run(opened.run.path, (), EvalOptions(limit=EVALUATED_ROWS), reporter)
    report_or_say(found.run, reporter)
    return f"base and tuned on {found.result.rows} {found.result.data} rows"


def _merge(opened: OpenRun, reporter: Reporter) -> str:
    method = opened.loaded.recipe.method
    if isinstance(method, FrozenKeys):
        return f"method.mode {method.mode} has none"
    found = merge_run(opened.run.path, (), output=None, options=MergeOptions(), reporter=reporter)
    if isinstance(method, Full):
        return "the model stands alone already"
    exact, dtype = found.report["exact"], found.report["dtype"]
    return f"exact before rounding (KL {exact['kl']:.1e}), stored as {dtype}"


def _generate(opened: OpenRun) -> str:
    """Answer the prompt of a row as `--input` does, and as a prompt on the command line."""
    generator = open_generator(GenerateOptions(opened.run.path))
    text = "a"
    if not opened.prepared.plain_text:
        messages = _prompt(opened)
        generator.answers(opened.loaded.recipe.name, [messages])
        text = messages[-1].content
    if opened.prepared.system is None:
        generator.answer(text)
    return f"up to {opened.loaded.recipe.generation.max_new_tokens} tokens"


def _prompt(opened: OpenRun) -> tuple[Message, ...]:
    from ftcli.data.tokenizing.rows import read_split

    split = next(split for split in reversed(SPLITS) if opened.prepared.counts(split).rows)
    row = read_split(opened.run.data, split).slice(0, 1).to_pylist()[0]
    return tuple(Message(*turn) for turn in json.loads(row["messages"])[:-1])
