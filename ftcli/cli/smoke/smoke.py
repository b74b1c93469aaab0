"""`ftcli train --rehearse`: the whole way of a recipe in about a minute, on a tiny twin.

Recipe, data, tokenizer, template, machine and disk are the real ones; the model is a random one of
the same type, which takes a few steps on the longest rows. Of it all only the prepared data stay.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcli.cli.prepare import data_folder
from ftcli.cli.smoke.stages import Real, rehearse_twin
from ftcli.cli.smoke.walk import TEMPORARY, Leg, Walk, stoppable
from ftcli.cli.train import open_recipe
from ftcli.config.loader import Loaded, load_recipe
from ftcli.config.recipe import LoraKeys
from ftcli.console import Reporter, megabytes
from ftcli.data.prepared import SPLITS, Prepared
from ftcli.models.base_files import tokenizer_bytes
from ftcli.runs.atomic import free_bytes
from ftcli.runs.folder import RunFolder
from ftcli.training.job import BaseModel, require_own_folder, temporary_run
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import Plan, RowStatistics
from ftcli.training.resuming import require_room


@dataclass(frozen=True)
class Rehearsal:
    """A rehearsal in which nothing has failed."""

    loaded: Loaded
    data: Path
    """The prepared data, which the real training finds there."""
    plan: Plan
    legs: tuple[Leg, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "rehearsal": "passed",
            "seconds": self.seconds,
            "legs": [asdict(leg) for leg in self.legs],
            "data": str(self.data),
            "plan": self.plan.model_dump(mode="json"),
        }


def rehearse_recipe(recipe: Path, overrides: Sequence[str], reporter: Reporter) -> Rehearsal:
    """Walk the whole way; raises FtcliError as the real commands do, and Stopped on a signal."""
    walk = Walk(reporter)
    started = walk.started
    with walk.named(), stoppable(reporter):
        loaded = load_recipe(recipe, overrides)
        require_own_folder(RunFolder(loaded.output), loaded)
        with temporary_run(loaded.output, TEMPORARY) as folder:
            real = _look_prepare_plan(loaded, walk)
            rehearse_twin(real, folder.path, walk)
    seconds = time.monotonic() - started
    return Rehearsal(loaded, real.run.data, real.plan, tuple(walk.legs), seconds)


def _look_prepare_plan(loaded: Loaded, walk: Walk) -> Real:
    with loaded.blame():
        _, model = open_recipe(loaded, None)
        walk.passed("look", _looked(model))
        run = data_folder(loaded, model.renderer)
        with run.lock():
            prepared = _prepare(loaded, model, run, walk.reporter)
        walk.passed("prepare", _prepared(prepared))
        plan = make_plan(loaded.recipe, model.shape, RowStatistics.of(prepared), model.hardware)
        beside = tokenizer_bytes(model.source, model.revision)
        require_room(run, plan, beside)
        saved = plan.run_bytes(beside)
        _warn_of_merge(loaded, model, run, saved, walk.reporter)
        walk.passed("plan", f"{plan.headline()}; {megabytes(saved)} to be saved")
    return Real(loaded, model, run, prepared, plan)


def _looked(model: BaseModel) -> str:
    from ftcli.models.base_files import require_weights

    weights = require_weights(model.source, model.revision, model.shape)
    return f"{model.shape.model_type} on {model.hardware.name}; {weights}"


def _prepare(loaded: Loaded, model: BaseModel, run: RunFolder, reporter: Reporter) -> Prepared:
    """The data as the real training finds them, each row within what the model reads."""
    from ftcli.data.tokenizing.encode import prepare
    from ftcli.inference.endings import require_ends
    from ftcli.models.load import open_config
    from ftcli.training.smoke.reach import reach_of, require_within_reach

    recipe = loaded.recipe
    prepared = prepare(loaded, model.renderer, run.data, reporter)
    require_ends(run.data, prepared, model.renderer)
    reach = reach_of(open_config(model.source, recipe.model.revision))
    require_within_reach(run.data, prepared, model.renderer, recipe, reach)
    return prepared


def _prepared(prepared: Prepared) -> str:
    longest = prepared.longest
    splits = ", ".join(f"{prepared.counts(split).rows} {split}" for split in SPLITS)
    return (
        f"{prepared.rows_read} rows: {splits}, {prepared.rows_rejected} rejected; the longest has "
        f"{longest.tokens} tokens ({longest.file}:{longest.line})"
    )


def _warn_of_merge(
    loaded: Loaded, model: BaseModel, run: RunFolder, saved: int, reporter: Reporter
) -> None:
    if not isinstance(loaded.recipe.method, LoraKeys):
        return
    merged, left = 2 * model.shape.parameters, free_bytes(run.path) - saved
    if left < merged:
        reporter.warn(
            f"a merge will take {megabytes(merged)}, and of the disk {megabytes(left)} are left "
            "then; make room, or give the merge another disk with --output"
        )
