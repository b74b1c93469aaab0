"""`prepare --try-prompting`: the base answers a few rows, with and without examples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ftcli.config.recipe import Recipe
from ftcli.config.section import named_files, without_folders
from ftcli.console import Reporter, counted
from ftcli.data.dataset import Dataset, Split
from ftcli.data.prompts import Turns, choose_examples, few_shot
from ftcli.errors import DataError
from ftcli.evaluation.advice.answer_form import AnswerForm, read_format
from ftcli.evaluation.advice.row_statistics import PreparedRows
from ftcli.evaluation.scorers.facts import question_of
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.scorer import Scorer, code_digest
from ftcli.evaluation.scorers.text import TextScorer
from ftcli.evaluation.scoring import score_answers
from ftcli.evaluation.statistics import mean_of
from ftcli.memory.known_models import model_source
from ftcli.models.files.base_files import base_fingerprint
from ftcli.runs.atomic import sha256_file, short_digest

if TYPE_CHECKING:
    from ftcli.data.tokenizing.rendering import Renderer
    from ftcli.inference.generation import Model

ROWS = 30
# Whether the content of a form is right; the first that was measured decides.
RIGHT = ("execution_match", "sql_match", "field_accuracy")
# With answers of these kinds, exact match decides too.
ONE_IS_RIGHT = ("labels", "sql")
# Changes when the same model and rows would be asked otherwise.
VERSION = 4


@dataclass(frozen=True)
class PromptedAnswer:
    """What the base wrote to one row."""

    prompt: str
    reference: str
    zero_shot: str
    few_shot: str


@dataclass(frozen=True)
class PromptingResult:
    """Answers of the base to a few rows, with and without examples in its prompt."""

    key: str
    """Changes with everything the answers and scores depend on."""
    rows: int
    rows_from: Mapping[Split, int]
    shots: int
    """Examples in a prompt: fewer than `shots_asked` if the context is too short."""
    shots_asked: int
    format: Mapping[str, Any] | None
    decided_by: Mapping[str, str]
    """Name → label of the scores that decide the verdict; empty: none measures free text."""
    zero_shot: Mapping[str, Any]
    """Scores with their intervals, named as in `ftcli eval`."""
    few_shot: Mapping[str, Any]
    answers: tuple[PromptedAnswer, ...]


@dataclass(frozen=True)
class PromptedRows:
    """The rows to ask, and the examples for their prompts."""

    rows_from: Mapping[Split, int]
    """How many of the rows are of each split."""
    rows: tuple[Turns, ...]
    examples: tuple[Turns, ...]

    def prompts(self, renderer: Renderer, shots: int) -> list[list[int]]:
        """Token ids of each row's prompt after this many examples."""
        from ftcli.inference.open_model import ids_of

        shown = self.examples[:shots]
        return [ids_of(renderer, few_shot(row[:-1], None, shown)) for row in self.rows]


def prompting_key(recipe: Recipe, prepared: Dataset, shots: int) -> str:
    """16 hex digits of everything the answers and scores depend on."""
    source = model_source(recipe.model.id)
    form = without_folders(recipe.eval).format
    files = named_files(recipe.eval)
    parts = {
        "version": VERSION,
        "rows": prepared.fingerprint,
        "model": [source, recipe.model.revision, base_fingerprint(source, recipe.model.revision)],
        "precision": [recipe.training.precision, recipe.method.mode],
        "generation": recipe.generation.model_dump(),
        "format": form.model_dump(mode="json") if form is not None else None,
        "files": [sha256_file(file) if file.is_file() else None for file in files],
        "code": code_digest(),
        "shots": shots,
    }
    return short_digest(parts, 16)


def choose_rows(rows: PreparedRows, shots: int, seed: int) -> PromptedRows:
    """Held-out rows, filled up to ROWS with training rows that are not examples.

    Raises DataError for plain texts, which have no prompts, or if no row is left to ask.
    """
    prepared = rows.prepared
    if prepared.plain_text:
        reason = "plain texts have no prompts; leave --try-prompting out"
        raise DataError("prompting", reason, file=prepared.train_source)
    held_out: Split = "test" if prepared.test.rows or not prepared.validation.rows else "validation"
    asked = choose_examples((row.messages for row in rows.of(held_out)), ROWS, seed)
    training = (row.messages for row in rows.of("train"))
    chosen = choose_examples(training, shots + ROWS - len(asked), seed)
    examples, filling = chosen[:shots], chosen[shots:]
    if not asked and not filling:
        reason = (
            f"all {prepared.train.rows} training rows are examples, and no row is held out; lower "
            "--shots"
        )
        raise DataError("prompting", reason, file=prepared.train_source)
    counts: dict[Split, int] = {held_out: len(asked), "train": len(filling)}
    rows_from = {name: count for name, count in counts.items() if count}
    return PromptedRows(rows_from, (*asked, *filling), tuple(examples))


