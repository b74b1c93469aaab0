"""Everything that the report and the model card show of a run, read once from its folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

import yaml

from ftcli.artifacts import RunFolder
from ftcli.errors import FtcliError
from ftcli.prepared import Prepared, load_prepared, row_lengths
from ftcli.shapes import model_source
from ftcli.stages.report.curves import Chart, charts_of
from ftcli.stages.report.elsewhere import Told, names_alone, portable, told_from
from ftcli.stages.report.evaluations import Evaluation, evaluations_in
from ftcli.stages.report.origin import (
    DataFigures,
    Decision,
    MemoryFigures,
    Pair,
    advice_lines,
    data_figures,
    decisions_of,
    hashes_of,
    machine_of,
    memory_figures,
    training_pairs,
    versions_of,
)
from ftcli.stages.report.plain import Plain, Reading, count, mapping, text
from ftcli.stages.report.samples import Samples, first_samples, samples_of
from ftcli.stages.report.verdict import Verdict, verdict_of

# A recipe is a page; a system prompt in it may be anything.
LONGEST_RECIPE = 20_000
# `name` or `owner/name` (huggingface_hub.utils.validate_repo_id).
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


@dataclass(frozen=True)
class Step:
    """A command, and what it does."""

    command: str
    what: str


@dataclass(frozen=True)
class ReportFigures:
    """A run as its report shows it. What is not there is none or empty."""

    name: str
    run: str
    """How a command names it, from the folder that holds the folder of runs."""
    model: str
    """As the recipe names it."""
    hub_base: str
    """The base's id on the hub; empty where it is a local folder."""
    method: str
    state: str
    when: str
    verdict: Verdict
    evaluation: Evaluation | None
    """The one that says most (`evaluations_in`)."""
    others: tuple[Evaluation, ...]
    samples: Samples | None
    charts: tuple[Chart, ...]
    training: tuple[Pair, ...]
    data: DataFigures | None
    advice: tuple[str, ...]
    memory: MemoryFigures | None
    decisions: tuple[Decision, ...]
    recipe: str
    """YAML, every default written out; paths relative to the recipe's folder."""
    published_recipe: str
    """The same with the names alone of files that lie elsewhere."""
    versions: tuple[Pair, ...]
    machine: str
    hashes: tuple[Pair, ...]
    commands: tuple[Step, ...]
    problems: tuple[str, ...]
    """Files of the run that could not be read."""

    @property
    def runs_folder(self) -> str:
        """The folder of runs, from the one that holds it."""
        return shlex.split(self.run)[0].rpartition("/")[0]

    def verdict_named(self, run: str) -> Verdict:
        """The verdict with this name of the run in its commands."""
        faults = self.samples.faults if self.samples is not None else None
        return verdict_of(self.state, run, self.evaluation, faults)


def read_figures(run: RunFolder) -> ReportFigures:
    """Read a run folder; raises FtcliError where run.json cannot be read."""
    manifest = run.read_manifest()
    reading = Reading(run.path)
    plan, contract = reading.object_in(run.plan), reading.object_in(run.contract)
    raw = _recipe_values(reading.text_in(run.recipe), reading)
    told = told_from(text(manifest.get("recipe")))
    recipe = mapping(portable(raw, told))
    prepared = _prepared(run, reading)
    evaluations = tuple(each.told(told) for each in evaluations_in(run.evaluations, reading))
    main = evaluations[0] if evaluations else None
    samples = _samples(run, main, reading, told) if main is not None else None
    if main is not None:
        main = _completed(main, samples, reading, run)
    name = text(recipe.get("name")) or run.path.name
    command_name = shlex.quote(f"{run.path.parent.name}/{run.path.name}")
    state = text(manifest.get("state"))
    return ReportFigures(
        name=name,
        run=command_name,
        model=text(mapping(recipe.get("model")).get("id")),
        hub_base=_hub_base(mapping(raw.get("model")), run),
        method=text(mapping(recipe.get("method")).get("mode")),
        state=state,
        when=_when(text(manifest.get("finished")) or text(manifest.get("started"))),
        verdict=verdict_of(state, command_name, main, samples.faults if samples else None),
        evaluation=main,
        others=evaluations[1:],
        samples=samples,
        charts=_charts(run, manifest, reading),
        training=training_pairs(manifest),
        data=data_figures(prepared, _lengths(run), told) if prepared is not None else None,
        advice=advice_lines(reading.object_in(run.data / "advice.json")),
        memory=memory_figures(plan, mapping(manifest.get("memory"))),
        decisions=decisions_of(plan),
        recipe=_written(recipe),
        published_recipe=_written(names_alone(recipe)),
        versions=versions_of(manifest),
        machine=machine_of(manifest),
        hashes=hashes_of(manifest, contract, prepared),
        commands=_commands(command_name, recipe),
        problems=tuple(reading.problems),
    )


