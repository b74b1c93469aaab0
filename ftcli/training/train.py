"""Train a job: build the trainer, load the newest checkpoint, take the steps, save the weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from transformers import TrainerState

from ftcli.config.recipe import Full
from ftcli.console import Reporter, about
from ftcli.errors import FtcliError
from ftcli.models.device import explain_out_of_memory, is_out_of_memory
from ftcli.models.files.base_files import tokenizer_bytes
from ftcli.models.prompt_manifest import base_at, verified_base, write_or_verify_manifest
from ftcli.runs.atomic import atomic_directory
from ftcli.runs.checkpoints import Checkpoint, verify
from ftcli.runs.signals import StopSignals
from ftcli.shell import command
from ftcli.training.building import build_trainer, save_trained
from ftcli.training.callbacks import BeforeFirstStep, ScheduleCallback, init_trackers
from ftcli.training.checkpoint import RECORDS, STATE, NotFiniteError
from ftcli.training.job import TrainJob, TrainResult
from ftcli.training.plan.learning_rate import lost_pulls
from ftcli.training.preflight import MemoryMeter, StepMemory, run_preflight
from ftcli.training.resuming import require_room, resume_point
from ftcli.training.run_record import begin_run, known_seconds, record_memory
from ftcli.training.trainer import FtcliTrainer

# Smaller micro-batches were tried already.
NO_MEMORY = (
    "one row is too much; stop other programs on it and resume, or train in a new folder (--fresh) "
    "with training.gradient_checkpointing: true, a lower data.max_length, or method.mode: qlora"
)

WSL = (
    "under WSL a full GPU swaps to RAM instead of failing: if steps become several times slower, "
    "lower training.micro_batch_size (the plan leaves a tenth of the GPU free)"
)


class _FinishedError(Exception):
    """The run ends with its deferred validation."""


def train(job: TrainJob, stops: StopSignals, reporter: Reporter) -> TrainResult:
    """Train from the newest checkpoint to the last step or an early stop, and save the weights:
    the best ones if rows are validated.

    If a step fails (NaN or infinite loss, no memory for one row), a checkpoint of the step before
    is saved and the error is raised. After a signal a checkpoint is saved, and KeyboardInterrupt
    raised.
    """
    run, recipe, plan = job.run, job.recipe, job.plan
    seconds = known_seconds(job)
    time = f" · {about(seconds)}" if seconds is not None else ""
    reporter.note(f"plan   {plan.headline()}{time}")
    _warn_of_pure_bf16(job, reporter)
    if plan.hardware.wsl:
        reporter.warn(WSL)
    checkpoint = resume_point(run, reporter)
    require_room(run, plan, tokenizer_bytes(job.model.source, job.model.revision))
    memory = StepMemory(MemoryMeter(plan.hardware))
    with explain_out_of_memory(NO_MEMORY):
        trainer = _build(job)
        schedule = _take_steps(job, trainer, checkpoint, stops, memory, reporter)
    record_memory(job, memory)
    if stops.number is not None:
        raise KeyboardInterrupt
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    with atomic_directory(
        run.model if isinstance(recipe.method, Full) else run.adapter
    ) as temporary:
        save_trained(trainer, job, temporary)
    _delete_if_empty(run.path / "logs")
    state, evals = trainer.state, dict(trainer.records.eval_losses())
    return TrainResult(
        trainer=trainer,
        steps=state.global_step,
        train_loss=trainer.records.train_loss(),
        first_eval_loss=evals.get(0),
        eval_loss=state.best_metric,
        best_step=state.best_global_step,
        tokens_per_second=schedule.tokens_per_second(),
        training_seconds=schedule.seconds(),
        trainable_parameters=trainable,
        peak_memory_bytes=memory.process_peak_bytes(),
    )


def _warn_of_pure_bf16(job: TrainJob, reporter: Reporter) -> None:
    plan = job.plan
    if plan.training.precision != "pure-bf16":
        return
    reporter.warn(
        "pure-bf16 keeps no fp32 master weights: at small learning rates most updates round to "
        "zero; training.precision: bf16 keeps them"
    )
    if strength := plan.training.l2_sp:
        pull = plan.training.learning_rate * strength
        reporter.warn(
            f"training.l2_sp: {lost_pulls(pull)}, so it has almost no effect; set "
            "training.precision: bf16"
        )


def _build(job: TrainJob) -> FtcliTrainer:
    """The trainer, on the verified base of this run and its parent; a new run begins here."""
    run, model, init_from = job.run, job.model, job.init_from
    begun = bool(run.read_manifest())
    bound = [run] if begun and run.prompt_manifest.is_file() else []
    if init_from is not None and job.init_adapter is not None:
        bound.append(init_from.run)
    with verified_base(bound, model.source, model.revision):
        begin_run(job)
        trainer = build_trainer(job)
    base = base_at(model.source, model.revision)
    write_or_verify_manifest(run, model.renderer, job.dataset, base, begun=begun)
    return trainer


def _take_steps(
    job: TrainJob,
    trainer: FtcliTrainer,
    checkpoint: Checkpoint | None,
    stops: StopSignals,
    memory: StepMemory,
    reporter: Reporter,
) -> ScheduleCallback:
    """Train from the checkpoint to the end; the model then holds the best weights."""
    records = trainer.records
    records.begin(checkpoint.folder / RECORDS if checkpoint is not None else None)
    schedule = ScheduleCallback(trainer, job.recipe.training, job.plan, stops)
    trainer.stops = stops
    for retry in (trainer.oom_retry, trainer.validation_retry):
        retry.note = reporter.note
    if checkpoint is not None:
        _load_position(trainer, checkpoint)

    step = checkpoint.position.step if checkpoint is not None else 0
    with reporter.meter("step", job.plan.steps) as schedule.meter:
        if checkpoint is not None and schedule.is_over(step):
            trainer._load_from_checkpoint(str(checkpoint.folder))
            trainer.state = TrainerState.load_from_json(str(checkpoint.folder / STATE))
        else:
            schedule.meter.update(step)
            begin = partial(
                _before_first_step, job, trainer, schedule, checkpoint, memory, reporter
            )
            trackers, logs = trainer.callback_handler.callbacks, job.run.path / "logs"
            init_trackers(trackers, logs, step, trainer.data.sampler)
            for callback in (memory, BeforeFirstStep(begin), schedule):
                trainer.add_callback(callback)
            _run_trainer(trainer, checkpoint, stops)
    if stops.number is None:
        _load_best(trainer, reporter)
    return schedule


def _load_position(trainer: FtcliTrainer, checkpoint: Checkpoint) -> None:
    position = checkpoint.position
    if position.order != trainer.data.order_digest:
        raise FtcliError(
            "order_changed",
            "this version of ftcli orders the rows differently from the one that began the run "
            f"({trainer.data.order_digest}, it was {position.order}); resume with that version, or "
            f"train in a new folder: {command('train', trainer.run.path, '--fresh')}",
        )
    # Memory may have run out since the plan; the recipe may have fewer rows than then.
    planned = trainer.oom_retry.rows
    trainer.oom_retry.rows = min(planned, position.micro_batch)
    trainer.validation_retry.rows = min(planned, position.validation_rows)


def _before_first_step(
    job: TrainJob,
    trainer: FtcliTrainer,
    schedule: ScheduleCallback,
    checkpoint: Checkpoint | None,
    memory: StepMemory,
    reporter: Reporter,
) -> None:
    """A signal ends the run immediately until this is done, and later after its step."""
    if checkpoint is not None:
        # Trainer does so only at its first batch, and a checkpoint saved earlier would be wrong.
        trainer._load_rng_state(str(checkpoint.folder))
    seconds = run_preflight(trainer, job.plan, memory, reporter)
    if known_seconds(job) is None:
        more = " more" if checkpoint is not None else ""
        reporter.note(f"time   {about(seconds)}{more}, estimated from one batch")
    if checkpoint is not None:
        _require_best(trainer, reporter)
        _validate_deferred(trainer, schedule)
    elif schedule.validates:
        _validate_first(trainer)
    schedule.stops.patient = True


def _validate_first(trainer: FtcliTrainer) -> None:
    loss = trainer.validation_loss()
    trainer.records.add({"step": 0, "eval_loss": loss})
    trainer.log_to_trackers({"eval_loss": loss})


def _validate_deferred(trainer: FtcliTrainer, schedule: ScheduleCallback) -> None:
    """Run the validation that a stop skipped, and save if it is the best."""
    step = trainer.state.global_step
    if not schedule.is_due(step) or trainer.records.has_eval(step):
        return
    trainer.evaluate()
    if trainer.control.should_save:
        trainer._save_checkpoint(trainer.model, None)
    if schedule.is_over(step):
        raise _FinishedError


def _run_trainer(trainer: FtcliTrainer, checkpoint: Checkpoint | None, stops: StopSignals) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    except _FinishedError:
        pass
    except (NotFiniteError, RuntimeError, MemoryError) as error:
        if isinstance(error, NotFiniteError) or is_out_of_memory(error):
            step = trainer.state.global_step
            if step and not trainer.run.checkpoint(step).is_dir():
                trainer.back_to_step_start()
                trainer._save_checkpoint(trainer.model, None)
        raise
    finally:
        stops.patient = False


def _require_best(trainer: FtcliTrainer, reporter: Reporter) -> None:
    """Forget the best step so far if its checkpoint is no longer valid."""
    state = trainer.state
    if state.best_global_step is not None and (lost := _lost(trainer, state.best_global_step)):
        reporter.warn(f"{lost}; the best of the remaining steps replaces it")
        state.best_metric = state.best_global_step = None


def _load_best(trainer: FtcliTrainer, reporter: Reporter) -> None:
    state = trainer.state
    if state.best_global_step in (None, state.global_step):
        return
    if lost := _lost(trainer, state.best_global_step):
        reporter.warn(f"{lost}; the weights of the last step replace it")
        state.best_global_step = state.global_step
        state.best_metric = dict(trainer.records.eval_losses()).get(state.global_step)
        return
    trainer._load_from_checkpoint(str(trainer.run.checkpoint(state.best_global_step)))


def _lost(trainer: FtcliTrainer, step: int) -> str | None:
    """What is wrong with the checkpoint of the best step; None if it is valid."""
    try:
        verify(trainer.run, step, trainer.run.read_manifest()["run_id"])
    except FtcliError as error:
        return f"the best weights so far are lost: {error}"
    return None


def _delete_if_empty(folder: Path) -> None:
    """Trainer makes a folder for trackers even without any."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
