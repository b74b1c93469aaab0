"""Run a trainer from where it stands to its end: the first step, a checkpoint, a stop, the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState

from ftcli.config.recipe import Training
from ftcli.console import Reporter
from ftcli.errors import FtcliError
from ftcli.models.device import is_out_of_memory
from ftcli.runs.checkpoints import Checkpoint, require_whole
from ftcli.runs.signals import StopSignals
from ftcli.shell import command
from ftcli.training.callbacks import Beginning, Course
from ftcli.training.finite import NotFiniteError
from ftcli.training.measured import StepMemory
from ftcli.training.plan.plan import Plan
from ftcli.training.preflight import check_longest
from ftcli.training.saving import RECORDS, STATE
from ftcli.training.trackers import settle_trackers
from ftcli.training.trainer import FtcliTrainer


@dataclass(frozen=True)
class Start:
    """Where a sitting begins, and what may end it before its last step."""

    checkpoint: Checkpoint | None
    stops: StopSignals


class _NothingLeftError(Exception):
    """The validation that was made up for is the one at which the run ends."""


@dataclass(frozen=True)
class Outcome:
    """What a training came to; losses are per labelled token."""

    steps: int
    train_loss: float | None
    first_eval_loss: float | None
    eval_loss: float | None
    best_step: int | None
    tokens_per_second: float
    seconds: float
    signal_number: int | None


def train(
    trainer: FtcliTrainer,
    training: Training,
    plan: Plan,
    start: Start,
    memory: StepMemory,
    reporter: Reporter,
) -> Outcome:
    """Run to the last step, to an early stop or to a signal; the model holds the best weights.

    Where a step comes to nothing (a loss that is no number, no memory for one row), what was there
    before it is saved, and its error is raised.
    """
    checkpoint, records, stops = start.checkpoint, trainer.records, start.stops
    records.begin(checkpoint.folder / RECORDS if checkpoint is not None else None)
    validates = trainer.data.validation is not None
    course = Course(
        training,
        plan,
        trainer.data.windows,
        records,
        stops,
        validates=validates,
        save_seconds=lambda: trainer.checkpoint_seconds,
    )
    trainer.stops = stops
    for batch in (trainer.micro_batch, trainer.validation_batch):
        batch.note = reporter.note
    if checkpoint is not None:
        _take_up(trainer, checkpoint)
    with reporter.meter("step", plan.steps.value) as course.meter:
        if checkpoint is not None and course.is_over(checkpoint.position.step):
            _open(trainer, checkpoint.folder)
        else:
            begin = _beginning(trainer, plan, course, start, memory, reporter)
            step = checkpoint.position.step if checkpoint is not None else 0
            trackers, logs = trainer.callback_handler.callbacks, trainer.run.path / "logs"
            settle_trackers(trackers, logs, step, trainer.data.windows)
            for callback in (memory, Beginning(begin), course):
                trainer.add_callback(callback)
            _run(trainer, checkpoint, stops)
    if stops.number is None:
        _load_best(trainer, reporter)
    return _outcome(trainer, course)


def _take_up(trainer: FtcliTrainer, checkpoint: Checkpoint) -> None:
    position = checkpoint.position
    if position.order != trainer.data.order_digest():
        raise FtcliError(
            "order_changed",
            "this version of ftcli takes the rows in another order than the one that began the "
            f"run ({trainer.data.order_digest()}, it was {position.order}); go on with that "
            f"version, or start over beside it: {command('train', trainer.run.path, '--fresh')}",
        )
    # Memory may have run out since the plan; a recipe may ask for fewer rows than then.
    planned = trainer.micro_batch.rows
    trainer.micro_batch.rows = min(planned, position.micro_batch)
    trainer.validation_batch.rows = min(planned, position.validation_rows)


def _beginning(
    trainer: FtcliTrainer,
    plan: Plan,
    course: Course,
    start: Start,
    memory: StepMemory,
    reporter: Reporter,
) -> Callable[[], None]:
    """What comes before the first step of a sitting; a signal until then ends it at once."""

    def begin() -> None:
        if start.checkpoint is None:
            check_longest(trainer, plan, memory, reporter)
            if course.validates:
                loss = trainer.validation_loss()
                trainer.records.add({"step": 0, "eval_loss": loss})
                trainer.tell_trackers({"eval_loss": loss})
        else:
            # Trainer does so at its first batch, and what is saved before then would be wrong.
            trainer._load_rng_state(str(start.checkpoint.folder))
            check_longest(trainer, plan, memory, reporter)
            _require_best(trainer, reporter)
            _make_up(trainer, course)
        start.stops.patient = True

    return begin


def _make_up(trainer: FtcliTrainer, course: Course) -> None:
    """Do the validation that a stop cut short, and save what it decides."""
    step = trainer.state.global_step
    if not course.is_due(step) or trainer.records.has_eval(step):
        return
    trainer.evaluate()
    if trainer.control.should_save:
        trainer._save_checkpoint(trainer.model, None)
    if course.is_over(step):
        raise _NothingLeftError


def _run(trainer: FtcliTrainer, checkpoint: Checkpoint | None, stops: StopSignals) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    except _NothingLeftError:
        pass
    except (NotFiniteError, RuntimeError, MemoryError) as error:
        if isinstance(error, NotFiniteError) or is_out_of_memory(error):
            _keep(trainer)
        raise
    finally:
        stops.patient = False


def _keep(trainer: FtcliTrainer) -> None:
    """Save what was there before the step that came to nothing."""
    step = trainer.state.global_step
    if step and not trainer.run.checkpoint(step).is_dir():
        trainer.back_to_step_start()
        trainer._save_checkpoint(trainer.model, None)


def _open(trainer: FtcliTrainer, folder: Path) -> None:
    """Take up the weights and the state of a run that has come to its end."""
    trainer._load_from_checkpoint(str(folder))
    trainer.state = TrainerState.load_from_json(str(folder / STATE))


def _require_best(trainer: FtcliTrainer, reporter: Reporter) -> None:
    """Forget the best step so far where its weights are no longer whole."""
    state = trainer.state
    if state.best_global_step is not None and (lost := _lost(trainer, state.best_global_step)):
        reporter.warn(f"{lost}; the best of the steps to come takes its place")
        state.best_metric = state.best_global_step = None


def _load_best(trainer: FtcliTrainer, reporter: Reporter) -> None:
    state = trainer.state
    if state.best_global_step in (None, state.global_step):
        return
    if lost := _lost(trainer, state.best_global_step):
        reporter.warn(f"{lost}; the weights of the last step take its place")
        state.best_global_step = state.global_step
        state.best_metric = dict(trainer.records.eval_losses()).get(state.global_step)
        return
    trainer._load_from_checkpoint(str(trainer.run.checkpoint(state.best_global_step)))


def _lost(trainer: FtcliTrainer, step: int) -> str | None:
    """What is wrong with the checkpoint of the best step, if anything is."""
    try:
        require_whole(trainer.run, step, trainer.run.read_manifest()["run_id"])
    except FtcliError as error:
        return f"the best weights so far are lost: {error}"
    return None


def _outcome(trainer: FtcliTrainer, course: Course) -> Outcome:
    state, evals = trainer.state, dict(trainer.records.eval_losses())
    return Outcome(
        steps=state.global_step,
        train_loss=trainer.records.train_loss(),
        first_eval_loss=evals.get(0),
        eval_loss=state.best_metric,
        best_step=state.best_global_step,
        tokens_per_second=course.tokens_per_second(),
        seconds=course.seconds(),
        signal_number=course.stops.number,
    )