def _when(stamp: str) -> str:
    """`2026-01-05 10:08`, as run.json keeps the time."""
    return stamp[:16].replace("T", " ")


def _recipe_values(written: str, reading: Reading) -> Mapping[str, object]:
    try:
        return mapping(yaml.safe_load(written))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).partition("\n")[0]
        reading.problems.append(f"recipe.yaml: cannot be read ({first})")
        return {}


def _written(recipe: Plain) -> str:
    if not recipe:
        return ""
    written = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100)
    if len(written) <= LONGEST_RECIPE:
        return written
    return f"{written[:LONGEST_RECIPE]}\n# … {len(written) - LONGEST_RECIPE:,} more characters"


def _hub_base(model: Plain, run: RunFolder) -> str:
    """The hub id that the recipe's model stands for; empty for a folder, there or gone."""
    try:
        found = model_source(text(model.get("id")), run.path)
    except FtcliError:
        return ""
    return found if HUB_ID.fullmatch(found) else ""


def _prepared(run: RunFolder, reading: Reading) -> Prepared | None:
    try:
        return load_prepared(run.data)
    except FtcliError as error:
        reading.problems.append(f"data/prepared.json: {error.message}")
        return None


def _lengths(run: RunFolder) -> list[int]:
    """Tokens of each training row; none where the file is no Arrow file."""
    try:
        return row_lengths(run.data, "train")
    except (OSError, ValueError, KeyError):
        return []


def _charts(run: RunFolder, manifest: Plain, reading: Reading) -> tuple[Chart, ...]:
    records = list(reading.lines_in(run.metrics))
    speeds = list(reading.lines_in(run.speed))
    best = count(mapping(manifest.get("result")).get("best_step"))
    return tuple(charts_of(records, speeds, best or None))


def _samples(
    run: RunFolder, evaluation: Evaluation, reading: Reading, told: Told
) -> Samples | None:
    """Of the file of all answers, which has the evaluation's name, or else of its first rows."""
    answers = run.evaluations / "answers" / f"{evaluation.key}.jsonl"
    shown = str(answers.relative_to(run.path))
    found = samples_of(evaluation, reading.lines_in(answers), shown, told)
    return found or first_samples(evaluation, f"eval/{evaluation.key}.json", told)


def _completed(
    evaluation: Evaluation, samples: Samples | None, reading: Reading, run: RunFolder
) -> Evaluation:
    """With what the file of its rows tells, and what of it is gone."""
    whole = 0
    if samples is not None and samples.judged:
        whole = samples.whole
        evaluation = replace(evaluation, twins=samples.twins, labels=samples.labels)
    if not evaluation.kept_answers or whole >= evaluation.rows:
        return evaluation
    file = run.evaluations / "answers" / f"{evaluation.key}.jsonl"
    what = f"{whole:,} of {evaluation.rows:,} rows are there"
    reading.note(file, what)
    return replace(evaluation, missing=f"{file.relative_to(run.path)}: {what}")


def _commands(run: str, recipe: Plain) -> tuple[Step, ...]:
    steps = [
        Step(f"ftcli train {run} --fresh", "train again, beside this run"),
        Step(f"ftcli eval {run}", "base and tuned on the held-out rows; this page anew"),
        Step(f'ftcli generate {run} "…"', "ask the tuned model"),
    ]
    if text(mapping(recipe.get("method")).get("mode")) in ("lora", "qlora"):
        steps.append(Step(f"ftcli merge {run}", "one stand-alone model"))
    return (*steps, Step(f"ftcli report {run}", "this page anew"))
