"""A model's losses and answers on a set of rows, written to disk batch by batch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftcli.config.recipe import has_4_bit_base
from ftcli.console import Meter
from ftcli.errors import DataError, ModelError
from ftcli.evaluation.eval_rows import Row
from ftcli.evaluation.row_sets import RowSet
from ftcli.evaluation.statistics import Counts
from ftcli.runs.atomic import append_json, read_json_lines, short_digest, write_text
from ftcli.training.opening import OpenRun
from ftcli.training.plan.plan import Plan

if TYPE_CHECKING:
    from ftcli.inference.generation import Answer, Model
    from ftcli.models.prompt_manifest import PromptFormat

# Changes when the same weights would give other losses or answers.
VERSION = 6
WORK = "work"
ModelName = Literal["base", "tuned"]


class ModelOutputs:
    """One model's losses and answers on a set of rows; a line of the file for each batch.

    The file's name is a digest of weights, rows and settings, so that a stopped evaluation resumes
    and others reuse the answers: a changed `eval.format` is scored without a model.
    """

    def __init__(self, file: Path, prompt_tokens: Sequence[int] = ()) -> None:
        """`prompt_tokens`: of each answered row."""
        self.prompt_tokens = prompt_tokens
        self.losses_by_row: dict[int, tuple[float, int]] = {}
        """Summed loss (nats) and label tokens."""
        self.answers_by_row: dict[int, Answer] = {}
        self.seconds = 0.0
        """Time for the answers."""
        self._file = file
        for line in read_json_lines(file):
            self._include(line)

    @property
    def losses(self) -> Counts:
        """Loss per label token, in the rows' order."""
        pairs = [pair for _, pair in sorted(self.losses_by_row.items())]
        return Counts(tuple(loss for loss, _ in pairs), tuple(float(tokens) for _, tokens in pairs))

    @property
    def answers(self) -> list[Answer]:
        """In the rows' order; empty for plain texts."""
        return [self.answers_by_row[row] for row in sorted(self.answers_by_row)]

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens per second of prefill and decoding together."""
        tokens = sum(answer.tokens for answer in self.answers)
        return tokens / self.seconds if self.seconds else None

    def add(self, line: Mapping[str, Any]) -> None:
        """`losses`: row, summed loss (nats), label tokens; `answers`: row and the answer's fields;
        `seconds`: time for the answers."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        append_json(self._file, line)
        self._include(line)

    def _include(self, line: Mapping[str, Any]) -> None:
        from ftcli.inference.generation import Answer

        for row, loss, tokens in line.get("losses", ()):
            self.losses_by_row[row] = (loss, tokens)
        for row, *fields in line.get("answers", ()):
            self.answers_by_row[row] = Answer(*fields)
        self.seconds += line.get("seconds", 0.0)


@dataclass
class Progress:
    """One bar for all models and sets: tokens scored, and the most that can be generated."""

    meter: Meter
    stages: int
    """Sets of rows, of both models together."""
    stage: int = 0
    done: int = 0
    label: str = ""

    def begin(self, label: str) -> None:
        self.stage, self.label = self.stage + 1, label
        self.show()

    def add(self, tokens: int) -> None:
        self.done += tokens
        self.show()

    def show(self, further: int = 0) -> None:
        self.meter.update(self.done + further, f"{self.stage} of {self.stages}: {self.label}")

    @contextmanager
    def generating(self, model: Model, rows: int, max_new_tokens: int) -> Iterator[None]:
        """Count the steps of a batch during generation: each calls the embedding once."""
        steps = 0

        def count(_: object, inputs: tuple[Any, ...]) -> None:
            nonlocal steps
            steps += inputs[0].shape[-1] == 1 if inputs else 0
            self.show(min(steps, max_new_tokens) * rows)

        hook = model.network.get_input_embeddings().register_forward_pre_hook(count)
        try:
            yield
        finally:
            hook.remove()
        self.add(max_new_tokens * rows)


