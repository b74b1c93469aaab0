"""Write and read a run's run.json, recipe.yaml and plan.json."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ftcli import __version__
from ftcli.config.loader import differences, dump_recipe, load_recipe
from ftcli.errors import FtcliError, MachineError, ModelError
from ftcli.memory import Choices
from ftcli.memory.interval import residuals_of
from ftcli.memory.speed import RunTime, run_time
from ftcli.runs.atomic import write_text
from ftcli.runs.folder import RunFolder, runs_at
from ftcli.runs.training_records import MemoryFigures
from ftcli.shell import shown_source
from ftcli.training.opening import FREE_KEYS, weight_digests

if TYPE_CHECKING:
    from ftcli.training.job import TrainJob, TrainResult
    from ftcli.training.preflight import StepMemory

# Keys that do not change the speed of a run.
SPEED_KEYS = FREE_KEYS | {
    "training.epochs",
    "training.max_steps",
    "training.learning_rate",
    "training.lr_scheduler",
    "training.warmup_ratio",
    "training.weight_decay",
    "training.seed",
}
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
MEASUREMENTS = ("allocated_bytes", "reserved_bytes", "resident_bytes", "validation_bytes")


def begin_run(job: TrainJob) -> None:
    """Write recipe, plan and run.json before the first step, so that the run can be resumed."""
    run, hardware, replay = job.run, job.model.hardware, job.dataset.replay
    if run.read_manifest():
        run.update_manifest(state="training")
        return
    write_text(run.recipe, dump_recipe(job.recipe))
    job.plan.write(run.plan)
    replayed: dict[str, Any] = {}
    if replay is not None:
        counts = {"task_rows": job.dataset.train.rows, "replay_rows": replay.rows}
        source = shown_source(replay.source)
        replayed = {"source": source, **counts, "replay_tokens": replay.tokens}
    run.update_manifest(
        state="training",
        run_id=uuid.uuid4().hex,
        recipe=str(job.recipe_file.absolute()),
        parent=str(job.init_from.run.path) if job.init_from else None,
        data=job.dataset.fingerprint,
        **({"replay": replayed} if replayed else {}),
        seed=job.recipe.training.seed,
        hardware={"name": hardware.name, "memory_bytes": hardware.memory_bytes},
        versions={
            "ftcli": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def finish_run(
    job: TrainJob, result: TrainResult, stop_rate: Mapping[str, Any], seconds: float
) -> None:
    """Write the result, with `stop_rate` and `seconds`, and that the run is finished.

    Raises ModelError if no weights were saved.
    """
    run, folder = job.run, job.run.trained()
    weights = weight_digests(folder)
    if not any(name.endswith(".safetensors") for name in weights["weights"]):
        raise ModelError("save", f"{folder} has no weights after saving")
    run.update_manifest(
        state="finished",
        result={
            "state": "finished",
            "steps": result.steps,
            "train_loss": result.train_loss,
            "eval_loss": result.eval_loss,
            "first_eval_loss": result.first_eval_loss,
            "best_step": result.best_step,
            "tokens_per_second": result.tokens_per_second,
            "total_parameters": job.model.architecture.parameters,
            # Without the base's tokenizer next to them.
            "saved_bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
            "checkpoint_bytes": run.checkpoint_bytes(),
            "training_seconds": result.training_seconds,
            "trainable_parameters": result.trainable_parameters,
            "peak_memory_bytes": result.peak_memory_bytes,
            **stop_rate,
            "seconds": seconds,
        },
        **weights,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def record_memory(job: TrainJob, measured: StepMemory) -> None:
    """Write the plan's estimate and the measurements; of a resumed run the maximum."""
    plan, steps = job.plan, measured.steps
    residuals, peak_bytes = residuals_of(plan.estimated, "allocated"), plan.estimate.peak_bytes
    record = MemoryRecord(
        device=job.model.hardware.kind,
        estimated_bytes=peak_bytes,
        low_bytes=round(residuals.low * peak_bytes),
        high_bytes=round(residuals.high * peak_bytes),
        estimated_reserved_bytes=plan.estimate.reserved_bytes,
        allocated_bytes=steps.allocated_bytes,
        reserved_bytes=steps.reserved_bytes,
        resident_bytes=steps.resident_bytes,
        validation_bytes=measured.validations.allocated_bytes,
        model=job.recipe.model.id,
        choices=plan.estimated,
    )
    earlier = job.run.read_manifest().get("memory", {})
    job.run.update_manifest(memory=record.maximum(earlier).model_dump(mode="json"))


def tokens_to_train(job: TrainJob) -> int:
    """Tokens of all steps, without padding, by the rows' mean."""
    rows = job.dataset.epoch_counts
    return round(job.plan.steps * job.recipe.training.batch_size * rows.tokens / rows.rows)


def known_seconds(job: TrainJob) -> float | None:
    """Seconds of all steps, if a run of the same recipe has measured its speed here."""
    known = known_speed(job)
    return tokens_to_train(job) / known[0] if known is not None else None


def estimated_time(job: TrainJob) -> RunTime | None:
    """By a roofline of the GPU; None on a CPU, and where no formula counts the step."""
    if job.plan.hardware.kind != "cuda":
        return None
    plan, tokens = job.plan, tokens_to_train(job)
    if plan.common_tokens:  # computed once for each micro-batch
        rows = plan.steps * plan.training.batch_size
        micro_batches = plan.steps * plan.estimated.gradient_accumulation
        tokens -= plan.common_tokens * (rows - micro_batches)
    try:
        return run_time(job.model.architecture, plan.estimated, plan.hardware, tokens)
    except MachineError:
        return None


def known_speed(job: TrainJob) -> tuple[float, RunFolder] | None:
    """Tokens per second of the newest finished run of the same recipe on the same machine."""
    wanted = ("finished", job.model.hardware.name, job.dataset.fingerprint)
    for run in reversed(runs_at(job.recipe.run_dir)):
        try:
            manifest = run.read_manifest()
            speed = float(manifest["result"]["tokens_per_second"])
            found = (manifest["state"], manifest["hardware"]["name"], manifest["data"])
            recipe = load_recipe(run.recipe).recipe
        except (FtcliError, KeyError, TypeError, ValueError):
            continue  # the run cannot be read
        if speed and found == wanted and not differences(recipe, job.recipe, SPEED_KEYS):
            return speed, run
    return None


class MemoryRecord(MemoryFigures):
    """`memory` of run.json with the inputs of its estimate, which allow to estimate it again."""

    choices: Choices

    def maximum(self, earlier: Mapping[str, Any]) -> MemoryRecord:
        """The maximum of each measurement with those of an earlier process of the run; that of
        another device does not count."""
        if earlier.get("device") != self.device:
            return self
        pairs = {name: (getattr(self, name), earlier.get(name)) for name in MEASUREMENTS}
        greater = {name: max(pair, key=lambda size: size or 0) for name, pair in pairs.items()}
        return self.model_copy(update=greater)
