"""A training job: recipe, base model, dataset, plan and run; and the checks before it begins."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.config.loader import differences
from ftcli.config.recipe import Full, PrefixTuning, Recipe
from ftcli.data.dataset import Dataset
from ftcli.errors import FtcliError, MachineError, UsageError
from ftcli.hub import require_reachable
from ftcli.memory.architecture import Architecture
from ftcli.memory.hardware import Hardware
from ftcli.memory.known_models import model_source
from ftcli.models.architectures.find import find_architecture
from ftcli.runs.checkpoints import verify
from ftcli.runs.folder import RunFolder
from ftcli.training.opening import OpenRun
from ftcli.training.plan.decide import require_machine, require_possible
from ftcli.training.plan.plan import Plan

if TYPE_CHECKING:
    from ftcli.data.tokenizing.rendering import Renderer
    from ftcli.training.trainer import FtcliTrainer


@dataclass(frozen=True)
class BaseModel:
    """The model that a run starts from, its tokenizer, and the machine that trains it."""

    source: str
    """Folder or hub id."""
    revision: str | None
    architecture: Architecture
    renderer: Renderer
    hardware: Hardware
    note: str | None = None
    """What loading does to its files, for the plan."""


@dataclass(frozen=True)
class TrainJob:
    """Everything a training needs, decided."""

    recipe: Recipe
    """With absolute paths."""
    recipe_file: Path
    """The user's file."""
    model: BaseModel
    dataset: Dataset
    plan: Plan
    run: RunFolder
    init_from: OpenRun | None = None
    """The run whose trained weights this one starts from."""

    @property
    def init_adapter(self) -> Path | None:
        """Folder of the adapter weights to start from.

        A prefix with `projection` is trained further by its MLP, which only checkpoints have.
        """
        source = self.init_from
        if source is None or not source.run.adapter.is_dir():
            return None
        method = source.recipe.method
        if isinstance(method, PrefixTuning) and method.projection:
            manifest, steps = source.run.read_manifest(), source.run.steps_saved()
            if steps:
                step = manifest["result"]["best_step"] or steps[-1]
                return verify(source.run, step, manifest["run_id"])
        return source.run.adapter


@dataclass(frozen=True)
class TrainResult:
    """Result of a training; losses are per label token."""

    trainer: FtcliTrainer
    """With the trained model, still in memory."""
    steps: int
    train_loss: float | None
    first_eval_loss: float | None
    eval_loss: float | None
    best_step: int | None
    tokens_per_second: float
    training_seconds: float
    trainable_parameters: int
    peak_memory_bytes: int


def starting_from(recipe: Recipe, init_from: OpenRun | None) -> Recipe:
    """The recipe, with the model of a full run as base if it starts from one.

    Raises UsageError (`from_run`) if the other run's adapter does not fit the recipe.
    """
    if init_from is None:
        return recipe
    if isinstance(init_from.recipe.method, Full):
        base = {"id": str(init_from.run.model), "revision": None}
        return recipe.model_copy(update={"model": recipe.model.model_copy(update=base)})
    _require_same_adapter(recipe, init_from)
    return recipe


def _require_same_adapter(new: Recipe, init_from: OpenRun) -> None:
    old = init_from.recipe
    if isinstance(new.method, Full):
        raise UsageError(
            "from_run",
            f"--from {init_from.run.path}: this run has an adapter, and method.mode is full; "
            "merge it first and set model.id to the merged folder",
        )
    free = {"method.dropout", "method.init_text"}  # neither changes the adapter's weights
    changed = [
        difference
        for difference in differences(old, new, free)
        if difference.startswith(("method.", "model.id:"))
    ]
    if changed:
        raise UsageError(
            "from_run",
            f"--from {init_from.run.path}: its adapter does not fit the recipe: "
            f"{'; '.join(changed)}",
        )


def open_model(recipe: Recipe) -> BaseModel:
    """Find model, tokenizer and machine; no weights are loaded.

    Raises ModelError, MachineError and UsageError for all that can be known before a row is read.
    """
    model = recipe.model
    source = model_source(model.id)
    architecture = find_architecture(model.id, model.revision)
    require_possible(recipe, architecture)
    require_reachable(source, model.revision)

    from ftcli.kernels.cpu import tune_cpu
    from ftcli.models.architectures.model_class import open_config
    from ftcli.models.device import hardware_for
    from ftcli.models.files.quantized_files import dequantised_note
    from ftcli.models.load import load_renderer

    hardware = hardware_for(recipe)
    require_machine(recipe, architecture, hardware)
    tune_cpu(hardware)
    renderer = load_renderer(recipe, source)
    note = dequantised_note(open_config(source, model.revision), architecture.parameters)
    return BaseModel(source, model.revision, architecture, renderer, hardware, note)


def require_trackers(recipe: Recipe) -> None:
    """Raise MachineError (`tracker`) for packages that are not installed."""
    missing = [n for n in dict.fromkeys(recipe.training.report_to) if not _is_installed(n)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MachineError(
            "tracker",
            f"{' and '.join(missing)} {verb} not installed: pip install {' '.join(missing)}",
        )


def _is_installed(package: str) -> bool:
    """A folder of that name, which some trackers make, is not a package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def require_separate_output(
    run: RunFolder, recipe: Recipe, init_from: OpenRun | None = None
) -> None:
    """Raise FtcliError (`output_base`) if a run would write into what it starts from.

    Call it before anything is written, including the lock. Raises ModelError if a base is missing.
    """
    bases = [Path(model_source(recipe.model.id))]
    if init_from is not None:
        bases.append(init_from.run.trained())
    folder = run.path.resolve()
    for base in (path.resolve() for path in bases if path.is_dir()):
        if folder == base:
            how = "is the base itself"
        elif folder.is_relative_to(base):
            how = f"is inside the base ({base})"
        elif base.is_relative_to(folder):
            how = f"contains the base ({base})"
        else:
            continue
        raise FtcliError(
            "output_base",
            f"{run.path} {how}, which a run never writes to; set output to another folder",
        )


@contextmanager
def temporary_run(output: Path, prefix: str) -> Iterator[RunFolder]:
    """A run folder next to `output`, on the same disk, that is deleted when the block ends."""
    folder = output.with_name(f"{prefix}{output.name}")
    new = [parent for parent in folder.parents if not parent.exists()]
    try:
        with RunFolder(folder).lock():
            _clear(folder)  # files of a killed process
            try:
                yield RunFolder(folder)
            finally:
                _clear(folder)
    finally:
        for parent in new:  # the nearest first
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _clear(folder: Path) -> None:
    """Delete everything but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(".lock"):
            path.unlink()