@dataclass
class ModelRunner:
    """The base or the tuned model of a run, opened only when an output is missing."""

    opened: OpenRun
    prompt_format: PromptFormat
    name: ModelName
    dtype_and_device: str
    """Losses and answers depend on them in their last digits."""
    progress: Progress
    was_opened: bool = False

    def outputs(self, rows: RowSet) -> ModelOutputs:
        """Score and answer what no earlier evaluation has; raises FtcliError."""
        file = self._file(rows)
        if self.name == "base" and not file.is_file():
            self._copy_from_sibling_run(file)
        found = ModelOutputs(file, [len(prompt) for prompt in rows.prompts])
        if rows.too_long is not None and len(found.losses_by_row) < len(rows.rows):
            self._require_context(rows, rows.too_long)
        self.progress.begin(f"{self.name}, {rows.label}")
        self._score(rows, found)
        self._answer(rows, found)
        return found

    @cached_property
    def model(self) -> Model:
        from ftcli.inference.open_model import load_base_model, load_tuned_model

        load = {"base": load_base_model, "tuned": load_tuned_model}[self.name]
        self.was_opened = True
        return load(self.opened)

    def _score(self, row_set: RowSet, found: ModelOutputs) -> None:
        from ftcli.inference.generation import score_batch, scoring_batches

        missing = [row for row in range(len(row_set.rows)) if row not in found.losses_by_row]
        done = (len(row_set.rows[row].input_ids) for row in found.losses_by_row)
        self.progress.add(sum(done))
        to_do = [row_set.rows[row].scored for row in missing]
        for places in scoring_batches(self.model, to_do) if missing else ():
            batch = [missing[place] for place in places]
            rows = [row_set.rows[row] for row in batch]
            losses = score_batch(self.model, [row.scored for row in rows])
            _require_finite(rows, losses)
            found.add({"losses": [[at, *pair] for at, pair in zip(batch, losses, strict=True)]})
            self.progress.add(sum(len(row.input_ids) for row in rows))

    def _answer(self, row_set: RowSet, found: ModelOutputs) -> None:
        from ftcli.inference.generation import answer_batch, answer_batches, seed_sampling

        max_tokens = row_set.settings.max_new_tokens
        if len(found.answers_by_row) == len(row_set.prompts):
            self.progress.add(len(row_set.prompts) * max_tokens)
            return
        # The batches of the whole set, resumed or not: other batches may turn a near tie.
        for batch in answer_batches(
            self.model, row_set.prompts, row_set.settings, row_set.batch_size
        ):
            if found.answers_by_row.keys() >= set(batch):
                self.progress.add(len(batch) * max_tokens)
                continue
            started = time.monotonic()
            prompts = [row_set.prompts[row] for row in batch]
            seed_sampling(self.opened.recipe.training.seed + batch[0])
            with self.progress.generating(self.model, len(batch), max_tokens):
                answers = answer_batch(self.model, prompts, row_set.settings)
            seconds = time.monotonic() - started
            lines = [[row, *astuple(each)] for row, each in zip(batch, answers, strict=True)]
            found.add({"answers": lines, "seconds": seconds})

    def _require_context(self, row_set: RowSet, advice: str) -> None:
        from ftcli.inference.generation import context_tokens

        longest = max(map(len, row_set.prompts))
        answer, context = row_set.settings.max_new_tokens, context_tokens(self.model)
        if context is not None and longest + answer > context:
            raise DataError(
                "prompt_too_long",
                f"{row_set.label}: prompts of up to {longest:,} tokens and answers of up to "
                f"{answer:,} are more than the model's context of {context:,}; {advice}",
            )

    def _file(self, row_set: RowSet) -> Path:
        """Its name changes with everything that would change the outputs."""
        opened, method = self.opened, self.opened.recipe.method
        model = self._base()
        if self.name == "tuned":
            model = {"weights": opened.run.read_manifest()["weights"], "mode": method.mode}
        parts = {
            "version": VERSION,
            **model,
            "four_bit": has_4_bit_base(method),
            "double": method.model_dump().get("double_quantization"),
            "stop_ids": self.prompt_format.stop_ids,
            "pad_id": self.prompt_format.pad_id,
            "dtype_and_device": self.dtype_and_device,
            "attention": Plan.read(opened.run.plan).model.attention,
            "optimizations": opened.recipe.training.optimizations,
            "rows": row_set.digest,
            "settings": row_set.settings.model_dump(),
            "batch_size": row_set.batch_size,
            "seed": opened.recipe.training.seed if row_set.settings.temperature else None,
        }
        return opened.run.evaluations / WORK / f"{self.name}-{short_digest(parts, 16)}.jsonl"

    def _base(self) -> dict[str, Any]:
        """Digests of the run's base: weights and config; None: not known."""
        from ftcli.models.prompt_manifest import read_prompt_manifest

        prompt_format = read_prompt_manifest(self.opened.run)
        return {"weights": prompt_format.base, "config": prompt_format.config}

    def _copy_from_sibling_run(self, file: Path) -> None:
        """Reuse another run's outputs of the same base on the same rows and machine."""
        run = self.opened.run
        if None in self._base().values():
            return
        siblings = run.path.parent.glob(f"*/{run.evaluations.name}/{WORK}/{file.name}")
        with suppress(OSError):
            if known := max(siblings, key=lambda each: each.stat().st_size, default=None):
                write_text(file, known.read_text(encoding="utf-8", errors="replace"))


def _require_finite(rows: Sequence[Row], losses: Sequence[tuple[float, int]]) -> None:
    for row, (loss, _) in zip(rows, losses, strict=True):
        if not math.isfinite(loss):
            raise ModelError(
                "loss_not_finite",
                f"the loss of this row is {loss}: weights or activations overflowed; see the run's "
                "metrics.jsonl, and train again at a lower learning rate",
                file=row.file,
                line=row.line,
            )
