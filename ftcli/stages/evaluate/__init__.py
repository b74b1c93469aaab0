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

from ftcli.artifacts import RunFolder
from ftcli.console import Reporter
from ftcli.disk import write_text
from ftcli.errors import Stopped
from ftcli.locking import one_writer
from ftcli.metrics.asking import question_of
from ftcli.metrics.scorer import Question
from ftcli.metrics.scores import ScoredAnswers
from ftcli.prepared import Split
from ftcli.results import SIDES, Answer, AnsweredRow, Call, EvalResult, Finding, Side
from ftcli.stages.evaluate.asked import SHOTS, Asked
from ftcli.stages.evaluate.judge import PREFERRED
from ftcli.stages.evaluate.key import key_of
from ftcli.stages.evaluate.rows import Row, held_out, read_rows, seen_of
from ftcli.stages.evaluate.scorers import Scorers
from ftcli.stages.evaluate.seen import warn_of_seen
from ftcli.stages.evaluate.sets import Sets, build_sets
from ftcli.stages.evaluate.table import (
    MOST_REPEATED,
    OF_LABELS,
    TRUTH,
    Measured,
    forgetting_scores,
    require_known,
    rows_of,
    task_scores,
)
from ftcli.stages.evaluate.work import Done, RowSet, Worker
from ftcli.stages.opening import OpenRun, open_run, require_as_trained
from ftcli.stages.report import report_or_say
from ftcli.stopping import StopSignals

if TYPE_CHECKING:
    from ftcli.engine.inference import PromptContract

__all__ = ["SHOTS", "Asked", "Evaluated", "evaluate_run"]

LOCK = ".lock"
# Rows to read by eye: where nothing measured whether answers are right, only a person can.
SAMPLES = 5
# Answers are labels where they are at most so many, short, and each of them stands often.
MOST_LABELS, LONGEST_LABEL, ROWS_PER_LABEL = 20, 60, 3


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
    for change in opened.unheeded:
        reporter.note(f"note: the training stays as it was: {change}")
    split = held_out(opened, asked.data)
    scorers = Scorers(opened, asked)
    decides_by = opened.loaded.recipe.eval.decides_by
    # The fields of JSON answers are known only when a reference has been read.
    if decides_by is not None and not decides_by.startswith("field_f1."):
        require_known(decides_by, scorers.possible)
    key = key_of(opened, asked, split, scorers.files)
    stored = opened.run.evaluation(key)
    # What a file of scores imports or reads may have changed: its scores are always counted again.
    if asked.scores is None and stored.is_file() and opened.run.answers(key).is_file():
        require_as_trained(opened, with_base=asked.with_base)
        result = EvalResult.read(stored)
        warn_of_seen(
            result.rows, result.data, result.rows_trained_on, result.rows_in_validation, reporter
        )
        _remember_last(opened.run, key)
        report_or_say(opened.run, reporter)
        return Evaluated(opened.run, result, stored=True)
    with _one_at_a_time(opened.run), _resumable(reporter):
        flags = [*asked.flags(overrides), *(f"{name}: of the recipe" for name in opened.read_anew)]
        result = _evaluate(opened, asked, split, scorers, key, flags, reporter)
        result.write(stored)
        _remember_last(opened.run, key)
        report_or_say(opened.run, reporter)
        return Evaluated(opened.run, result, stored=False)


def _evaluate(
    opened: OpenRun,
    asked: Asked,
    split: Split,
    scorers: Scorers,
    key: str,
    flags: Sequence[str],
    reporter: Reporter,
) -> EvalResult:
    from ftcli.engine.contract import contract_of

    rows = read_rows(opened, asked.data, split, asked.limit, reporter)
    contract = contract_of(opened.loaded, opened.run, opened.prepared)
    sets = build_sets(opened, asked, rows, contract, reporter)
    every = _work(opened, contract, asked, sets, reporter)
    wanted = opened.loaded.recipe.eval
    questions = [question_of(row.messages, wanted.grounding) for row in rows]
    done = {side: every[side]["rows"] for side in SIDES if side in every}
    texts: dict[Side, list[str]] = {}
    scored: dict[Side, ScoredAnswers] = {}
    for side, each in done.items():
        if each.answers:
            texts[side] = [answer.text for answer in each.answers]
            scored[side] = scorers.score(side, texts[side], questions, reporter)
    answered = bool(scored)
    own = scorers.your_answers(questions, reporter) if answered else {}
    labels = _are_labels([question.reference for question in questions]) if answered else False
    counts = {side: each.counts for side, each in scored.items()}
    measured = task_scores(done, counts, scorers.kinds, own, labels=labels)
    if "base" in texts:
        pairs = scorers.preferred(texts["base"], texts["tuned"], questions, reporter)
        measured += [Measured("judge_preferred", PREFERRED, dict(pairs))] if pairs else []
    require_known(wanted.decides_by, {row.name: row.kind for row in measured})
    general: list[Measured] = []
    if "base" in every and asked.forgetting:
        general = forgetting_scores(sets, every["base"], every["tuned"])
    scores, forgetting = rows_of(measured, general, wanted.decides_by)
    for warning in scorers.warnings(questions, own) if answered else ():
        reporter.warn(warning)
    answers = _answered_rows(rows, questions, done, scored)
    file = opened.run.answers(key)
    write_text(file, "".join(f"{each.model_dump_json()}\n" for each in answers))
    seen = seen_of(rows, None if asked.data else split)
    truth = {*TRUTH, *([OF_LABELS] if labels else [])}
    return EvalResult(
        key=key,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        rows=len(rows),
        data=str(asked.data) if asked.data else split,
        **seen,
        instruction=str(asked.prompted) if "prompted" in done else None,
        examples=asked.shots if "prompted" in done else 0,
        scores=scores,
        forgetting=forgetting,
        general_text=sets.general.name if sets.general is not None and general else None,
        calls={side: _call(each) for side, each in done.items() if each.answers},
        replay=replay.source if (replay := opened.loaded.recipe.data.replay) else None,
        decides_by=wanted.decides_by,
        truth_measured_by=tuple(
            row.name for row in scores if row.name in truth or (row.own and row.better)
        ),
        notes=(*_notes(measured), *(scorers.calibration(reporter) if answered else ())),
        samples=tuple(sorted(answers, key=_drawn_by)[:SAMPLES]) if answered else (),
        answers=str(file.relative_to(opened.run.evaluations)),
        eval_config=wanted.model_dump(mode="json"),
        flags=tuple(flags),
    )