def try_prompting(
    recipe: Recipe,
    renderer: Renderer,
    rows: PreparedRows,
    detected: AnswerForm | None,
    shots: int,
    reporter: Reporter,
) -> PromptingResult:
    """Ask the base with and without examples; `detected`: the form that answers share.

    Raises FtcliError: no row to ask, a model that cannot be opened, memory.
    """
    asked = choose_rows(rows, shots, recipe.training.seed)
    form = recipe.eval.format
    if form is None and detected is not None and detected.fixed:
        form = read_format(detected.eval_format)
    scorers: list[Scorer] = [TextScorer()]
    if form is not None:
        scorers.insert(0, format_scorer(form))

    from ftcli.inference.open_model import load_untrained
    from ftcli.models.device import explain_out_of_memory

    with explain_out_of_memory("stop what else runs on it, or leave --try-prompting out"):
        model = load_untrained(recipe, renderer)
        used = fitting_examples(model, asked, recipe.generation.max_new_tokens)
        (zero, without), (few, with_examples) = (
            _ask(model, asked, count, recipe, scorers, reporter) for count in (0, used)
        )
    return PromptingResult(
        key=prompting_key(recipe, rows.prepared, shots),
        rows=len(asked.rows),
        rows_from=asked.rows_from,
        shots=used,
        shots_asked=shots,
        format=form.model_dump(mode="json", exclude_defaults=True) if form is not None else None,
        decided_by=_decided_by(few, scorers, detected),
        zero_shot=zero,
        few_shot=few,
        answers=tuple(
            PromptedAnswer(question_of(row, None).prompt, row[-1].content, *texts)
            for row, *texts in zip(asked.rows, without, with_examples, strict=True)
        ),
    )


def fitting_examples(model: Model, asked: PromptedRows, answer_tokens: int) -> int:
    """The number of examples that leave room for every question and its answer."""
    from ftcli.inference.generation import context_tokens

    context, shots = context_tokens(model), len(asked.examples)
    while context is not None and shots:
        longest = max(map(len, asked.prompts(model.prompt_format.renderer, shots)))
        if longest + answer_tokens <= context:
            break
        shots -= 1
    return shots


def _ask(
    model: Model,
    asked: PromptedRows,
    shots: int,
    recipe: Recipe,
    scorers: Sequence[Scorer],
    reporter: Reporter,
) -> tuple[dict[str, Any], list[str]]:
    """Scores and answers of all rows after this many examples."""
    from ftcli.inference.generation import answer_prompts, seed_sampling

    prompts = asked.prompts(model.prompt_format.renderer, shots)
    seed_sampling(recipe.training.seed)
    started = time.monotonic()
    with reporter.meter(f"prompting, {counted(shots, 'example')}", len(prompts)) as meter:
        answers = answer_prompts(model, prompts, recipe.generation, meter.update)
    seconds = time.monotonic() - started
    tokens = [answer.tokens for answer in answers]
    questions = [question_of(row, None) for row in asked.rows]
    texts = [answer.text for answer in answers]
    scored = score_answers(scorers, texts, questions, lambda: None)
    counts = {
        "stop_rate": mean_of([answer.stopped for answer in answers]),
        **scored.counts,
        "answer_tokens": mean_of(tokens),
    }
    scores: dict[str, Any] = {
        "prompt_tokens": fmean(map(len, prompts)),
        "tokens_per_second": sum(tokens) / seconds,
    }
    for name, count in counts.items():
        scores |= {name: count.value, f"{name}_interval": list(count.interval())}
    return scores, texts


def _decided_by(
    scores: Mapping[str, Any], scorers: Sequence[Scorer], detected: AnswerForm | None
) -> dict[str, str]:
    """Name → label of the scores that decide together whether prompting is enough.

    Free text has none: an answer may be right without being the reference.
    """
    names = [name for name in ("format_rate",) if name in scores]
    right = next((name for name in RIGHT if name in scores), None)
    if right is not None:
        names.append(right)
    elif detected is not None and detected.kind in ONE_IS_RIGHT:
        names.append("exact_match")
    kinds = {name: kind for scorer in scorers for name, kind in scorer.kinds.items()}
    return {name: kinds[name].label for name in names}
