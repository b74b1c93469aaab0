"""`ftcli eval`: base and tuned on the same held-out rows, and what the training cost elsewhere."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.console import Reporter
from ftcli.data.prepared import Split
from ftcli.errors import Stopped
from ftcli.evaluation.asked import SHOTS, Asked, key_of
from ftcli.evaluation.recipe_scorers import Scorers
from ftcli.evaluation.rows import Row, SeenRows, find_seen, held_out, read_rows
from ftcli.evaluation.scorers.asking import question_of
from ftcli.evaluation.scorers.scorer import ExampleResult, Question
from ftcli.evaluation.sets import Sets, build_sets
from ftcli.evaluation.table import (
    are_labels,
    forgetting_scores,
    possible_kinds,
    require_known,
    rows_of,
    task_scores,
    truth_of,
)
from ftcli.evaluation.work import Done, Worker
from ftcli.report.write import report_or_say
from ftcli.runs.atomic import write_text
from ftcli.runs.folder import RunFolder
from ftcli.runs.locks import one_writer
from ftcli.runs.results import Answer, AnsweredRow, Call, EvalResult, Side
from ftcli.runs.signals import StopSignals
from ftcli.training.opening import OpenRun, open_run, require_as_trained

if TYPE_CHECKING:
    from ftcli.models.prompt_manifest import PromptFormat

__all__ = ["SHOTS", "Asked", "Evaluated", "evaluate_run"]

LOCK = ".lock"
# Rows to read by eye: where nothing measured whether answers are right, only a person can.
SAMPLES = 5


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a run; `stored` when an earlier one of the same was found."""

    run: RunFolder
    result: EvalResult
    stored: bool


def evaluate_run(
    path: Path, overrides: Sequence[str], asked: Asked, reporter: Reporter
) -> Evaluated:
    """Evaluate a finished run. The same question is answered once.

    Raises FtcliError; Stopped on a signal: what was answered until then is kept.
    """
    opened = open_run(path, overrides)
    run = opened.run
    for change in opened.unheeded:
        reporter.note(f"note: the training stays as it was: {change}")
    split = held_out(opened, asked.data)
    scorers = Scorers(opened, asked.scores, reporter)
    decides_by = opened.loaded.recipe.eval.decides_by
    # The fields of JSON answers are known only when a reference has been read.
    if decides_by is not None and not decides_by.startswith("field_f1."):
        require_known(decides_by, possible_kinds(scorers.kinds))
    key = key_of(opened, asked, split)
    file = run.evaluation(key)
    # What a file of scores imports or reads may have changed: its scores are always counted again.
    if asked.scores is None and file.is_file() and run.answers(key).is_file():
        require_as_trained(opened, with_base=asked.with_base)
        result = EvalResult.read(file)
        seen = SeenRows(result.rows_trained_on, result.rows_in_validation)
        seen.warn(result.data, result.rows, reporter)
        _show_last(run, key, reporter)
        return Evaluated(run, result, stored=True)
    with _one_at_a_time(run, reporter):
        result = _evaluate(opened, asked, split, scorers, key, reporter)
        result.write(file)
        _show_last(run, key, reporter)
    return Evaluated(run, result, stored=False)


@contextmanager
def _one_at_a_time(run: RunFolder, reporter: Reporter) -> Iterator[None]:
    """Holds the lock of the run's evaluations; raises Stopped on a signal."""
    folder, stops = run.evaluations, StopSignals(reporter.note)
    with one_writer(folder / LOCK, folder, "eval_locked", "evaluate it later"):
        try:
            with stops.caught():
                yield
        except KeyboardInterrupt as interrupt:
            raise Stopped(
                "stopped; what was scored and answered is kept, and the same command goes on",
                stops.number or signal.SIGINT,
            ) from interrupt


def _show_last(run: RunFolder, key: str, reporter: Reporter) -> None:
    """On the run's page, which shows the evaluation that was asked for last."""
    with suppress(OSError):  # a run that nobody may write to can still be evaluated
        write_text(run.evaluated_last, f"{key}\n")
    report_or_say(run, reporter)


