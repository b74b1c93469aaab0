"""`ftcli eval`: base and tuned on the same held-out rows, and what the training cost elsewhere."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.artifacts import RunFolder
from ftcli.console import Reporter
from ftcli.disk import write_json, write_text
from ftcli.errors import Stopped
from ftcli.locking import one_writer
from ftcli.metrics.asking import question_of
from ftcli.metrics.likelihood import Scored
from ftcli.prepared import Split
from ftcli.stages.evaluate.asked import SHOTS, Asked
from ftcli.stages.evaluate.forgetting import forgotten
from ftcli.stages.evaluate.key import key_of
from ftcli.stages.evaluate.record import read_scored, samples, save_rows
from ftcli.stages.evaluate.rows import Row, held_out, read_rows, seen_of
from ftcli.stages.evaluate.scorers import PERPLEXITY, Scorers
from ftcli.stages.evaluate.seen import tell_seen
from ftcli.stages.evaluate.sets import Sets, build_sets
from ftcli.stages.evaluate.sides import Side, differences, side_of
from ftcli.stages.evaluate.unmatched import unmatched
from ftcli.stages.evaluate.work import Done, ModelName, RowSet, Worker
from ftcli.stages.opening import OpenRun, open_run, require_as_trained
from ftcli.stages.report import report_or_say
from ftcli.stopping import StopSignals

if TYPE_CHECKING:
    from ftcli.engine.inference import PromptContract

__all__ = ["SHOTS", "Asked", "EvalResult", "evaluate_run"]

LOCK = ".lock"


@dataclass(frozen=True)
class EvalResult:
    """Scores of all sides; `stored` when an earlier evaluation of the same was found."""

    run_dir: Path
    report: dict[str, Any]
    stored: bool
    scored: Mapping[str, Scored]
    """Losses of each side, row by row."""

    def as_json(self) -> dict[str, Any]:
        return {"run_dir": str(self.run_dir), **self.report}


def evaluate_run(
    path: Path, overrides: Sequence[str], asked: Asked, reporter: Reporter
) -> EvalResult:
    """Evaluate a finished run. The same question is answered once.

    Raises FtcliError; Stopped on a signal: what was answered until then is kept.
    """
    opened = open_run(path, overrides)
    for change in opened.unheeded:
        reporter.note(f"note: the training stays as it was: {change}")
    split = held_out(opened, asked.data)
    judges = Scorers(opened, asked)
    key = key_of(opened, asked, split, judges.files)
    stored = opened.run.evaluations / f"{key}.json"
    # What a file of scores imports or reads may have changed: its scores are always counted anew.
    known = asked.scores is None and stored.is_file()
    if known and (scored := read_scored(opened.run, key)) is not None:
        require_as_trained(opened, with_base=asked.with_base)
        report = json.loads(stored.read_text(encoding="utf-8"))
        tell_seen(report, reporter)
        _asked_last(opened.run, key)
        report_or_say(opened.run, reporter)
        return EvalResult(opened.run.path, report, stored=True, scored=scored)
    with _one_at_a_time(opened.run), _resumable(reporter):
        flags = [*asked.flags(overrides), *(f"{name}: of the recipe" for name in opened.read_anew)]
        return _evaluate(opened, asked, split, judges, key, flags, reporter)


def _evaluate(
    opened: OpenRun,
    asked: Asked,
    split: Split,
    judges: Scorers,
    key: str,
    flags: Sequence[str],
    reporter: Reporter,
) -> EvalResult:
    from ftcli.engine.contract import contract_of

    rows = read_rows(opened, asked.data, split, asked.limit, reporter)
    contract = contract_of(opened.loaded, opened.run, opened.prepared)
    sets = build_sets(opened, asked, rows, contract, reporter)
    done = _work(opened, contract, asked, sets, reporter)
    wanted = opened.loaded.recipe.eval
    questions = [question_of(row.messages, wanted.faithfulness) for row in rows]
    sides = {}
    for name, found in done.items():
        with reporter.meter(f"{name}: scores", len(rows)) as meter:
            sides[name] = side_of(found["rows"], questions, judges, meter.update)
    for warning in (*judges.warnings(), *unmatched(opened.loaded, questions)):
        reporter.warn(warning)
    report = _report(rows, split, asked, sides, judges)
    report["looked_at"] = wanted.model_dump(mode="json")
    report["flags"] = list(flags)
    report["counted"] = {name: side.counted() for name, side in sides.items()}
    if sides["tuned"].done.answers and (own := judges.references(questions)):
        report["references"] = own
    if "base" in done and asked.forgetting:
        report["forgetting"] = forgotten(sets, done["base"], done["tuned"])
    report["samples"] = samples(rows, sides)
    report["answers"] = save_rows(opened.run, key, rows, questions, sides)
    report["evaluated"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_json(opened.run.evaluations / f"{key}.json", report)
    _asked_last(opened.run, key)
    report_or_say(opened.run, reporter)
    scored = {name: side.done.scored for name, side in sides.items()}
    return EvalResult(opened.run.path, report, stored=False, scored=scored)


def _asked_last(run: RunFolder, key: str) -> None:
    """For the page alone: a run that nobody may write to can still be asked again."""
    with suppress(OSError):
        write_text(run.evaluated_last, f"{key}\n")


def _work(
    opened: OpenRun, contract: PromptContract, asked: Asked, sets: Sets, reporter: Reporter
) -> dict[str, dict[str, Done]]:
    """Side → set → what was done; one model in memory at a time, the base first."""
    from ftcli.engine.device import free_memory, memory_in_words
    from ftcli.engine.trained import held_as

    general = {"text": sets.text, "instructions": sets.instructions}
    names: list[ModelName] = ["base", "tuned"] if asked.with_base else ["tuned"]
    how = held_as(opened.loaded, opened.run)
    done: dict[str, dict[str, Done]] = {}
    with memory_in_words("take fewer --rows-at-once, or stop what else runs on it"):
        for name in names:
            worker = Worker(opened, contract, name, how, reporter)
            wanted: dict[str, RowSet | None] = {"rows": sets.rows, **general}
            done[name] = {
                each: worker.do(rows) for each, rows in wanted.items() if rows is not None
            }
            if name == "base" and sets.prompted is not None:
                done["prompted"] = {"rows": worker.do(sets.prompted)}
            if not worker.was_needed:
                require_as_trained(opened, with_base=name == "base")
            del worker
            free_memory()
    return done


def _report(
    rows: Sequence[Row], split: Split, asked: Asked, sides: Mapping[str, Side], judges: Scorers
) -> dict[str, Any]:
    kinds = judges.kinds
    shown = {
        name: kind
        for name, kind in kinds.items()
        if any(name in side.counts for side in sides.values())
    }
    with_perplexity = {}
    for name, kind in shown.items():
        with_perplexity[name] = vars(kind)
        if name == "loss":
            with_perplexity["perplexity"] = vars(PERPLEXITY)
    long_prompt: dict[str, Any] = {}
    if "prompted" in sides:
        long_prompt = {"instruction": str(asked.prompted), "shots": asked.shots}
    return {
        "rows": len(rows),
        "data": str(asked.data) if asked.data else split,
        **seen_of(rows, None if asked.data else split),
        **long_prompt,
        **{name: side.as_json() for name, side in sides.items()},
        "scores": with_perplexity,
        "differences": {
            f"tuned_vs_{name}": differences(side, sides["tuned"], shown)
            for name, side in sides.items()
            if name != "tuned"
        },
    }


@contextmanager
def _one_at_a_time(run: RunFolder) -> Iterator[None]:
    folder = run.evaluations
    with one_writer(folder / LOCK, folder, "eval_locked", "evaluate it later"):
        yield


@contextmanager
def _resumable(reporter: Reporter) -> Iterator[None]:
    stops = StopSignals(reporter.note)
    try:
        with stops.caught():
            yield
    except KeyboardInterrupt as interrupt:
        raise Stopped(
            "stopped; what was scored and answered is kept, and the same command goes on",
            stops.number or signal.SIGINT,
        ) from interrupt
