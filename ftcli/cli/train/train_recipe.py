"""Train a recipe: prepare the data, plan, advise, train, sample answers, write the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.config.loader import RecipeFile, load_recipe
from ftcli.console import Reporter
from ftcli.errors import FtcliError
from ftcli.runs.folder import RunFolder, find_run, free_folder, runs_at
from ftcli.runs.signals import StopSignals

if TYPE_CHECKING:
    from ftcli.config.recipe import Recipe
    from ftcli.data.dataset import Dataset
    from ftcli.evaluation.advice.cost import Cost
    from ftcli.memory.speed import RunTime
    from ftcli.training.job import BaseModel, TrainJob
    from ftcli.training.opening import OpenRun
    from ftcli.training.plan.plan import Plan

# Prefix of the folder in which a fresh run is planned.
TEMPORARY = ".tmp-dry-run-"


@dataclass(frozen=True)
class Trained:
    """The run of `ftcli train`, with its figures."""

    run: RunFolder
    report: dict[str, Any]
    again: str | None = None
    """If the run was already finished: the command that trains it again in a new folder."""

    def as_json(self) -> dict[str, Any]:
        return {"run_dir": str(self.run.path), "trained": self.again is None, **self.report}


@dataclass(frozen=True)
class DryRun:
    """The plan of a training that was not started."""

    recipe: Recipe
    run: RunFolder
    plan: Plan
    library_names: Mapping[str, str]
    """Our name of a decision → its name in the libraries."""
    seconds: float | None = None
    """Of all steps; None if no run of the recipe has measured it."""
    cost: Cost | None = None
    time: RunTime | None = None
    """Estimated for a GPU, if no run has measured it."""

    def as_json(self) -> dict[str, Any]:
        names = dict(self.library_names)
        plan = self.plan.model_dump(mode="json")
        found = {"run_dir": str(self.run.path), "plan": plan, "names": names}
        if self.time is not None:
            found["time"] = self.time.as_json()
        return found | ({"cost": self.cost.as_json()} if self.cost is not None else {})


def train_recipe(
    recipe: Path,
    overrides: Sequence[str],
    *,
    fresh: bool,
    init_from: Path | None,
    reporter: Reporter,
) -> Trained:
    """Train, resume, or return the finished run. Raises FtcliError; Stopped on a signal.

    `recipe` may be a run folder: that run resumes, or with `fresh` its recipe is trained again.
    """
    from ftcli.training.job import require_separate_output
    from ftcli.training.opening import open_run
    from ftcli.training.resuming import (
        TrainCommands,
        delete_leftovers,
        explain_early_end,
        require_as_finished,
        require_unchanged,
        train_command,
        warn_of_other_machine,
    )

    loaded, named = load_recipe(recipe, overrides), find_run(recipe)
    run = _choose_run(loaded, named, fresh=fresh or init_from is not None)
    begun_from: str | None = (named or run).read_manifest().get("parent")
    source = init_from or (Path(begun_from) if begun_from is not None else None)
    again = train_command(recipe, overrides, source, fresh=True)
    if run.state == "finished":
        require_as_finished(run, loaded.recipe, again)
        return Trained(run, run.read_manifest()["result"], again)
    opened = open_run(source) if source is not None else None
    with loaded.locate():
        require_separate_output(run, loaded.recipe, opened)
    stops = StopSignals(reporter.note)
    commands = TrainCommands(
        resume=train_command(run.path if named is not None else recipe, overrides),
        begin=train_command(recipe, overrides, init_from, fresh=fresh),
    )
    with (
        run.lock(),
        loaded.locate(),
        stops.caught(),
        explain_early_end(run, stops, commands),
    ):
        delete_leftovers(run)
        loaded, model = open_recipe(loaded, opened)
        for change in require_unchanged(run, loaded, model.renderer, again):
            reporter.note(f"note: changed since the run began, and allowed: {change}")
        warn_of_other_machine(run, model.hardware, reporter)
        require_weights(model)
        dataset = prepare_rows(loaded, model, run, reporter)
        job = plan_job(loaded, model, dataset, run, opened)
        _train_and_report(job, stops, reporter)

    from ftcli.models.device import free_memory

    free_memory()  # of model and optimizer states, which nothing refers to now
    return Trained(run, run.read_manifest()["result"])


def plan_recipe(
    recipe: Path,
    overrides: Sequence[str],
    *,
    init_from: Path | None,
    reporter: Reporter,
    fresh: bool = False,
    cost_per_hour: float | None = None,
) -> DryRun:
    """Prepare and plan without training; with a cost, time a few steps and calls.

    The plan of a fresh run uses nothing of an earlier run, and leaves nothing on the disk.
    """
    from ftcli.cli.prepare import data_folder
    from ftcli.evaluation.advice.cost import measure_cost
    from ftcli.evaluation.eval_rows import SHOTS
    from ftcli.training.job import require_separate_output
    from ftcli.training.opening import open_run
    from ftcli.training.run_record import estimated_time, known_seconds

    loaded, named = load_recipe(recipe, overrides), find_run(recipe)
    with loaded.locate():
        opened = open_run(init_from) if init_from is not None else None
        new = fresh or opened is not None
        loaded, model = open_recipe(loaded, opened)
        run = free_folder(loaded.output) if new else data_folder(loaded, model.renderer, named)
        require_separate_output(run, loaded.recipe, opened)
        with _planned_in(run, temporary=new) as folder:
            dataset = prepare_rows(loaded, model, folder, reporter, stays=not new)
            job = plan_job(loaded, model, dataset, folder, opened)
            cost = None
            if cost_per_hour is not None:
                cost = measure_cost(job, loaded.recipe, cost_per_hour, SHOTS, reporter)

    from ftcli.models import methods
    from ftcli.training import building

    names = {**methods.LIBRARY_NAMES, **building.LIBRARY_NAMES}
    seconds = known_seconds(job)
    time = estimated_time(job) if seconds is None else None
    return DryRun(loaded.recipe, run, job.plan, names, seconds, cost, time)


def _choose_run(loaded: RecipeFile, named: RunFolder | None, *, fresh: bool) -> RunFolder:
    """The named run, else the recipe's newest run, else a new folder."""
    if fresh:
        return free_folder(loaded.output)
    if named is not None:
        return named
    runs = runs_at(loaded.output)
    return runs[-1] if runs else free_folder(loaded.output)


