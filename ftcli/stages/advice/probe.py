"""`prepare --probe`: what the base does with a few rows, with examples in its prompt and without.

It is asked before any training, so that one sees what prompting alone would reach.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcli.console import Reporter
from ftcli.data.example import Message
from ftcli.data.few_shot import Turns, choose_examples, few_shot
from ftcli.disk import sha256_file
from ftcli.errors import DataError
from ftcli.loading import Loaded
from ftcli.metrics.answer import Answer
from ftcli.metrics.asking import question_of
from ftcli.metrics.code import code_digest
from ftcli.metrics.format import format_files, format_scorer
from ftcli.metrics.looking import look
from ftcli.metrics.scorer import Scorer
from ftcli.metrics.scores import mean_of, with_interval
from ftcli.metrics.text import TextScorer
from ftcli.prepared import Prepared, Split
from ftcli.recipe import AnswerFormat
from ftcli.shapes import model_source
from ftcli.stages.advice.rows import PreparedRows
from ftcli.stages.advice.statistics import read_format
from ftcli.weights import base_fingerprint

if TYPE_CHECKING:
    from ftcli.engine.inference import Model
    from ftcli.engine.rendering import Renderer

ROWS = 30
SHOTS = 5
# How right what a form holds is; the first that was measured.
RIGHT = ("execution_match", "sql_match", "field_accuracy")
# Answers of these kinds are right or wrong, whatever form the recipe asks for.
ONE_IS_RIGHT = ("labels", "sql")
# Goes up when the same model and rows would be asked otherwise.
VERSION = 2


@dataclass(frozen=True)
class Asked:
    """The rows that are asked, and those that stand before them as examples."""

    rows_from: Mapping[Split, int]
    """How many of the rows are of each split."""
    rows: tuple[Turns, ...]
    examples: tuple[Turns, ...]

    def prompt(self, row: Turns, shots: int) -> list[Message]:
        """The turns before a row's answer, behind so many examples."""
        return few_shot(row[:-1], None, self.examples[:shots])


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
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def choose_rows(rows: PreparedRows, shots: int, seed: int) -> Asked:
    """Held-out rows, and as many training rows as there are fewer than ROWS of those; examples are
    other training rows.

    Raises DataError where rows are plain texts, which have no prompts, or none is left to ask.
    """
    prepared = rows.prepared
    if prepared.plain_text:
        raise DataError(
            "probe",
            "plain texts have no prompts to ask; leave --probe out",
            file=prepared.train_source,
        )
    held_out: list[Split] = ["test", "validation"]
    split = next((name for name in held_out if prepared.counts(name).rows), None)
    asked = choose_examples(_turns(rows, split), ROWS, seed) if split is not None else []
    chosen = choose_examples(_turns(rows, "train"), shots + ROWS - len(asked), seed)
    examples, filling = chosen[:shots], chosen[shots:]
    counts: dict[Split, int] = {"train": len(filling)}
    if split is not None:
        counts = {split: len(asked), **counts}
    asked += filling
    if not asked:
        raise DataError(
            "probe",
            f"{prepared.train.rows} training rows are all needed as examples, and none is held "
            "out to ask; lower --shots",
            file=prepared.train_source,
        )
    rows_from = {name: count for name, count in counts.items() if count}
    return Asked(rows_from, tuple(asked), tuple(examples))


def _turns(rows: PreparedRows, split: Split) -> Iterable[Turns]:
    return (row.messages for row in rows.of(split))


