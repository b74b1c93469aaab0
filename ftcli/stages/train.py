"""`ftcli train`: prepare if needed, plan, check, train, save."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli import __version__
from ftcli.artifacts import (
    RunFolder,
    folder_bytes,
    free_folder,
    runs_at,
    sha256_file,
    whole_folder,
    write_json,
    write_text,
)
from ftcli.console import Reporter
from ftcli.errors import ModelError, Stopped, UsageError
from ftcli.hardware import Hardware
from ftcli.hub import require_reachable
from ftcli.loading import Loaded, differences, dump_recipe, load_recipe, resolved
from ftcli.plan import Plan, make_plan, profile_of
from ftcli.prepared import Prepared
from ftcli.recipe import Full
from ftcli.shapes import Shape, find_shape, model_source
from ftcli.stages.card import model_card
from ftcli.stages.opening import OpenRun, open_run

if TYPE_CHECKING:
    from ftcli.engine.rendering import Renderer

# Keys that may change between the parts of one training: they shape no token and no weight.
FREE_KEYS = {
    "name",
    "output",
    "generation",
    "eval",
    "training.report_to",
    "training.keep_checkpoints",
    "training.eval_steps",
    "training.save_steps",
    "training.early_stopping_patience",
}
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")


@dataclass(frozen=True)
class TrainResult:
    """What `ftcli train` ends with; `already` when there was nothing left to do."""

    run: RunFolder
    report: dict[str, Any]
    already: bool = False
    changed: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {"run_dir": str(self.run.path), **self.report}


@dataclass(frozen=True)
class DryRun:
    """A resolved plan that is not carried out."""

    loaded: Loaded
    run: RunFolder
    plan: Plan
    prepared: Prepared
    hardware: Hardware

    def as_json(self) -> dict[str, Any]:
        return {"run_dir": str(self.run.path), "plan": self.plan.as_json()}


@dataclass(frozen=True)
class _Job:
    """Everything a training needs, decided."""

    loaded: Loaded
    source: str
    run: RunFolder
    shape: Shape
    renderer: Renderer
    prepared: Prepared
    hardware: Hardware
    plan: Plan
    parent: OpenRun | None


def train_recipe(
    recipe: Path,
    overrides: Sequence[str],
    *,
    fresh: bool,
    parent: Path | None,
    reporter: Reporter,
) -> TrainResult:
    """Train, resume, or say that nothing is left to do. Raises FtcliError; Stopped on a signal."""
    loaded, opened = _load(recipe, overrides, parent)
    run = _choose_run(loaded, fresh=fresh or opened is not None)
    if run.state == "finished":
        return _finished(run, loaded)
    with run.lock(), loaded.blame():
        job = _decide(loaded, run, opened, reporter)
        return _train(job, reporter)


def plan_recipe(
    recipe: Path, overrides: Sequence[str], *, parent: Path | None, reporter: Reporter
) -> DryRun:
    """Prepare and plan, and go no further."""
    loaded, opened = _load(recipe, overrides, parent)
    run = free_folder(loaded.output)
    with run.lock(), loaded.blame():
        job = _decide(loaded, run, opened, reporter)
    return DryRun(loaded, run, job.plan, job.prepared, job.hardware)


def _load(
    recipe: Path, overrides: Sequence[str], parent: Path | None
) -> tuple[Loaded, OpenRun | None]:
    loaded = load_recipe(recipe, overrides)
    return loaded, open_run(parent) if parent is not None else None


def _choose_run(loaded: Loaded, *, fresh: bool) -> RunFolder:
    """The newest unfinished run, else the newest finished one, else a new folder."""
    runs = [] if fresh else runs_at(loaded.output)
    unfinished = [run for run in runs if run.state != "finished"]
    return (unfinished or runs or [free_folder(loaded.output)])[-1]


def _finished(run: RunFolder, loaded: Loaded) -> TrainResult:
    earlier = load_recipe(run.recipe).recipe
    changed = differences(earlier, resolved(loaded), FREE_KEYS)
    return TrainResult(run, run.read_manifest()["result"], already=True, changed=tuple(changed))


def _decide(loaded: Loaded, run: RunFolder, parent: OpenRun | None, reporter: Reporter) -> _Job:
    model = loaded.recipe.model
    if parent is not None and isinstance(parent.loaded.recipe.method, Full):
        source = str(parent.run.model)
        loaded = _with_model(loaded, source)
    else:
        source = model_source(model.id, loaded.base)
        _require_same_adapter(loaded, parent)
    shape = find_shape(loaded.recipe.model.id, loaded.base, model.revision)
    require_reachable(source, model.revision)

    from ftcli.engine.device import find_hardware, use_whole_machine
    from ftcli.engine.encode import prepare
    from ftcli.engine.model import load_renderer

    hardware = find_hardware()
    use_whole_machine(hardware)
    renderer = load_renderer(loaded, source)
    prepared = prepare(loaded, renderer, run.data, reporter)
    plan = make_plan(loaded.recipe, shape, profile_of(prepared), hardware)
    _require_unchanged(run, loaded, prepared)
    return _Job(loaded, source, run, shape, renderer, prepared, hardware, plan, parent)


def _with_model(loaded: Loaded, folder: str) -> Loaded:
    model = loaded.recipe.model.model_copy(update={"id": folder, "revision": None})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"model": model}))


def _require_same_adapter(loaded: Loaded, parent: OpenRun | None) -> None:
    """An adapter can go on only as the same kind of adapter on the same base."""
    if parent is None:
        return
    old, new = parent.loaded.recipe, resolved(loaded)
    if isinstance(new.method, Full):
        raise UsageError(
            "from_run",
            f"--from {parent.run.path}: it holds an adapter, and method.mode is full; "
            "merge it first and name the merged folder in model.id",
        )
    keys = {"method.mode", "method.rank", "method.alpha", "method.target_modules", "model.id"}
    changed = [d for d in differences(old, new, set()) if d.split(":")[0] in keys]
    if changed:
        raise UsageError(
            "from_run",
            f"--from {parent.run.path}: its adapter does not suit the recipe: {'; '.join(changed)}",
        )


def _require_unchanged(run: RunFolder, loaded: Loaded, prepared: Prepared) -> None:
    """A stopped run goes on only with what it began with."""
    manifest = run.read_manifest()
    if not manifest:
        return
    changed = differences(load_recipe(run.recipe).recipe, resolved(loaded), FREE_KEYS)
    if manifest["data"] != prepared.fingerprint and not changed:
        changed = [f"data: {manifest['data']} → {prepared.fingerprint} (rows or tokenizer)"]
    if changed:
        error = UsageError(
            "recipe_changed",
            f"{run.path} was begun with another recipe:\n  "
            + "\n  ".join(changed)
            + "\nchange it back to resume, or start over beside it with --fresh",
        )
        error.exit_code = 1
        raise error


def _train(job: _Job, reporter: Reporter) -> TrainResult:
    started = time.monotonic()
    run, plan = job.run, job.plan
    reporter.note(f"plan   {plan.headline()}")
    if (saved := run.steps_saved()) and run.read_manifest():
        reporter.note(f"resume from step {saved[-1]}")
    _begin(job)

    from ftcli.engine.device import peak_memory_bytes
    from ftcli.engine.trainer import Setup, build_trainer, save_trained, train

    parent = job.parent.run.adapter if job.parent is not None else None
    setup = Setup(
        job.loaded.recipe,
        job.source,
        job.hardware,
        plan,
        job.prepared,
        job.renderer,
        parent if parent is not None and parent.is_dir() else None,
    )
    trainer = build_trainer(setup, run)
    outcome = train(trainer, job.loaded.recipe.training, plan, reporter)
    if outcome.signal_number is not None:
        run.update_manifest(state="stopped")
        raise Stopped(
            f"stopped at step {outcome.steps} of {plan.steps.value} "
            f"(checkpoint {run.checkpoint(outcome.steps)}). "
            f"Go on: ftcli train {job.loaded.shown_path()}",
            outcome.signal_number,
        )
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    target = run.model if isinstance(job.loaded.recipe.method, Full) else run.adapter
    with whole_folder(target) as temporary:
        save_trained(trainer, setup, temporary)
    _drop_if_empty(run.path / "logs")
    report = {
        "state": "finished",
        "steps": outcome.steps,
        "train_loss": outcome.train_loss,
        "eval_loss": outcome.eval_loss,
        "first_eval_loss": outcome.first_eval_loss,
        "best_step": outcome.best_step,
        "tokens_per_second": outcome.tokens_per_second,
        "trained_parameters": trained,
        "total_parameters": job.shape.parameters,
        "peak_memory_bytes": peak_memory_bytes(job.hardware),
        "saved_bytes": folder_bytes(run.trained()),
        "training_seconds": outcome.seconds,
        "seconds": time.monotonic() - started,
    }
    _end(job, report)
    return TrainResult(run, report)


def _begin(job: _Job) -> None:
    """Write what the run is before its first step, so that it can be resumed."""
    run = job.run
    if run.read_manifest():
        run.update_manifest(state="training")
        return
    write_text(run.recipe, dump_recipe(resolved(job.loaded)))
    write_json(run.plan, job.plan.as_json())
    run.update_manifest(
        state="training",
        run_id=uuid.uuid4().hex,
        recipe=str(job.loaded.path.absolute()),
        parent=str(job.parent.run.path) if job.parent else None,
        data=job.prepared.fingerprint,
        seed=job.loaded.recipe.training.seed,
        hardware={"name": job.hardware.name, "memory_bytes": job.hardware.memory_bytes},
        versions={
            "ftcli": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def _drop_if_empty(folder: Path) -> None:
    """Trainer makes a folder for trackers, whether there are any or not."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _end(job: _Job, report: dict[str, Any]) -> None:
    run = job.run
    weights = sorted(run.trained().glob("*.safetensors"))
    if not weights:
        raise ModelError("save", f"{run.trained()} holds no weights after saving")
    write_text(run.card, model_card(job.loaded, job.prepared, job.plan, report))
    run.update_manifest(
        state="finished",
        result=report,
        weights={file.name: sha256_file(file) for file in weights},
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
