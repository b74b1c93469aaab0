"""End of answers: checked in the labels before a training, measured on the model after it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ftcli.console import Reporter
from ftcli.data.dataset import Dataset, RowsOf, Split
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.errors import DataError, ModelError
from ftcli.inference.generation import Model, answer_prompts
from ftcli.models.device import free_memory, is_out_of_memory
from ftcli.models.prompt_manifest import PromptFormat
from ftcli.training.job import TrainJob
from ftcli.training.trainer import FtcliTrainer

TRAINED_ON: tuple[RowsOf, ...] = ("train", "validation", "replay")
# Rows named in an error.
NAMED = 3
# A few are enough: if the end token is not learnt, no answer ends.
SAMPLE_ANSWERS = 8
# Token limit relative to the longest reference answer, which a trained model rarely exceeds.
LENGTH_FACTOR = 1.25


@dataclass(frozen=True)
class StopRate:
    """Share of greedy answers that finished (EOS); None if it was not measured."""

    stop_rate: float | None
    stop_rate_rows: int


def require_ends(folder: Path, prepared: Dataset, renderer: Renderer) -> None:
    """Raise DataError (`end_token`) unless the last label of every row is a stop token.

    Rows of max_length tokens may be truncated, and are not checked.
    """
    for split in (split for split in TRAINED_ON if split in prepared.row_files):
        endless = _endless(read_split(folder, split), prepared)
        if not endless.num_rows:
            continue
        first, *others = endless.slice(0, NAMED).to_pylist()
        noun = "row" if endless.num_rows == 1 else "rows"
        stops = " or ".join(repr(renderer.tokenizer.decode([i])) for i in prepared.stop_ids)
        also = "".join(f", {row['file']}:{row['line']}" for row in others)
        raise DataError(
            "end_token",
            f"the labels of {endless.num_rows} {split} {noun} (first: this one{also}) do not end "
            f"with {stops}, so the model would not learn to stop; set another data.template, or "
            f"delete {folder} if it was changed",
            file=first["file"],
            line=first["line"],
        )


def _endless(rows: pa.Table, prepared: Dataset) -> pa.Table:
    """File and line of untruncated rows whose last label is not a stop token."""
    stops = pa.array(prepared.stop_ids, pa.int32())
    masks = []
    for labels in rows.column("labels").chunks:
        last = labels.values.take(pc.subtract(labels.offsets.slice(1), 1))
        cut = pc.equal(pc.list_value_length(labels), prepared.max_length)
        masks.append(pc.invert(pc.or_(pc.is_in(last, value_set=stops), cut)))
    return rows.select(["file", "line"]).filter(pa.chunked_array(masks, pa.bool_()))


def measure_stop_rate(trainer: FtcliTrainer, job: TrainJob, reporter: Reporter) -> StopRate:
    """Answer a few validation rows (without any: training rows) greedily with the trained model.

    The token limit is LENGTH_FACTOR times the longest answer of these rows, and at most
    generation.max_new_tokens. Plain texts have no answers.
    """
    prepared, recipe = job.dataset, job.recipe
    generation = recipe.generation
    rows = [] if prepared.plain_text else _sample_rows(job.run.data, prepared)
    if not rows:
        return StopRate(None, 0)
    prompts = [row["input_ids"][: row["prompt_tokens"]] for row in rows]
    longest = max(len(row["input_ids"]) - row["prompt_tokens"] for row in rows)
    limit = min(math.ceil(LENGTH_FACTOR * longest), generation.max_new_tokens)
    greedy = generation.model_copy(update={"temperature": 0.0, "max_new_tokens": limit})
    prompt_format = PromptFormat(job.model.renderer, prepared.stop_ids, prepared.pad_id)
    model = Model(trainer.model, prompt_format, recipe.training.optimizations != "off")
    arithmetic = trainer.compute_loss_context_manager()  # autocast, as in training
    free_memory()  # of the steps, or the answers' own would come on top of it
    try:
        with reporter.meter("tuned: answers", len(rows)) as meter, arithmetic:
            answers = answer_prompts(model, prompts, greedy, meter.update)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reporter.note(
            "note: no memory left for sample answers; ftcli eval measures how many finish"
        )
        return StopRate(None, 0)
    except ModelError as error:  # the training is done, and is saved
        reporter.note(f"note: no sample answers: {error.message}")
        return StopRate(None, 0)
    return StopRate(sum(answer.stopped for answer in answers) / len(answers), len(answers))


def _sample_rows(folder: Path, prepared: Dataset) -> list[dict[str, Any]]:
    """The first rows that have an answer: with loss_on: all a prompt may be truncated."""
    split: Split = "validation" if prepared.validation.rows else "train"
    rows = read_split(folder, split).select(["input_ids", "prompt_tokens"]).slice(0, SAMPLE_ANSWERS)
    return [row for row in rows.to_pylist() if len(row["input_ids"]) > row["prompt_tokens"]]
