"""`ftcli train`: prepare if needed, plan, check, train, save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.config.loader import Loaded, load_recipe
from ftcli.config.recipe import Full, Recipe
from ftcli.console import Reporter
from ftcli.data.prepared import Prepared
from ftcli.evaluation.advice.advising import give_advice
from ftcli.evaluation.advice.price import Price, price_of
from ftcli.evaluation.advice.probe import SHOTS
from ftcli.evaluation.advice.statistics import PreparedRows
from ftcli.memory.hardware import Hardware
from ftcli.models.sibling_files import tokenizer_bytes
from ftcli.report.write import report_or_say
from ftcli.runs.atomic import whole_folder
from ftcli.runs.folder import RunFolder, find_run, free_folder, runs_at
from ftcli.runs.signals import StopSignals
from ftcli.training.job import Job
from ftcli.training.opening import open_run
from ftcli.training.own_place import own_folder, require_own_place
from ftcli.training.plan.arithmetic import lost_pulls
from ftcli.training.plan.plan import Plan, make_plan, profile_of
from ftcli.training.prepare import data_folder, rejected
from ftcli.training.resuming import Command, drop_leftovers, in_words, require_room, resume_point
from ftcli.training.run_record import begin, end, record_memory, report_of
from ftcli.training.scene import Scene, look, other_machine, require_as_finished, require_unchanged

if TYPE_CHECKING:
    from ftcli.training.building import Setup
    from ftcli.training.loop import Outcome
    from ftcli.training.measured import StepMemory
    from ftcli.training.trainer import FtcliTrainer

# Begins the name of the folder in which a fresh run is planned.
TEMPORARY = ".tmp-dry-run-"
# Fewer rows at once were tried already.
NO_MEMORY = (
    "one row is too much; stop what else runs on it and go on, or start over beside it (--fresh) "
    "with training.gradient_checkpointing: true, a lower data.max_length, or method.mode: qlora"
)


@dataclass(frozen=True)
class TrainResult:
    """What `ftcli train` ends with."""

    run: RunFolder
    report: dict[str, Any]
    again: str | None = None
    """Where nothing was left to do: the command that trains the same in a new folder."""

    def as_json(self) -> dict[str, Any]:
        return {"run_dir": str(self.run.path), "trained": self.again is None, **self.report}


@dataclass(frozen=True)
class DryRun:
    """A resolved plan that is not carried out."""

    loaded: Loaded
    run: RunFolder
    plan: Plan
    prepared: Prepared
    hardware: Hardware
    their_names: Mapping[str, str]
    """Our name of a decision → where it goes in the libraries below."""
    price: Price | None = None

    def as_json(self) -> dict[str, Any]:
        names = dict(self.their_names)
        found = {"run_dir": str(self.run.path), "plan": self.plan.as_json(), "names": names}
        return found | ({"price": self.price.as_json()} if self.price is not None else {})


def train_recipe(
    recipe: Path,
    overrides: Sequence[str],
    *,
    fresh: bool,
    parent: Path | None,
    reporter: Reporter,
) -> TrainResult:
    """Train, resume, or say that nothing is left to do. Raises FtcliError; Stopped on a signal.

    `recipe` may be the folder of a run: that run goes on, or its recipe is trained anew.
    """
    loaded, named = load_recipe(recipe, overrides), find_run(recipe)
    run = _choose_run(loaded, named, fresh=fresh or parent is not None)
    given = Command(recipe, overrides, fresh, parent)
    if run.state == "finished":
        require_as_finished(run, loaded, given.beside(run))
        return TrainResult(run, run.read_manifest()["result"], again=given.beside(run))
    begun_from: str | None = (named or run).read_manifest().get("parent")
    ancestor = parent or (Path(begun_from) if begun_from is not None else None)
    opened = open_run(ancestor) if ancestor is not None else None
    with loaded.blame():
        require_own_place(run, loaded, opened)
    stops = StopSignals(reporter.note)
    with run.lock(), loaded.blame(), stops.caught(), in_words(given, run, stops):
        drop_leftovers(run)
        scene = look(loaded, opened)
        for allowed in require_unchanged(run, scene, given.beside(run)):
            reporter.note(f"note: changed since the run began, and allowed: {allowed}")
        if moved := other_machine(run, scene):
            reporter.warn(moved)
        _require_weights(scene)
        job = _decide(scene, run, reporter)
        rows = PreparedRows(run.data, job.prepared)
        give_advice(scene.loaded, scene.renderer, rows, reporter)
        result = _train(job, stops, reporter)

    from ftcli.models.device import free_memory

    free_memory()  # the model and the optimizer's states have no name any more
    return result


def _require_weights(scene: Scene) -> None:
    """Raise ModelError where weights are missing: transformers would begin with random ones."""
    from ftcli.models.base_weights import require_weights

    require_weights(scene.source, scene.loaded.recipe.model.revision, scene.shape)


def plan_recipe(
    recipe: Path,
    overrides: Sequence[str],
    *,
    parent: Path | None,
    reporter: Reporter,
    fresh: bool = False,
    price_per_hour: float | None = None,
) -> DryRun:
    """Prepare and plan, and go no further; with a price, time a few steps and calls.

    A fresh run takes over nothing of an earlier one, and nothing of its plan stays on the disk.
    """
    loaded, named = load_recipe(recipe, overrides), find_run(recipe)
    with loaded.blame():
        scene = look(loaded, open_run(parent) if parent is not None else None)
        new = fresh or parent is not None
        output, mark = loaded.output, scene.fingerprint
        run = free_folder(output) if new else data_folder(output, mark, named)
        require_own_place(run, loaded, scene.parent)
        with _planned_in(run, passing=new) as folder:
            job = _decide(scene, folder, reporter, stays=not new)
            price = None
            if price_per_hour is not None:
                price = price_of(job, price_per_hour, SHOTS, reporter)

    from ftcli.models import methods
    from ftcli.training import trainer

    names = {**methods.THEIR_NAMES, **trainer.THEIR_NAMES}
    return DryRun(loaded, run, job.plan, job.prepared, scene.hardware, names, price)


@contextmanager
def _planned_in(run: RunFolder, *, passing: bool) -> Iterator[RunFolder]:
    """Where the rows of a plan are prepared: in the run, or in a folder that does not stay."""
    if not passing:
        with run.lock():
            yield run
        return
    with own_folder(run.path, TEMPORARY) as folder:
        yield RunFolder(folder)


def _choose_run(loaded: Loaded, named: RunFolder | None, *, fresh: bool) -> RunFolder:
    """The run that was named, or the newest of the recipe, or a new folder."""
    if fresh:
        return free_folder(loaded.output)
    if named is not None:
        return named
    runs = runs_at(loaded.output)
    return runs[-1] if runs else free_folder(loaded.output)


def _decide(scene: Scene, run: RunFolder, reporter: Reporter, *, stays: bool = True) -> Job:
    from ftcli.data.tokenizing.encode import prepare
    from ftcli.inference.endings import require_ends

    prepared = prepare(scene.loaded, scene.renderer, run.data, reporter)
    require_ends(run.data, prepared, scene.renderer)
    if prepared.problems:
        used = f"{prepared.rows_rejected} of {prepared.rows_read} rows are not used"
        reporter.warn(f"{used}: {rejected(prepared, run.data if stays else None)}")
    recipe = _as_begun(scene.loaded.recipe, run)
    plan = make_plan(recipe, scene.shape, profile_of(prepared), scene.hardware)
    return Job(scene, run, prepared, plan)


def _as_begun(recipe: Recipe, run: RunFolder) -> Recipe:
    """What was planned when the run began stays, whatever memory is free today.

    Rows at once may be set anew: they shape no gradient. Raises FtcliError where plan.json is gone.
    """
    if not run.read_manifest():
        return recipe
    kept: dict[str, object] = {
        "precision": run.planned("precision"),
        "optimizer": run.planned("optimizer"),
        "gradient_checkpointing": run.planned("gradient_checkpointing") == "True",
    }
    packed = int(run.planned("packing", "0"))
    if isinstance(recipe.training.packing, bool | str):
        kept["packing"] = packed or False
    if recipe.training.micro_batch_size == "auto":
        kept["micro_batch_size"] = int(run.planned("micro_batch"))
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=kept)})


def _train(job: Job, stops: StopSignals, reporter: Reporter) -> TrainResult:
    started = time.monotonic()
    run, plan, recipe = job.run, job.plan, job.recipe
    _announce(job, reporter)
    checkpoint = resume_point(run, reporter)
    scene = job.scene
    beside = tokenizer_bytes(scene.source, recipe.model.revision)
    require_room(run, plan, recipe.training.keep_checkpoints, beside)

    from ftcli.models.device import memory_in_words
    from ftcli.training.building import Setup
    from ftcli.training.loop import Start, train
    from ftcli.training.measured import MemoryMeter, StepMemory

    setup = Setup(
        recipe,
        scene.source,
        scene.hardware,
        plan,
        job.prepared,
        scene.renderer,
        job.parent_adapter,
    )
    memory = StepMemory(MemoryMeter(scene.hardware))
    with memory_in_words(NO_MEMORY):
        trainer = _build(job, setup)
        start = Start(checkpoint, stops)
        outcome = train(trainer, recipe.training, plan, start, memory, reporter)
    record_memory(job, memory)
    if outcome.signal_number is not None:
        raise KeyboardInterrupt
    report = _save(job, setup, trainer, outcome, memory, reporter)
    end(job, report | {"seconds": time.monotonic() - started})
    report_or_say(run, reporter)
    return TrainResult(run, run.read_manifest()["result"])


def _save(
    job: Job,
    setup: Setup,
    trainer: FtcliTrainer,
    outcome: Outcome,
    memory: StepMemory,
    reporter: Reporter,
) -> dict[str, Any]:
    """Save what was trained, and say what came of it."""
    from ftcli.inference.endings import measure_stop_rate
    from ftcli.training.building import save_trained

    run = job.run
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    target = run.model if isinstance(job.recipe.method, Full) else run.adapter
    with whole_folder(target) as temporary:
        save_trained(trainer, setup, temporary)
    _drop_if_empty(run.path / "logs")
    figures = {"trained_parameters": trained, "peak_memory_bytes": memory.process_peak_bytes()}
    return report_of(job, outcome, figures) | asdict(measure_stop_rate(trainer, setup, reporter))


def _build(job: Job, setup: Setup) -> FtcliTrainer:
    """The trainer, on the base that this run and its parent began with; a new run begins here."""
    from ftcli.models.prompt_manifest import base_at, proven_base, settle_contract
    from ftcli.training.building import build_trainer

    run, scene = job.run, job.scene
    begun, revision = bool(run.read_manifest()), scene.loaded.recipe.model.revision
    bound = [run] if begun and run.contract.is_file() else []
    if scene.parent is not None and job.parent_adapter is not None:
        bound.append(scene.parent.run)
    with proven_base(bound, scene.source, revision):
        begin(job)
        trainer = build_trainer(setup, run)
    base = base_at(scene.source, revision)
    settle_contract(run, scene.renderer, job.prepared, base, begun=begun)
    return trainer


def _announce(job: Job, reporter: Reporter) -> None:
    reporter.note(f"plan   {job.plan.headline()}")
    if job.plan.precision.value == "pure-bf16":
        reporter.warn(
            "pure-bf16 keeps no fp32 master weights: at small learning rates most updates round to "
            "nothing; training.precision: bf16 keeps them"
        )
        _announce_lost_pulls(job, reporter)


def _announce_lost_pulls(job: Job, reporter: Reporter) -> None:
    if job.plan.hold is not None:
        pull = job.plan.learning_rate.value * job.plan.hold.value
        reporter.warn(
            f"training.hold: {lost_pulls(pull)}, so that it holds next to nothing; take "
            "training.precision: bf16, which counts every pull"
        )


def _drop_if_empty(folder: Path) -> None:
    """Trainer makes a folder for trackers, whether there are any or not."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
