"""One model through its sets of rows: scored, answered, and kept batch by batch."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftcli.config.recipe import Generation, holds_4_bits
from ftcli.console import Reporter
from ftcli.errors import DataError, ModelError
from ftcli.evaluation.rows import Row
from ftcli.evaluation.scores import Counts
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


@dataclass(frozen=True)
class RowSet:
    """Rows to be scored and, where there are prompts, to be answered."""

    label: str
    """As the progress bar names it."""
    rows: tuple[Row, ...]
    prompts: Sequence[Sequence[int]]
    """Token ids, one prompt a row; none: the rows are scored alone."""
    settings: Generation
    rows_at_once: int
    advice: str | None = None
    """What to do where prompt and answer do not fit into the model's context; none: tried."""

    def digest(self) -> str:
        """16 hex digits of everything that a model is given."""
        found = hashlib.sha256()
        for row in self.rows:
            found.update(json.dumps([list(row.input_ids), list(row.labels)]).encode())
        found.update(json.dumps([list(prompt) for prompt in self.prompts]).encode())
        return found.hexdigest()[:16]


class Done:
    """What one model did with a set of rows, on disk with a line for each batch.

    The file's name is a digest of the weights, the rows and the settings: a stopped evaluation
    continues, and every other one that would draw the same answers has them. A changed
    `eval.format` is scored without a model.
    """

    def __init__(self, file: Path, prompt_tokens: Sequence[int] = ()) -> None:
        """`prompt_tokens`: of each row that is answered."""
        self.prompt_tokens = prompt_tokens
        self.losses_by_row: dict[int, tuple[float, int]] = {}
        """Summed loss (nats) and labelled tokens."""
        self.answers_by_row: dict[int, Answer] = {}
        self.seconds = 0.0
        """What the answers took."""
        self._file = file
        for line in read_json_lines(file):
            self._take(line)

    @property
    def losses(self) -> Counts:
        """In the rows' order: loss by labelled token."""
        pairs = [pair for _, pair in sorted(self.losses_by_row.items())]
        return Counts(tuple(loss for loss, _ in pairs), tuple(float(tokens) for _, tokens in pairs))

    @property
    def answers(self) -> list[Answer]:
        """In the rows' order; none of plain texts."""
        return [self.answers_by_row[row] for row in sorted(self.answers_by_row)]

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens by the time that prompts and answers took together."""
        tokens = sum(answer.tokens for answer in self.answers)
        return tokens / self.seconds if self.seconds else None

    def add(self, line: Mapping[str, Any]) -> None:
        """`losses`: row, summed loss (nats), labelled tokens; `answers`: row and the answer's
        fields; `seconds`: what the answers took."""
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
class Worker:
    """A run's base or its tuned model, opened only when something is not known yet."""

    opened: OpenRun
    contract: PromptFormat
    name: ModelName
    held_as: str
    """Type and machine, by which losses and answers differ in their last digits."""
    reporter: Reporter
    was_needed: bool = False

    def do(self, wanted: RowSet) -> Done:
        """Score and answer what earlier evaluations have not; raises FtcliError."""
        file = self._file(wanted)
        if self.name == "base" and not file.is_file():
            self._take_from_a_run_beside(file)
        done = Done(file, [len(prompt) for prompt in wanted.prompts])
        if wanted.advice is not None and len(done.losses_by_row) < len(wanted.rows):
            self._require_context(wanted, wanted.advice)
        label = f"{self.name}: {wanted.label}"
        self._score(wanted, done, f"{label}, loss")
        self._answer(wanted, done, f"{label}, answers")
        return done

    @cached_property
    def model(self) -> Model:
        from ftcli.inference.trained import load_base_model, load_tuned_model

        load = {"base": load_base_model, "tuned": load_tuned_model}[self.name]
        self.was_needed = True
        return load(self.opened.loaded, self.opened.run, self.opened.prepared)

    def _score(self, wanted: RowSet, done: Done, label: str) -> None:
        from ftcli.inference.generation import score_batch, scored_together

        missing = [row for row in range(len(wanted.rows)) if row not in done.losses_by_row]
        with self.reporter.meter(label, len(wanted.rows)) as meter:
            to_do = [wanted.rows[row].scored for row in missing]
            for places in scored_together(self.model, to_do) if missing else ():
                batch = [missing[place] for place in places]
                rows = [wanted.rows[row] for row in batch]
                losses = score_batch(self.model, [row.scored for row in rows])
                _require_numbers(rows, losses)
                done.add({"losses": [[at, *pair] for at, pair in zip(batch, losses, strict=True)]})
                meter.update(len(done.losses_by_row))

    def _answer(self, wanted: RowSet, done: Done, label: str) -> None:
        from ftcli.inference.generation import answer_batch, answer_batches, seed_sampling

        if len(done.answers_by_row) == len(wanted.prompts):
            return
        # Batches are those of the whole set: which rows stand together may tip a near tie.
        batches = answer_batches(self.model, wanted.prompts, wanted.settings, wanted.rows_at_once)
        with self.reporter.meter(label, len(wanted.rows)) as meter:
            for batch in batches:
                if done.answers_by_row.keys() >= set(batch):
                    continue
                started = time.monotonic()
                prompts = [wanted.prompts[row] for row in batch]
                seed_sampling(self.opened.loaded.recipe.training.seed + batch[0])
                answers = answer_batch(self.model, prompts, wanted.settings)
                seconds = time.monotonic() - started
                fields = [astuple(answer) for answer in answers]
                lines = [[row, *each] for row, each in zip(batch, fields, strict=True)]
                done.add({"answers": lines, "seconds": seconds})
                meter.update(len(done.answers_by_row))

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
        """Where the work on these rows is kept: another name when anything would change it."""
        opened, method = self.opened, self.opened.loaded.recipe.method
        of_the_model = self._base()
        if self.name == "tuned":
            of_the_model = {"weights": opened.run.read_manifest()["weights"], "mode": method.mode}
        parts = {
            "version": VERSION,
            **of_the_model,
            "four_bit": holds_4_bits(method),
            "double": method.model_dump().get("double_quantization"),
            "stop_ids": self.contract.stop_ids,
            "pad_id": self.contract.pad_id,
            "held_as": self.held_as,
            "attention": Plan.read(opened.run.plan).model.attention,
            "fast": opened.loaded.recipe.training.fast,
            "rows": wanted.digest(),
            "settings": wanted.settings.model_dump(),
            "rows_at_once": wanted.rows_at_once,
            "seed": opened.loaded.recipe.training.seed if wanted.settings.temperature else None,
        }
        return opened.run.evaluations / WORK / f"{self.name}-{short_digest(parts, 16)}.jsonl"

    def _base(self) -> dict[str, Any]:
        """Weights and config of the base that the run began with; none where they are not known."""
        from ftcli.models.prompt_manifest import read_prompt_manifest

        contract = read_prompt_manifest(self.opened.run)
        return {"weights": contract.base, "config": contract.config}

    def _take_from_a_run_beside(self, file: Path) -> None:
        """Another run of the same base, machine and rows may know already what the base does."""
        run = self.opened.run
        if None in self._base().values():
            return
        beside = run.path.parent.glob(f"*/{run.evaluations.name}/{WORK}/{file.name}")
        with suppress(OSError):
            if known := max(beside, key=lambda each: each.stat().st_size, default=None):
                write_text(file, known.read_text(encoding="utf-8", errors="replace"))


def _require_numbers(rows: Sequence[Row], losses: Sequence[tuple[float, int]]) -> None:
    for row, (loss, _) in zip(rows, losses, strict=True):
        if not math.isfinite(loss):
            raise ModelError(
                "loss_not_finite",
                f"the loss of this row is {loss}: the model's weights or its arithmetic have run "
                "over; look at the run's metrics.jsonl, and train it anew at a lower learning rate",
                file=row.file,
                line=row.line,
            )