def _evaluate(
    opened: OpenRun, asked: Asked, split: Split, scorers: Scorers, key: str, reporter: Reporter
) -> EvalResult:
    """Rows → losses and answers of all sides → scores → rows of the table."""
    from ftcli.models.prompt_manifest import verify_run

    recipe, data = opened.loaded.recipe, str(asked.data or split)
    rows = read_rows(opened, asked.data, split, asked.limit, reporter)
    seen = find_seen(opened, rows, None if asked.data else split, reporter)
    seen.warn(data, len(rows), reporter)
    contract = verify_run(opened.loaded, opened.run, opened.prepared)
    sets = build_sets(opened, asked, rows, contract, reporter)
    done = _run_models(opened, contract, asked, sets, reporter)
    task = {side: each["rows"] for side, each in done.items()}
    answered = {side: each for side, each in task.items() if each.answers}

    questions = [question_of(row.messages, recipe.eval.grounding) for row in rows]
    labels = are_labels([question.reference for question in questions])
    texts = {side: [answer.text for answer in each.answers] for side, each in answered.items()}
    scored = scorers.score(texts, questions)
    measured = task_scores(task, scored, scorers, labels=labels)
    require_known(recipe.eval.decides_by, {row.name: row.kind for row in measured})
    general = forgetting_scores(sets, done)
    scores, forgetting = rows_of(measured, general, recipe.eval.decides_by)

    answers = _answered_rows(rows, questions, task, scored.results)
    file = opened.run.answers(key)
    write_text(file, "".join(f"{each.model_dump_json()}\n" for each in answers))
    return EvalResult(
        key=key,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        rows=len(rows),
        data=data,
        **asdict(seen),
        instruction=str(asked.prompted) if "prompted" in task else None,
        examples=asked.shots if "prompted" in task else 0,
        scores=scores,
        forgetting=forgetting,
        general_text=sets.text_name,
        calls={side: _call(each) for side, each in answered.items()},
        replay=recipe.data.replay.source if recipe.data.replay is not None else None,
        decides_by=recipe.eval.decides_by,
        truth_measured_by=truth_of(scores, labels=labels),
        notes=scored.notes,
        samples=tuple(sorted(answers, key=_drawn_by)[:SAMPLES]) if answered else (),
        answers=str(file.relative_to(opened.run.evaluations)),
        eval_config=recipe.eval.model_dump(mode="json"),
        flags=tuple(asked.flags(opened)),
    )


def _run_models(
    opened: OpenRun, contract: PromptFormat, asked: Asked, sets: Sets, reporter: Reporter
) -> dict[Side, dict[str, Done]]:
    """Side → set → what was done; one model in memory at a time, the base first."""
    from ftcli.inference.trained import held_as
    from ftcli.models.device import free_memory, memory_in_words

    named = {"rows": sets.rows, "text": sets.text, "instructions": sets.instructions}
    wanted = {name: rows for name, rows in named.items() if rows is not None}
    how = held_as(opened.loaded, opened.run)
    done: dict[Side, dict[str, Done]] = {}
    with memory_in_words("take fewer --rows-at-once, or stop what else runs on it"):
        for side in ("base", "tuned"):
            if side == "base" and not asked.with_base:
                continue
            worker = Worker(opened, contract, side, how, reporter)
            done[side] = {name: worker.do(rows) for name, rows in wanted.items()}
            if side == "base" and sets.prompted is not None:
                done["prompted"] = {"rows": worker.do(sets.prompted)}
            if not worker.was_needed:
                require_as_trained(opened, with_base=side == "base")
            del worker
            free_memory()
    return done


def _call(done: Done) -> Call:
    answers = done.answers
    return Call(
        prompt_tokens=sum(done.prompt_tokens) / len(answers),
        answer_tokens=sum(answer.tokens for answer in answers) / len(answers),
        tokens_per_second=done.tokens_per_second,
    )


def _answered_rows(
    rows: Sequence[Row],
    questions: Sequence[Question],
    task: Mapping[Side, Done],
    results: Mapping[Side, Sequence[ExampleResult]],
) -> list[AnsweredRow]:
    """Every row with the answers of all sides."""
    return [
        AnsweredRow(
            number=index + 1,
            file=row.file,
            line=row.line,
            prompt=question.prompt,
            reference=question.reference,
            facts=question.facts if question.facts != question.prompt else None,
            sides={side: _answer(done, index, results.get(side)) for side, done in task.items()},
        )
        for index, (row, question) in enumerate(zip(rows, questions, strict=True))
    ]


def _answer(done: Done, row: int, results: Sequence[ExampleResult] | None) -> Answer:
    """With its scores; of a plain text, which has none, the loss alone."""
    loss, tokens = done.losses_by_row[row]
    losses = {"loss": loss, "loss_tokens": tokens}
    if results is None:
        return Answer(text="", tokens=0, stopped=True, prompt_tokens=0, **losses)
    return Answer(
        **asdict(done.answers_by_row[row]),
        **losses,
        prompt_tokens=done.prompt_tokens[row],
        counts=dict(results[row].counts),
        findings=results[row].findings,
    )


def _drawn_by(row: AnsweredRow) -> bytes:
    return hashlib.sha256(f"{row.number}\n{row.prompt}".encode()).digest()
