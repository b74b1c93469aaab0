"""`ftcli eval`: base and tuned model on the same held-out rows, and general ability."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.config.evaluation import Grounding
from ftcli.config.section import named_files, without_folders
from ftcli.console import Reporter
from ftcli.data.dataset import Split
from ftcli.evaluation.eval_rows import (
    ContaminatedRows,
    EvalOptions,
    Row,
    find_contaminated,
    held_out,
    read_rows,
)
from ftcli.evaluation.model_outputs import VERSION, ModelOutputs, ModelRunner, Progress
from ftcli.evaluation.row_sets import RowSets, build_sets
from ftcli.evaluation.score_table import (
    are_labels,
    correctness_scores,
    forgetting_scores,
    possible_kinds,
    require_known,
    score_rows,
    task_scores,
)
from ftcli.evaluation.scorers.facts import question_of
from ftcli.evaluation.scorers.scorer import ExampleResult, Question, code_digest
from ftcli.evaluation.scoring import Scorers
from ftcli.memory.known_models import model_source
from ftcli.models.files.base_files import base_fingerprint
from ftcli.runs.atomic import sha256_file, short_digest, write_text
from ftcli.runs.folder import RunFolder
from ftcli.runs.locks import exclusive_lock
from ftcli.runs.results import Answer, AnsweredRow, Call, EvalResult, Side
from ftcli.runs.signals import StopSignals
from ftcli.shell import shown_source
from ftcli.training.opening import OpenRun, open_run, require_as_trained

if TYPE_CHECKING:
    from ftcli.models.prompt_manifest import PromptFormat

LOCK = ".lock"
# Rows for a person to read.
SAMPLES = 5


@dataclass(frozen=True)
class EvaluatedRun:
    """A run and its evaluation; `stored`: read from the run folder."""

    run: RunFolder
    result: EvalResult
    stored: bool


def evaluate_run(
    path: Path, overrides: Sequence[str], options: EvalOptions, reporter: Reporter
) -> EvaluatedRun:
    """Evaluate a finished run, or read the stored evaluation.

    Raises FtcliError; Stopped on a signal: losses and answers so far are kept.
    """
    opened = open_run(path, overrides)
    run = opened.run
    for change in opened.ignored_changes:
        reporter.note(f"note: the training stays as it was: {change}")
    split = held_out(opened, options.data)
    scorers = Scorers(opened, options.scores, reporter)
    decides_by = opened.recipe.eval.decides_by
    # Names of JSON fields are known only after reading the rows.
    if decides_by is not None and not decides_by.startswith("field_f1."):
        require_known(decides_by, possible_kinds(scorers.kinds))
    key = key_of(opened, options, split)
    file = run.evaluation(key)
    # A file of scores is always run again: what it imports may have changed.
    stored = options.scores is None and file.is_file() and run.answers(key).is_file()
    if stored:
        require_as_trained(opened, with_base=options.with_base)
        result = EvalResult.read(file)
        seen = ContaminatedRows(result.rows_trained_on, result.rows_in_validation)
        seen.warn(result.data, result.rows, reporter)
    else:
        folder = run.evaluations
        message = "stopped; losses and answers so far are kept; the same command resumes"
        with (
            exclusive_lock(folder / LOCK, folder, "eval_locked", "evaluate it later"),
            StopSignals(reporter.note).ending_with(message),
        ):
            result = _evaluate(opened, options, split, scorers, key, reporter)
            result.write(file)
    with suppress(OSError):  # a stored evaluation of a read-only run can be shown
        write_text(run.evaluated_last, f"{key}\n")
    return EvaluatedRun(run, result, stored)


def key_of(opened: OpenRun, options: EvalOptions, split: Split) -> str:
    """16 hex digits of everything the scores depend on."""
    recipe = opened.recipe
    files = [*options.files.values(), *named_files(recipe.eval)]
    parts = {
        "weights": opened.run.read_manifest()["weights"],
        "data": opened.prepared.fingerprint,
        "split": split if options.data is None else "file",
        "options": {name: str(value) for name, value in vars(options).items()},
        "files": [sha256_file(file) if file.is_file() else None for file in files],
        "detector": _detector_weights(recipe.eval.grounding),
        "generation": recipe.generation.model_dump(),
        "eval": without_folders(recipe.eval).model_dump(mode="json"),
        "keys": recipe.data.model_dump(mode="json"),
        "model": recipe.model.model_dump(),
        "seed": recipe.training.seed,
        # Another version scores the same answers again.
        "code": [code_digest(), VERSION],
    }
    return short_digest(parts, 16)


def _detector_weights(wanted: Grounding | None) -> str | None:
    """Digest of a local detector; a hub id identifies its weights."""
    if wanted is None or wanted.model is None:
        return None
    source = model_source(wanted.model)
    return base_fingerprint(source) if Path(source).is_dir() else None


def _evaluate(
    opened: OpenRun,
    options: EvalOptions,
    split: Split,
    scorers: Scorers,
    key: str,
    reporter: Reporter,
) -> EvalResult:
    """Rows → losses and answers of all sides → scores → table."""
    from ftcli.models.prompt_manifest import verify_run

    recipe, data = opened.recipe, str(options.data or split)
    rows = read_rows(opened, options.data, split, options.limit, reporter)
    seen = find_contaminated(opened, rows, None if options.data else split, reporter)
    seen.warn(data, len(rows), reporter)
    prompt_format = verify_run(opened.recipe, opened.run, opened.prepared)
    sets = build_sets(opened, options, rows, prompt_format, reporter)
    outputs = _run_models(opened, prompt_format, sets, reporter, with_base=options.with_base)
    task = {side: each["rows"] for side, each in outputs.items()}
    answered = {side: each for side, each in task.items() if each.answers}

    questions = [question_of(row.messages, recipe.eval.grounding) for row in rows]
    labels = are_labels([question.reference for question in questions])
    texts = {side: [answer.text for answer in each.answers] for side, each in answered.items()}
    scored = scorers.score(texts, questions)
    measured = task_scores(task, scored, scorers, labels=labels)
    require_known(recipe.eval.decides_by, {row.name: row.kind for row in measured})
    general = forgetting_scores(sets, outputs)
    scores, forgetting = score_rows(measured, general, recipe.eval.decides_by)

    answers = _answered_rows(rows, questions, task, scored.results)
    file = opened.run.answers(key)
    write_text(file, "".join(f"{each.model_dump_json()}\n" for each in answers))
    return EvalResult(
        key=key,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        rows=len(rows),
        data=data,
        **asdict(seen),
        instruction=str(options.baseline_prompt) if "prompted" in task else None,
        examples=options.shots if "prompted" in task else 0,
        scores=scores,
        forgetting=forgetting,
        general_text=sets.text_name,
        calls={side: _call(each) for side, each in answered.items()},
        replay=shown_source(recipe.data.replay.source) if recipe.data.replay is not None else None,
        decides_by=recipe.eval.decides_by,
        truth_measured_by=correctness_scores(scores, labels=labels),
        notes=scored.notes,
        samples=tuple(sorted(answers, key=_sample_order)[:SAMPLES]) if answered else (),
        answers=str(file.relative_to(opened.run.evaluations)),
        eval_config=recipe.eval.model_dump(mode="json"),
        flags=tuple(options.flags(opened)),
    )


def _run_models(
    opened: OpenRun,
    prompt_format: PromptFormat,
    sets: RowSets,
    reporter: Reporter,
    *,
    with_base: bool,
) -> dict[Side, dict[str, ModelOutputs]]:
    """Side → set → outputs; one model in memory at a time."""
    from ftcli.inference.open_model import dtype_and_device
    from ftcli.models.device import explain_out_of_memory, free_memory

    named = {"rows": sets.rows, "text": sets.text, "instructions": sets.instructions}
    wanted = {name: rows for name, rows in named.items() if rows is not None}
    how = dtype_and_device(opened)
    models = 2 if with_base else 1
    planned = [*wanted.values()] * models + ([sets.prompted] if sets.prompted else [])
    found: dict[Side, dict[str, ModelOutputs]] = {}
    with (
        explain_out_of_memory("take a smaller --batch-size, or stop what else runs on it"),
        reporter.meter("eval, tokens", sum(each.tokens for each in planned)) as meter,
    ):
        progress = Progress(meter, len(planned))
        for side in ("base", "tuned"):
            if side == "base" and not with_base:
                continue
            runner = ModelRunner(opened, prompt_format, side, how, progress)
            found[side] = {name: runner.outputs(rows) for name, rows in wanted.items()}
            if side == "base" and sets.prompted is not None:
                found["prompted"] = {"rows": runner.outputs(sets.prompted)}
            if not runner.was_opened:
                require_as_trained(opened, with_base=side == "base")
            del runner
            free_memory()
    return found


def _call(outputs: ModelOutputs) -> Call:
    answers = outputs.answers
    return Call(
        prompt_tokens=sum(outputs.prompt_tokens) / len(answers),
        answer_tokens=sum(answer.tokens for answer in answers) / len(answers),
        tokens_per_second=outputs.tokens_per_second,
    )


def _answered_rows(
    rows: Sequence[Row],
    questions: Sequence[Question],
    task: Mapping[Side, ModelOutputs],
    results: Mapping[Side, Sequence[ExampleResult]],
) -> list[AnsweredRow]:
    """Each row with the answers of all sides."""
    return [
        AnsweredRow(
            number=index + 1,
            file=row.file,
            line=row.line,
            prompt=question.prompt,
            reference=question.reference,
            facts=question.facts if question.facts != question.prompt else None,
            sides={side: _answer(each, index, results.get(side)) for side, each in task.items()},
        )
        for index, (row, question) in enumerate(zip(rows, questions, strict=True))
    ]


def _answer(outputs: ModelOutputs, row: int, results: Sequence[ExampleResult] | None) -> Answer:
    """An answer with its scores; a plain text has only a loss."""
    loss, tokens = outputs.losses_by_row[row]
    losses = {"loss": loss, "loss_tokens": tokens}
    if results is None:
        return Answer(text="", tokens=0, stopped=True, prompt_tokens=0, **losses)
    return Answer(
        **asdict(outputs.answers_by_row[row]),
        **losses,
        prompt_tokens=outputs.prompt_tokens[row],
        counts=dict(results[row].counts),
        findings=results[row].findings,
    )


def _sample_order(row: AnsweredRow) -> bytes:
    return hashlib.sha256(f"{row.number}\n{row.prompt}".encode()).digest()
