"""`prepare --probe`: scores of the base on a few rows, with examples in its prompt and without."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ftcli.config.loader import Loaded
from ftcli.console import Reporter
from ftcli.data.few_shot import Turns, choose_examples, few_shot
from ftcli.data.prepared import Prepared, Split
from ftcli.errors import DataError
from ftcli.evaluation.advice.answer_form import read_format
from ftcli.evaluation.advice.record import AnswerForm, Probe
from ftcli.evaluation.advice.statistics import PreparedRows
from ftcli.evaluation.scorers.asking import question_of
from ftcli.evaluation.scorers.code import code_digest
from ftcli.evaluation.scorers.format import format_files, format_scorer
from ftcli.evaluation.scorers.scorer import Scorer
from ftcli.evaluation.scorers.text import TextScorer
from ftcli.evaluation.scores import mean_of, score_answers
from ftcli.memory.shapes import model_source
from ftcli.models.base_files import base_fingerprint
from ftcli.runs.atomic import sha256_file, short_digest

if TYPE_CHECKING:
    from ftcli.data.tokenizing.rendering import Renderer
    from ftcli.inference.generation import Model

ROWS = 30
SHOTS = 5
# How right what a form holds is; the first that was measured.
RIGHT = ("execution_match", "sql_match", "field_accuracy")
# Answers of these kinds are right or wrong, whatever form the recipe asks for.
ONE_IS_RIGHT = ("labels", "sql")
# Goes up when the same model and rows would be asked otherwise.
VERSION = 3


@dataclass(frozen=True)
class Asked:
    """The rows that are asked, and the examples that may stand before them."""

    rows_from: Mapping[Split, int]
    """How many of the rows are of each split."""
    rows: tuple[Turns, ...]
    examples: tuple[Turns, ...]

    def prompts(self, renderer: Renderer, shots: int) -> list[list[int]]:
        """Ids of the turns before each row's answer, after so many examples."""
        from ftcli.inference.untrained import ids_of

        shown = self.examples[:shots]
        return [ids_of(renderer, few_shot(row[:-1], None, shown)) for row in self.rows]


def probe_key(loaded: Loaded, prepared: Prepared, shots: int) -> str:
    """16 hex digits of everything that the scores depend on."""
    recipe = loaded.recipe
    source = model_source(recipe.model.id, loaded.base)
    form = recipe.eval.format
    files = format_files(form, loaded.base) if form is not None else []
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


def choose_rows(rows: PreparedRows, shots: int, seed: int) -> Asked:
    """Held-out rows, filled up to ROWS with training rows that are no examples.

    Raises DataError where rows are plain texts, which have no prompts, or none is left to ask.
    """
    prepared = rows.prepared
    if prepared.plain_text:
        reason = "plain texts have no prompts to ask; leave --probe out"
        raise DataError("probe", reason, file=prepared.train_source)
    held_out: Split = "test" if prepared.test.rows or not prepared.validation.rows else "validation"
    asked = choose_examples((row.messages for row in rows.of(held_out)), ROWS, seed)
    training = (row.messages for row in rows.of("train"))
    chosen = choose_examples(training, shots + ROWS - len(asked), seed)
    examples, filling = chosen[:shots], chosen[shots:]
    if not asked and not filling:
        reason = (
            f"{prepared.train.rows} training rows are all needed as examples, and none is held "
            "out to ask; lower --shots"
        )
        raise DataError("probe", reason, file=prepared.train_source)
    counts: dict[Split, int] = {held_out: len(asked), "train": len(filling)}
    rows_from = {name: count for name, count in counts.items() if count}
    return Asked(rows_from, (*asked, *filling), tuple(examples))


def probe_base(
    loaded: Loaded,
    renderer: Renderer,
    rows: PreparedRows,
    detected: AnswerForm | None,
    shots: int,
    reporter: Reporter,
) -> Probe:
    """Scores of the base with and without examples; `detected`: the form that answers share.

    Raises FtcliError: nothing to ask, a model that cannot be opened, memory.
    """
    recipe = loaded.recipe
    asked = choose_rows(rows, shots, recipe.training.seed)
    form = recipe.eval.format
    if form is None and detected is not None and detected.fixed:
        form = read_format(detected.eval_format)
    scorers: list[Scorer] = [TextScorer()]
    if form is not None:
        scorers.insert(0, format_scorer(form, loaded.base))

    from ftcli.inference.untrained import load_untrained
    from ftcli.models.device import memory_in_words

    with memory_in_words("stop what else runs on it, or leave --probe out"):
        model = load_untrained(loaded, renderer)
        used = fitting(model, asked, recipe.generation.max_new_tokens)
        zero, few = (_scores(model, asked, count, loaded, scorers, reporter) for count in (0, used))
    return Probe(
        key=probe_key(loaded, rows.prepared, shots),
        rows=len(asked.rows),
        rows_from=asked.rows_from,
        shots=used,
        shots_asked=shots,
        format=form.model_dump(mode="json", exclude_defaults=True) if form is not None else None,
        decided_by=_decided_by(few, scorers, detected),
        zero_shot=zero,
        few_shot=few,
    )


def fitting(model: Model, asked: Asked, answer_tokens: int) -> int:
    """As many of the examples as leave room for every question and its answer."""
    from ftcli.inference.generation import context_tokens

    context, shots = context_tokens(model), len(asked.examples)
    while context is not None and shots:
        longest = max(map(len, asked.prompts(model.contract.renderer, shots)))
        if longest + answer_tokens <= context:
            break
        shots -= 1
    return shots


def _scores(
    model: Model,
    asked: Asked,
    shots: int,
    loaded: Loaded,
    scorers: Sequence[Scorer],
    reporter: Reporter,
) -> dict[str, Any]:
    """Of the answers to all rows after so many examples."""
    from ftcli.inference.generation import answer_prompts, seed_sampling

    recipe, prompts = loaded.recipe, asked.prompts(model.contract.renderer, shots)
    seed_sampling(recipe.training.seed)
    started = time.monotonic()
    with reporter.meter(f"probe, {shots} examples", len(prompts)) as meter:
        answers = answer_prompts(model, prompts, recipe.generation, meter.update)
    seconds = time.monotonic() - started
    tokens = [answer.tokens for answer in answers]
    questions = [question_of(row, None) for row in asked.rows]
    scored = score_answers(scorers, [answer.text for answer in answers], questions, lambda _: None)
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
    return scores


def _decided_by(
    scores: Mapping[str, Any], scorers: Sequence[Scorer], detected: AnswerForm | None
) -> dict[str, str]:
    """The scores, with their labels, that say together whether prompting does."""
    names = [name for name in ("format_rate",) if name in scores]
    right = next((name for name in RIGHT if name in scores), None)
    if right is not None:
        names.append(right)
    elif not names or (detected is not None and detected.kind in ONE_IS_RIGHT):
        names.append("exact_match")
    kinds = {name: kind for scorer in scorers for name, kind in scorer.kinds.items()}
    return {name: kinds[name].label for name in names}
