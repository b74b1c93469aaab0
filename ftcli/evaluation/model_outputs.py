"""What a model makes of sets of rows: losses and answers, kept on disk batch by batch."""

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

# Goes up when the same weights would give other losses or answers.
VERSION = 6
WORK = "work"
ModelName = Literal["base", "tuned"]


class ModelOutputs:
    """What one model made of a set of rows, on disk with a line for each batch.

    The file's name is a digest of weights, rows and settings: a stopped evaluation continues, and
    any other evaluation that needs the same answers finds them. A changed `eval.format` is scored
    without a model.
    """

    def __init__(self, file: Path, prompt_tokens: Sequence[int] = ()) -> None:
        """`prompt_tokens`: of each row that is answered."""
        self.prompt_tokens = prompt_tokens
        self.losses_by_row: dict[int, tuple[float, int]] = {}
        """Summed loss (nats) and labelled tokens."""
        self.answers_by_row: dict[int, Answer] = {}
        self.seconds = 0.0
        """Time for the answers."""
        self._file = file
        for line in read_json_lines(file):
            self._take(line)

    @property
    def losses(self) -> Counts:
        """Loss by labelled token, in the rows' order."""
        pairs = [pair for _, pair in sorted(self.losses_by_row.items())]
        return Counts(tuple(loss for loss, _ in pairs), tuple(float(tokens) for _, tokens in pairs))

    @property
    def answers(self) -> list[Answer]:
        """In the rows' order; empty for plain texts."""
        return [self.answers_by_row[row] for row in sorted(self.answers_by_row)]

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens by the time of prompts and answers together."""
        tokens = sum(answer.tokens for answer in self.answers)
        return tokens / self.seconds if self.seconds else None

    def add(self, line: Mapping[str, Any]) -> None:
        """`losses`: row, summed loss (nats), labelled tokens; `answers`: row and the answer's
        fields; `seconds`: time for the answers."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        append_json(self._file, line)
        self._take(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        from ftcli.inference.generation import Answer

        for row, loss, tokens in line.get("losses", ()):
            self.losses_by_row[row] = (loss, tokens)
        for row, *fields in line.get("answers", ()):
            self.answers_by_row[row] = Answer(*fields)
        self.seconds += line.get("seconds", 0.0)


@dataclass
class Progress:
    """One bar for all models and sets of an evaluation, in tokens scored or generated at most."""

    meter: Meter
    parts: int
    """Sets of rows of both models."""
    part: int = 0
    done: int = 0
    label: str = ""

    def begin(self, label: str) -> None:
        self.part, self.label = self.part + 1, label
        self.show()

    def add(self, tokens: int) -> None:
        self.done += tokens
        self.show()

    def show(self, further: int = 0) -> None:
        self.meter.update(self.done + further, f"{self.part} of {self.parts}: {self.label}")

    @contextmanager
    def generating(self, model: Model, rows: int, max_new_tokens: int) -> Iterator[None]:
        """Count the tokens of a batch while it is generated: each calls the embedding once."""
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
    """Data type and machine: losses and answers depend on them in their last digits."""
    progress: Progress
    was_opened: bool = False

    def outputs(self, rows: RowSet) -> ModelOutputs:
        """Score and answer what earlier evaluations have not; raises FtcliError."""
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

    def _score(self, wanted: RowSet, found: ModelOutputs) -> None:
        from ftcli.inference.generation import score_batch, scored_together

        missing = [row for row in range(len(wanted.rows)) if row not in found.losses_by_row]
        done = (len(wanted.rows[row].input_ids) for row in found.losses_by_row)
        self.progress.add(sum(done))
        to_do = [wanted.rows[row].scored for row in missing]
        for places in scored_together(self.model, to_do) if missing else ():
            batch = [missing[place] for place in places]
            rows = [wanted.rows[row] for row in batch]
            losses = score_batch(self.model, [row.scored for row in rows])
            _require_finite(rows, losses)
            found.add({"losses": [[at, *pair] for at, pair in zip(batch, losses, strict=True)]})
            self.progress.add(sum(len(row.input_ids) for row in rows))

    def _answer(self, wanted: RowSet, found: ModelOutputs) -> None:
        from ftcli.inference.generation import answer_batch, answer_batches, seed_sampling

        most = wanted.settings.max_new_tokens
        if len(found.answers_by_row) == len(wanted.prompts):
            self.progress.add(len(wanted.prompts) * most)
            return
        # Batches are those of the whole set: which rows stand together may tip a near tie.
        for batch in answer_batches(self.model, wanted.prompts, wanted.settings, wanted.batch_size):
            if found.answers_by_row.keys() >= set(batch):
                self.progress.add(len(batch) * most)
                continue
            started = time.monotonic()
            prompts = [wanted.prompts[row] for row in batch]
            seed_sampling(self.opened.recipe.training.seed + batch[0])
            with self.progress.generating(self.model, len(batch), most):
                answers = answer_batch(self.model, prompts, wanted.settings)
            seconds = time.monotonic() - started
            lines = [[row, *astuple(each)] for row, each in zip(batch, answers, strict=True)]
            found.add({"answers": lines, "seconds": seconds})

    def _require_context(self, wanted: RowSet, advice: str) -> None:
        from ftcli.inference.generation import context_tokens

        longest = max(map(len, wanted.prompts))
        answer, context = wanted.settings.max_new_tokens, context_tokens(self.model)
        if context is not None and longest + answer > context:
            raise DataError(
                "prompt_too_long",
                f"{wanted.label}: prompts of up to {longest:,} tokens and answers of up to "
                f"{answer:,} are more than the model's context of {context:,}; {advice}",
            )

    def _file(self, wanted: RowSet) -> Path:
        """Where the outputs are kept; its name changes with everything that would change them."""
        opened, method = self.opened, self.opened.recipe.method
        of_the_model = self._base()
        if self.name == "tuned":
            of_the_model = {"weights": opened.run.read_manifest()["weights"], "mode": method.mode}
        parts = {
            "version": VERSION,
            **of_the_model,
            "four_bit": has_4_bit_base(method),
            "double": method.model_dump().get("double_quantization"),
            "stop_ids": self.prompt_format.stop_ids,
            "pad_id": self.prompt_format.pad_id,
            "dtype_and_device": self.dtype_and_device,
            "attention": Plan.read(opened.run.plan).model.attention,
            "optimizations": opened.recipe.training.optimizations,
            "rows": wanted.digest,
            "settings": wanted.settings.model_dump(),
            "batch_size": wanted.batch_size,
            "seed": opened.recipe.training.seed if wanted.settings.temperature else None,
        }
        return opened.run.evaluations / WORK / f"{self.name}-{short_digest(parts, 16)}.jsonl"

    def _base(self) -> dict[str, Any]:
        """Digests of the run's base: weights and config; None where they are not known."""
        from ftcli.models.prompt_manifest import read_prompt_manifest

        prompt_format = read_prompt_manifest(self.opened.run)
        return {"weights": prompt_format.base, "config": prompt_format.config}

    def _copy_from_sibling_run(self, file: Path) -> None:
        """Another run of the same base, machine and rows may have the base's outputs already."""
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
                f"the loss of this row is {loss}: weights or activations of the model overflowed; "
                "look at the run's metrics.jsonl, and train again at a lower learning rate",
                file=row.file,
                line=row.line,
            )