def open_recipe(loaded: RecipeFile, init_from: OpenRun | None) -> tuple[RecipeFile, BaseModel]:
    """The recipe with the base that it starts from, and that base without weights.

    Raises FtcliError for every error that can be found before a row is read.
    """
    from ftcli.cli.prepare import require_rows
    from ftcli.evaluation.scoring import require_scored_files
    from ftcli.training.job import open_model, require_trackers, starting_from
    from ftcli.training.plan.learning_rate import require_l2_sp

    require_trackers(loaded.recipe)
    require_scored_files(loaded)
    require_l2_sp(loaded.recipe)
    require_rows(loaded.recipe)
    recipe = starting_from(loaded.recipe, init_from)
    return replace(loaded, recipe=recipe), open_model(recipe)


def require_weights(model: BaseModel) -> str:
    """The base's weight files, in words; raises ModelError for missing weights.

    transformers would initialise them at random.
    """
    from ftcli.models.files import base_files

    return base_files.require_weights(model.source, model.revision, model.architecture)


@contextmanager
def _planned_in(run: RunFolder, *, temporary: bool) -> Iterator[RunFolder]:
    """Where the rows of a plan are prepared: the run, or a temporary folder."""
    from ftcli.training.job import temporary_run

    if temporary:
        with temporary_run(run.path, TEMPORARY) as folder:
            yield folder
        return
    with run.lock():
        yield run


def prepare_rows(
    loaded: RecipeFile, model: BaseModel, run: RunFolder, reporter: Reporter, *, stays: bool = True
) -> Dataset:
    """Prepare the recipe's rows in the run's data folder; warns of rejected rows.

    Rejected rows are listed in the folder if it `stays`. Raises DataError.
    """
    from ftcli.cli.prepare import rejected_rows
    from ftcli.data.dataset import load_dataset
    from ftcli.data.tokenizing.tokenize import prepare
    from ftcli.inference.endings import require_ends

    try:
        before = load_dataset(run.data)
    except FtcliError:  # `prepare` reports it
        before = None
    if model.note is not None:
        reporter.note(f"note: {model.note}")
    dataset = prepare(loaded.recipe, model.renderer, run.data, reporter)
    require_ends(run.data, dataset, model.renderer)
    # An earlier command has printed the warning for the same rows.
    changed = before is None or before.fingerprint != dataset.fingerprint
    if dataset.rejected and changed:
        used = f"{dataset.rows_rejected} of {dataset.rows_read} rows are not used"
        reporter.warn(f"{used}: {rejected_rows(dataset, run.data if stays else None)}")
    return dataset


def plan_job(
    loaded: RecipeFile,
    model: BaseModel,
    dataset: Dataset,
    run: RunFolder,
    init_from: OpenRun | None = None,
) -> TrainJob:
    """Decide every `auto` of the recipe; raises MachineError and UsageError."""
    from ftcli.training.job import TrainJob
    from ftcli.training.plan.decide import make_plan
    from ftcli.training.plan.plan import RowStatistics

    recipe = _with_first_plan(loaded.recipe, run)
    plan = make_plan(recipe, model.architecture, RowStatistics.of(dataset), model.hardware)
    return TrainJob(loaded.recipe, loaded.path, model, dataset, plan, run, init_from)


def _with_first_plan(recipe: Recipe, run: RunFolder) -> Recipe:
    """The recipe with the run's first plan, whatever memory is free now.

    The recipe may set another micro-batch size: it does not change gradients. Raises FtcliError if
    plan.json is missing.
    """
    if not run.read_manifest():
        return recipe
    from ftcli.training.plan.plan import Plan

    begun = Plan.read(run.plan).training
    kept: dict[str, object] = {
        "precision": begun.precision,
        "optimizer": begun.optimizer,
        "gradient_checkpointing": begun.gradient_checkpointing,
        "embedding_offload": begun.embedding_offload,
        "activation_offload": begun.activation_offload,
        "tiled_mlp": begun.tiled_mlp,
    }
    if isinstance(recipe.training.packing, bool | str):
        kept["packing"] = begun.packing
    if recipe.training.micro_batch_size == "auto":
        kept["micro_batch_size"] = begun.micro_batch_size
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=kept)})


def _train_and_report(job: TrainJob, stops: StopSignals, reporter: Reporter) -> None:
    from ftcli.evaluation.advice.advice import give_advice
    from ftcli.evaluation.advice.row_statistics import PreparedRows
    from ftcli.inference.endings import measure_stop_rate
    from ftcli.report.page import report_or_warn
    from ftcli.training.run_record import finish_run
    from ftcli.training.train import train as train_job

    rows = PreparedRows(job.run.data, job.dataset)
    give_advice(job.recipe, job.model.renderer, rows, reporter)
    started = time.monotonic()
    trained = train_job(job, stops, reporter)
    stop_rate = measure_stop_rate(trained.trainer, job, reporter)
    finish_run(job, trained, asdict(stop_rate), time.monotonic() - started)
    report_or_warn(job.run, reporter)