def probe_base(
    loaded: Loaded,
    renderer: Renderer,
    rows: PreparedRows,
    detected: Mapping[str, Any],
    shots: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Scores of the base with and without examples; `detected`: the form that answers share.

    Raises FtcliError: nothing to ask, a model that cannot be opened, memory.
    """
    asked = choose_rows(rows, shots, loaded.recipe.training.seed)
    form = loaded.recipe.eval.format
    if form is None and detected["fixed"]:
        form = read_format(detected["eval_format"])
    judges = _judges(form, loaded)

    from ftcli.engine.device import memory_in_words
    from ftcli.engine.untrained import load_untrained

    with memory_in_words("stop what else runs on it, or leave --probe out"):
        model = load_untrained(loaded, renderer)
        used = fitting(model, asked, loaded.recipe.generation.max_new_tokens)
        sides = {
            name: _side(model, asked, count, loaded, judges, reporter)
            for name, count in (("zero_shot", 0), ("few_shot", used))
        }
    return {
        "key": probe_key(loaded, rows.prepared, shots),
        "rows": len(asked.rows),
        "data": " and ".join(asked.rows_from),
        "rows_from": dict(asked.rows_from),
        "shots": used,
        "shots_asked": shots,
        "format": form.model_dump(mode="json", exclude_defaults=True) if form is not None else None,
        "format_from": _format_from(loaded, form),
        "decided_by": _decided_by(sides["few_shot"], judges, detected["kind"]),
        **sides,
    }


def _format_from(loaded: Loaded, form: AnswerFormat | None) -> str | None:
    if form is None:
        return None
    return "recipe" if loaded.recipe.eval.format is not None else "answers"


def _decided_by(scores: Mapping[str, Any], judges: Sequence[Scorer], kind: str) -> dict[str, str]:
    """The scores, with their labels, that say together whether prompting does."""
    kinds = {name: each for judge in judges for name, each in judge.kinds.items()}
    names = [name for name in ("format_rate",) if name in scores]
    right = next((name for name in RIGHT if name in scores), None)
    if right is not None:
        names.append(right)
    elif not names or kind in ONE_IS_RIGHT:
        names.append("exact_match")
    return {name: kinds[name].label for name in names}


def _judges(form: AnswerFormat | None, loaded: Loaded) -> list[Scorer]:
    judges: list[Scorer] = [TextScorer()]
    return [format_scorer(form, loaded.base), *judges] if form is not None else judges


def fitting(model: Model, asked: Asked, answer_tokens: int) -> int:
    """As many of the examples as leave room for every question and its answer."""
    from ftcli.engine.inference import context_tokens
    from ftcli.engine.untrained import ids_of

    context, renderer = context_tokens(model), model.contract.renderer
    shots = len(asked.examples)
    while context is not None and shots:
        longest = max(len(ids_of(renderer, asked.prompt(row, shots))) for row in asked.rows)
        if longest + answer_tokens <= context:
            break
        shots -= 1
    return shots


def _side(
    model: Model,
    asked: Asked,
    shots: int,
    loaded: Loaded,
    judges: Sequence[Scorer],
    reporter: Reporter,
) -> dict[str, Any]:
    """Answers to all rows behind so many examples, and their scores."""
    from ftcli.engine.inference import answer_prompts, seed_sampling
    from ftcli.engine.untrained import ids_of

    prompts = [ids_of(model.contract.renderer, asked.prompt(row, shots)) for row in asked.rows]
    seed_sampling(loaded.recipe.training.seed)
    started = time.monotonic()
    with reporter.meter(f"probe, {shots} examples", len(prompts)) as meter:
        answers = answer_prompts(model, prompts, loaded.recipe.generation, meter.update)
    seconds = time.monotonic() - started
    tokens = sum(answer.tokens for answer in answers)
    return {
        **_scores(answers, asked.rows, judges),
        "prompt_tokens": sum(map(len, prompts)) / len(prompts),
        "answer_tokens": tokens / len(answers),
        "tokens_per_second": tokens / seconds,
    }


def _scores(
    answers: Sequence[Answer], rows: Sequence[Turns], judges: Sequence[Scorer]
) -> dict[str, Any]:
    questions = [question_of(row, None) for row in rows]
    looked = look(judges, answers, questions, lambda _: None)
    counts = {"stop_rate": mean_of([answer.stopped for answer in answers]), **looked.counts}
    scores: dict[str, Any] = {}
    for name, count in counts.items():
        scores |= with_interval(name, count.value, count.interval())
    return scores
