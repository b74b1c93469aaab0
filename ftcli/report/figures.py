"""All figures of a run for report and model card, read once from its folder."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import yaml

from ftcli.config.loader import load_recipe
from ftcli.config.recipe import Recipe
from ftcli.config.section import with_paths
from ftcli.console import counted
from ftcli.data.dataset import Dataset, load_dataset, row_lengths
from ftcli.errors import FtcliError
from ftcli.evaluation.advice.advice import Advice, advice_file
from ftcli.evaluation.verdicts import RunVerdict, verdict_of
from ftcli.memory.known_models import model_source
from ftcli.report.charts import Chart, charts_of
from ftcli.report.samples import Samples, samples_in
from ftcli.runs.folder import RunFolder
from ftcli.runs.results import EvalResult
from ftcli.runs.training_records import RunRecord
from ftcli.training.plan.plan import Plan

# `name` or `owner/name` (huggingface_hub.utils.validate_repo_id).
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
HELD_OUT = ("test", "validation")

Change = Callable[[str], str]
T = TypeVar("T")


@dataclass(frozen=True)
class ReportFigures:
    """What report and model card show of a run; missing parts are None or empty."""

    run: RunFolder
    path: Change
    """How a path is shown."""
    record: RunRecord
    plan: Plan | None
    recipe: Recipe | None
    hub_base: str
    """The base's id on the hub; empty for a local folder."""
    base_digest: str | None
    has_towers: bool
    """The base reads images or sound too."""
    prepared: Dataset | None
    lengths: tuple[int, ...]
    """Tokens of each training row."""
    advice: tuple[str, ...]
    evaluation: EvalResult | None
    """The most informative one (`evaluations_in`)."""
    others: tuple[EvalResult, ...]
    samples: Samples | None
    charts: tuple[Chart, ...]
    problems: tuple[str, ...]
    """Files that could not be read, each with what to do."""

    @property
    def name(self) -> str:
        return self.recipe.name if self.recipe else self.run.path.name

    @property
    def model(self) -> str:
        return self.path(self.recipe.model.id) if self.recipe else ""

    @property
    def method(self) -> str:
        return self.recipe.method.mode if self.recipe else ""

    @property
    def recipe_text(self) -> str:
        """YAML, every default written out; empty without a recipe."""
        if self.recipe is None:
            return ""
        shown = with_paths(self.recipe, lambda named: self.path(named.value))
        values = shown.model_dump(mode="json")
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)

    @property
    def command_name(self) -> str:
        """The run in a command, from the parent of the runs folder."""
        return shlex.quote(f"{self.run.path.parent.name}/{self.run.path.name}")

    def verdict(self, name: str) -> RunVerdict:
        """The verdict; its commands call the run `name`."""
        state = self.record.state or "not started"
        if state != "finished":
            sentence = f"The training is not finished ({state}): ftcli train {name}"
            return RunVerdict("not finished", "Not finished", sentence)
        if self.evaluation is None:
            sentence = f"Whether it is better than its base was not measured: ftcli eval {name}"
            return RunVerdict("not evaluated", "Not evaluated yet", sentence)
        return verdict_of(self.evaluation)


def read_figures(run: RunFolder) -> ReportFigures:
    """Read a run folder; raises FtcliError if run.json cannot be read. Other unreadable files are
    left out and listed in `problems`."""
    record = run.record()
    problems: list[str] = []
    path = shown_from(record.recipe)

    def read(file: Path, reader: Callable[[], T]) -> T | None:
        try:
            return reader() if file.is_file() else None
        except FtcliError as error:
            what = error.message.replace(str(run.path), f"{run.path.parent.name}/{run.path.name}")
            problems.append(f"{file.relative_to(run.path)}: {what}")
        return None

    recipe = read(run.recipe, lambda: load_recipe(run.recipe).recipe)
    advised = advice_file(run.data)
    advice = read(advised, partial(Advice.read, advised))
    files = sorted(run.evaluations.glob("[!.]*.json"))  # the lock has a dot
    results = [read(file, partial(EvalResult.read, file)) for file in files]
    evaluations = evaluations_in(run, [named(each, path) for each in results if each is not None])
    main = evaluations[0] if evaluations else None
    samples = None
    if main is not None and main.calls:
        samples = samples_in(run.evaluations / main.answers, main)
        if samples.total < main.rows:
            there = f"only {samples.total:,} of {counted(main.rows, 'row')}"
            problems.append(f"eval/{main.answers}: {there}; delete it and evaluate again")
    base_digest = read(run.prompt_manifest, run.base_fingerprint)
    return ReportFigures(
        run=run,
        path=path,
        record=record,
        plan=read(run.plan, partial(Plan.read, run.plan)),
        recipe=recipe,
        hub_base=_hub_base(recipe.model.id) if recipe is not None else "",
        base_digest=base_digest,
        has_towers=base_digest is not None and run.base_has_towers(),
        prepared=read(run.data / "prepared.json", partial(load_dataset, run.data)),
        lengths=_lengths(run),
        advice=advice.sentences if advice is not None else (),
        evaluation=main,
        others=evaluations[1:],
        samples=samples,
        charts=charts_of(run, problems),
        problems=tuple(problems),  # last: the calls above append to it
    )


def named(result: EvalResult, change: Change) -> EvalResult:
    """The result with another path of its rows."""
    return result.model_copy(update={"data": change(result.data)})


def evaluations_in(run: RunFolder, found: list[EvalResult]) -> tuple[EvalResult, ...]:
    """The most informative first: held-out rows, with the base, more rows, with a prompt, with
    general ability; else the latest."""
    file = run.evaluated_last
    last = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""

    def says(each: EvalResult) -> tuple[object, ...]:
        compared, prompted = "base" in each.sides, "prompted" in each.sides
        shown = each.data in HELD_OUT, compared, each.rows, prompted, bool(each.forgetting)
        return *shown, each.key == last, each.finished

    return tuple(sorted(found, key=says, reverse=True))


def _hub_base(model: str) -> str:
    """The hub id of the recipe's model; empty for a folder, even a missing one."""
    try:
        found = model_source(model)
    except FtcliError:
        return ""
    return found if HUB_ID.fullmatch(found) else ""


def _lengths(run: RunFolder) -> tuple[int, ...]:
    try:
        return tuple(row_lengths(run.data, "train"))
    except (OSError, ValueError, KeyError):
        return ()  # no Arrow file


def shown_from(recipe: str | None) -> Change:
    """Paths near the recipe relative to its folder, so that a report does not show the user's home.
    Other paths stay absolute."""
    folder = os.path.dirname(recipe or "")
    above = os.path.dirname(folder)
    around = above if len(above) > 1 else folder

    def shown(path: str) -> str:
        inside = len(around) > 1 and path.startswith(f"{around}{os.sep}")
        return os.path.relpath(path, folder) if inside else path

    return shown


def name_alone(path: str) -> str:
    """The last part of a path outside of the recipe's folder, for a published card."""
    leads_out = os.path.isabs(path) or path.split(os.sep)[0] == os.pardir
    return os.path.basename(os.path.normpath(path)) if leads_out else path
