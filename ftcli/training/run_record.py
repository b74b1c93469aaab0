"""What a run says of itself in run.json, recipe.yaml and plan.json."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ftcli import __version__
from ftcli.config.loader import dump_recipe, resolved
from ftcli.data.prepared import Prepared
from ftcli.errors import ModelError
from ftcli.runs.atomic import write_json, write_text
from ftcli.training.job import Job
from ftcli.training.memory_record import memory_record
from ftcli.training.weights_record import recorded

if TYPE_CHECKING:
    from ftcli.training.loop import Outcome
    from ftcli.training.measured import StepMemory

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")


def begin(job: Job) -> None:
    """Write what the run is before its first step, so that it can be resumed."""
    run = job.run
    if run.read_manifest():
        run.update_manifest(state="training")
        return
    scene = job.scene
    write_text(run.recipe, dump_recipe(resolved(scene.loaded)))
    write_json(run.plan, job.plan.as_json())
    run.update_manifest(
        state="training",
        run_id=uuid.uuid4().hex,
        recipe=str(scene.loaded.path.absolute()),
        parent=str(scene.parent.run.path) if scene.parent else None,
        data=job.prepared.fingerprint,
        **_replayed(job.prepared),
        seed=job.recipe.training.seed,
        hardware={"name": scene.hardware.name, "memory_bytes": scene.hardware.memory_bytes},
        versions={
            "ftcli": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def _replayed(prepared: Prepared) -> dict[str, Any]:
    """What an epoch is made of, where it is not the task's rows alone."""
    found = prepared.replay
    if found is None:
        return {}
    counts = {"task_rows": prepared.train.rows, "replay_rows": found.rows}
    return {"replay": {"source": found.source, **counts, "replay_tokens": found.tokens}}


def record_memory(job: Job, measured: StepMemory) -> None:
    """Estimated and measured, side by side in run.json; of several sittings the greatest."""
    record = memory_record(job.scene, job.plan, measured)
    earlier = job.run.read_manifest().get("memory", {})
    job.run.update_manifest(memory=record.or_greater(earlier).as_json())


def report_of(job: Job, outcome: Outcome, figures: Mapping[str, int]) -> dict[str, Any]:
    """What the training came to, as `ftcli train --json` prints it."""
    return {
        "state": "finished",
        "steps": outcome.steps,
        "train_loss": outcome.train_loss,
        "eval_loss": outcome.eval_loss,
        "first_eval_loss": outcome.first_eval_loss,
        "best_step": outcome.best_step,
        "tokens_per_second": outcome.tokens_per_second,
        "total_parameters": job.scene.shape.parameters,
        # The weights alone: the tokenizer beside them is that of the base.
        "saved_bytes": sum(f.stat().st_size for f in job.run.trained().glob("*.safetensors")),
        "training_seconds": outcome.seconds,
        **figures,
    }


def end(job: Job, report: dict[str, Any]) -> None:
    """The run is finished; raises ModelError where no weights were saved."""
    run = job.run
    weights = recorded(run.trained())
    if not any(name.endswith(".safetensors") for name in weights["weights"]):
        raise ModelError("save", f"{run.trained()} holds no weights after saving")
    run.update_manifest(
        state="finished",
        result=report,
        **weights,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