def _are_labels(references: Sequence[str]) -> bool:
    """Whether all of the rows' own answers are a few short ones, so that one alone is right."""
    found = {reference.strip() for reference in references}
    short = all(text and "\n" not in text and len(text) <= LONGEST_LABEL for text in found)
    return short and len(found) <= min(MOST_LABELS, len(references) / ROWS_PER_LABEL)


def _notes(measured: Sequence[Measured]) -> Iterator[str]:
    for row in measured:
        tuned = row.sides.get("tuned")
        if row.name == "repetition" and tuned is not None and tuned.value > MOST_REPEATED:
            yield (
                f"the tuned model repeats itself: {tuned.value:.0%} of its groups of four words "
                "stood before in the same answer"
            )


def _call(done: Done) -> Call:
    return Call(
        prompt_tokens=sum(done.prompt_tokens) / len(done.prompt_tokens),
        answer_tokens=sum(answer.tokens for answer in done.answers) / len(done.answers),
        tokens_per_second=done.tokens_per_second,
    )


def _answered_rows(
    rows: Sequence[Row],
    questions: Sequence[Question],
    done: Mapping[Side, Done],
    scored: Mapping[Side, ScoredAnswers],
) -> list[AnsweredRow]:
    """Every row with the answers of all sides; of plain texts only their losses."""
    found = []
    for index, (row, question) in enumerate(zip(rows, questions, strict=True)):
        sides: dict[Side, Answer] = {}
        for side, each in done.items():
            losses = {"loss": each.scored.losses[index], "loss_tokens": each.scored.tokens[index]}
            if side not in scored:
                sides[side] = Answer(text="", tokens=0, stopped=True, prompt_tokens=0, **losses)
                continue
            result = scored[side].results[index]
            sides[side] = Answer(
                **asdict(each.answers[index]),
                **losses,
                prompt_tokens=each.prompt_tokens[index],
                counts=dict(result.counts),
                findings=tuple(Finding(**asdict(finding)) for finding in result.findings),
            )
        found.append(
            AnsweredRow(
                number=index + 1,
                file=row.file,
                line=row.line,
                prompt=question.prompt,
                reference=question.reference,
                facts=question.facts if question.facts != question.prompt else None,
                sides=sides,
            )
        )
    return found


def _drawn_by(row: AnsweredRow) -> bytes:
    return hashlib.sha256(f"{row.number}\n{row.prompt}".encode()).digest()


def _remember_last(run: RunFolder, key: str) -> None:
    """For the page alone: a run that nobody may write to can still be evaluated."""
    with suppress(OSError):
        write_text(run.evaluated_last, f"{key}\n")


def _work(
    opened: OpenRun, contract: PromptContract, asked: Asked, sets: Sets, reporter: Reporter
) -> dict[Side, dict[str, Done]]:
    """Side → set → what was done; one model in memory at a time, the base first."""
    from ftcli.engine.device import free_memory, memory_in_words
    from ftcli.engine.trained import held_as

    general = {"text": sets.text, "instructions": sets.instructions}
    how = held_as(opened.loaded, opened.run)
    done: dict[Side, dict[str, Done]] = {}
    with memory_in_words("take fewer --rows-at-once, or stop what else runs on it"):
        for side in ("base", "tuned"):
            if side == "base" and not asked.with_base:
                continue
            worker = Worker(opened, contract, side, how, reporter)
            wanted: dict[str, RowSet | None] = {"rows": sets.rows, **general}
            done[side] = {
                each: worker.do(rows) for each, rows in wanted.items() if rows is not None
            }
            if side == "base" and sets.prompted is not None:
                done["prompted"] = {"rows": worker.do(sets.prompted)}
            if not worker.was_needed:
                require_as_trained(opened, with_base=side == "base")
            del worker
            free_memory()
    return done


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
