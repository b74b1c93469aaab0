"""The heavy pieces of a comparison, each fit for a process of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftcli.artifacts import RunFolder
from ftcli.console import Reporter
from ftcli.disk import whole_folder
from ftcli.errors import MachineError
from ftcli.hub import require_reachable
from ftcli.loading import load_recipe
from ftcli.metrics.general_text import general_text
from ftcli.metrics.likelihood import Scored
from ftcli.plan import make_plan, profile_of
from ftcli.prepared import load_prepared, problems_file, split_file
from ftcli.shapes import model_source
from ftcli.stages.compare.record import Side
from ftcli.stages.evaluate import Asked, EvalResult, evaluate_run
from ftcli.stages.opening import OpenRun, open_run, require_as_trained
from ftcli.stages.scene import look
from ftcli.stages.train import train_recipe

if TYPE_CHECKING:
    from ftcli.engine.inference import Model

Kind = Literal["prepare", "prove", "time", "cell"]

# What a run's start and end differ by beyond the seconds it reports, when it had one sitting.
CLOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Task:
    """One piece of work, in values that a command line can carry.

    prepare: tokenise the data for all cells; prove: that finished runs are as they were trained;
    time: a few steps; cell: train, evaluate, score.
    """

    kind: Kind
    recipe: str
    folder: str
    general_text: str | None = None
    limit: int | None = None
    with_base: bool = False
    runs: Sequence[str] = ()


def perform(task: Task, reporter: Reporter) -> dict[str, Any]:
    """Do it, and return what JSON can hold. Raises FtcliError; Stopped on a signal."""
    match task.kind:
        case "prepare":
            return _prepare(task, reporter)
        case "prove":
            return _prove(task)
        case "time":
            return _time(task, reporter)
        case "cell":
            return _cell(task, reporter)


def _prepare(task: Task, reporter: Reporter) -> dict[str, Any]:
    loaded = load_recipe(Path(task.recipe))
    source = model_source(loaded.recipe.model.id, loaded.base)
    require_reachable(source, loaded.recipe.model.revision)

    from ftcli.engine.encode import prepare
    from ftcli.engine.model import load_renderer

    data = RunFolder(Path(task.folder)).data
    prepared = prepare(loaded, load_renderer(loaded, source), data, reporter)
    return {"fingerprint": prepared.fingerprint}


def _prove(task: Task) -> dict[str, Any]:
    for run in task.runs:
        require_as_trained(open_run(Path(run)), with_base=True)
    return {}


def _time(task: Task, reporter: Reporter) -> dict[str, Any]:
    """Seconds that an optimizer step of this recipe takes here."""
    from ftcli.engine.building import Setup
    from ftcli.engine.device import memory_in_words
    from ftcli.engine.encode import prepare
    from ftcli.engine.timing import measure_speed

    loaded = load_recipe(Path(task.recipe))
    run = RunFolder(Path(task.folder))
    with loaded.blame():
        scene = look(loaded, None)
        prepared = prepare(loaded, scene.renderer, run.data, reporter)
        plan = make_plan(loaded.recipe, scene.shape, profile_of(prepared), scene.hardware)
        setup = Setup(
            loaded.recipe, scene.source, scene.hardware, plan, prepared, scene.renderer, None
        )
        with memory_in_words("set training.micro_batch_size lower, or stop what else runs on it"):
            speed = measure_speed(setup, run)
    if (logs := run.path / "logs").is_dir():
        shutil.rmtree(logs)  # Trainer makes a folder for trackers
    every = prepared.trained_on
    tokens = loaded.recipe.training.batch_size * every.tokens / every.rows
    return {"step_seconds": tokens / speed.tokens_per_second}


def _cell(task: Task, reporter: Reporter) -> dict[str, Any]:
    loaded = load_recipe(Path(task.recipe))
    share_data(RunFolder(Path(task.folder)), RunFolder(loaded.output))
    trained = train_recipe(Path(task.recipe), (), fresh=False, parent=None, reporter=reporter)
    run = trained.run
    overrides = [
        f"{name}={json.dumps(getattr(loaded.recipe, name).model_dump(mode='json'))}"
        for name in ("generation", "eval")
    ]
    found = _evaluated(task, run, overrides, reporter)
    opened = open_run(run.path, overrides)
    sides = {side: _side(side, found, opened, task, reporter) for side in _sides(found.report)}
    manifest = run.read_manifest()
    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    return {
        "run_dir": str(run.path),
        "held_out": found.report["data"],
        "training": trained.report,
        "learning_rate": plan["learning_rate"]["value"],
        "machine": manifest["hardware"]["name"],
        "resumed": was_resumed(manifest),
        **{name: asdict(side) for name, side in sides.items()},
    }


def share_data(prepared: RunFolder, run: RunFolder) -> None:
    """Give a run that has not begun the rows prepared for all, as links where the disk has them."""
    there, wanted = load_prepared(run.data), load_prepared(prepared.data)
    if run.read_manifest() or wanted is None or there == wanted:
        return
    names = [
        "prepared.json",
        *(split_file(prepared.data, split).name for split in wanted.row_files),
    ]
    names += [file.name for file in [problems_file(prepared.data)] if file.is_file()]
    with whole_folder(run.data) as temporary:
        for name in names:
            _link(prepared.data / name, temporary / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _evaluated(
    task: Task, run: RunFolder, overrides: Sequence[str], reporter: Reporter
) -> EvalResult:
    """What `ftcli eval` finds; a base that has no room here leaves the cell its own scores."""

    def evaluated(with_base: bool) -> EvalResult:
        asked = Asked(limit=task.limit, with_base=with_base, forgetting=False)
        return evaluate_run(run.path, overrides, asked, reporter)

    try:
        return evaluated(task.with_base)
    except MachineError as error:
        if not task.with_base:
            raise
        reporter.warn(f"the base cannot be measured: {error}")
        return evaluated(False)


def _sides(report: Mapping[str, Any]) -> list[Literal["base", "tuned"]]:
    return ["base", "tuned"] if "base" in report else ["tuned"]


def _side(
    name: Literal["base", "tuned"],
    found: EvalResult,
    opened: OpenRun,
    task: Task,
    reporter: Reporter,
) -> Side:
    """The losses of the general text, beside what the evaluation has found."""
    from ftcli.engine.device import free_memory, memory_in_words
    from ftcli.engine.plain_text import passage_rows
    from ftcli.engine.trained import load_base_model, load_tuned_model

    load = {"base": load_base_model, "tuned": load_tuned_model}[name]
    text = general_text(Path(task.general_text) if task.general_text else None)
    free_memory()  # the other side's model
    with memory_in_words("stop what else runs on it"):
        model = load(opened.loaded, opened.run, opened.prepared)
        passages = passage_rows(model.contract.renderer, text.passages)
        # Speed is that of the training, and answers that were kept have theirs from another day.
        scores = {k: v for k, v in found.report[name].items() if k != "tokens_per_second"}
        return Side(
            scores,
            found.scored[name],
            _scored(model, passages, f"{name}: general text", reporter),
        )


def _scored(
    model: Model, rows: Sequence[Mapping[str, Any]], label: str, reporter: Reporter
) -> Scored:
    from ftcli.engine.inference import score_rows

    with reporter.meter(label, len(rows)) as meter:
        losses, tokens = score_rows(model, rows, meter.update)
    return Scored(tuple(losses), tuple(tokens))


def was_resumed(manifest: Mapping[str, Any]) -> bool:
    """Whether a finished run had more than one sitting: it then took longer than it reports."""
    started, finished = (datetime.fromisoformat(manifest[k]) for k in ("started", "finished"))
    elapsed = (finished - started).total_seconds()
    return bool(elapsed > manifest["result"]["seconds"] + CLOCK_SECONDS)
