"""A plan: the recipe's sections with every `auto` resolved, the reasons, and the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from typing import Any, Literal, TypeVar, assert_never

from ftcli.config.method import (
    Bottleneck,
    Full,
    Lora,
    LoraKeys,
    Method,
    PrefixTuning,
    PromptTuning,
    Qlora,
)
from ftcli.config.recipe import Model, Training
from ftcli.config.section import PositiveCount, Rate
from ftcli.data.dataset import Dataset
from ftcli.memory import Choices, Estimate
from ftcli.memory.choices import Attention, Optimizer, Precision, spared
from ftcli.memory.hardware import Hardware
from ftcli.runs.results import Result
from ftcli.runs.training_records import TrainingRecord
from ftcli.shell import GIB

T = TypeVar("T")
Decided = tuple[T, str]
"""A value, and the reason for it."""
AS_SET = "set in the recipe"

# Besides the newest checkpoints: the best one, and the next one while it is written.
MORE_CHECKPOINTS = 2
# Least bytes per weight of a full model, which is saved in the type of its base's files.
STORED_BYTES = 2


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of the prepared rows that a plan depends on."""

    rows: int
    tokens: int
    longest_tokens: int
    label_share: float
    validation_tokens: int
    replayed_rows: int = 0
    """Of `rows`, the rows of data.replay."""
    shared_tokens: int = 0
    """Typical length of a prefix that a row shares with others."""
    common_tokens: int = 0
    """Length of the prefix of all rows; packed rows may store it once."""

    @classmethod
    def of(cls, prepared: Dataset) -> RowStatistics:
        train = prepared.epoch_counts
        return cls(
            rows=train.rows,
            tokens=train.tokens,
            longest_tokens=prepared.longest.tokens,
            label_share=train.label_tokens / train.tokens,
            validation_tokens=prepared.validation.tokens,
            replayed_rows=prepared.replay.rows if prepared.replay is not None else 0,
            shared_tokens=prepared.shared_tokens,
            common_tokens=prepared.common_tokens,
        )

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.rows

    def packed_tokens(self, rows: int) -> int:
        """Most tokens of this many packed rows."""
        return self.longest_tokens + (rows - 1) * self._own_tokens

    def packed_rows(self, tokens: int) -> Fraction:
        """How many of the longest rows fill this many packed tokens."""
        return 1 + Fraction(tokens - self.longest_tokens, self._own_tokens)

    def packed_share(self, tokens: int) -> float:
        """Labels per packed token; each row has its own labels, and common tokens count once."""
        if not self.common_tokens:
            return self.label_share
        unpacked = self.packed_rows(tokens) * self.longest_tokens
        return self.label_share * float(unpacked / tokens)

    def repeated_keys(self, tokens: int) -> int:
        """Common tokens that the rows in this many packed tokens see: each sees its own copy."""
        return math.floor(self.packed_rows(tokens)) * self.common_tokens

    @property
    def _own_tokens(self) -> int:
        """Tokens of the longest row after the prefix of all rows."""
        return max(1, self.longest_tokens - self.common_tokens)

    @property
    def in_words(self) -> str:
        """`1000 rows`, or `1,888 task + 333 replay rows`."""
        if not self.replayed_rows:
            return f"{self.rows} rows"
        return f"{self.rows - self.replayed_rows:,} task + {self.replayed_rows:,} replay rows"


class PlannedModel(Model):
    """`model:` without `auto`."""

    attention: Attention
    dtype: Literal["bf16", "fp16", "fp32"]


class PlannedTraining(Training):
    """`training:` without `auto`."""

    precision: Precision
    optimizer: Optimizer
    learning_rate: Rate
    micro_batch_size: PositiveCount
    packing: Literal[False] | PositiveCount
    """Most tokens of a micro-batch of packed rows; false: rows are padded."""
    gradient_checkpointing: bool
    embedding_offload: bool = False
    activation_offload: bool = False
    tiled_mlp: bool = False
    eval_steps: PositiveCount
    save_steps: PositiveCount


class Optimizations(Result):
    """Optimisations of docs/performance.md; None: not applicable."""

    shared_prefix: bool | None
    """Common prefixes of packed rows are computed once."""
    fused_lora: bool | None
    liger: bool | None
    dequantised: bool | None
    """Dequantised 4-bit weights are cached."""


class Plan(TrainingRecord):
    """`plan.json`: all decisions of one training."""

    model: PlannedModel
    method: Method
    training: PlannedTraining
    optimizations: Optimizations
    steps: int
    """Optimizer steps, including those of replayed rows."""
    epochs: float
    warmup_steps: int
    rows: RowStatistics
    hardware: Hardware
    reasons: dict[str, str]
    """Key of a decision, as `training.precision` or `optimizations.liger` → its reason, in the
    order in which they are shown."""
    estimate: Estimate

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step if rows are padded."""
        return self.training.batch_size // self.training.micro_batch_size

    @property
    def common_tokens(self) -> int:
        """Length of the prefix of all rows, stored once per micro-batch; 0: not shared."""
        return self.rows.common_tokens if self.optimizations.shared_prefix else 0

    @property
    def estimated(self) -> Choices:
        """Inputs of the memory estimate."""
        taken = self.optimizations
        choices = replace(
            choices_of(self.model, self.method, self.training, self.rows, self.hardware),
            liger=taken.liger is True,
            keeps_dequantised=taken.dequantised is True,
        )
        if not self.training.packing:
            return choices
        rows = replace(self.rows, common_tokens=self.common_tokens)
        return packed(choices, rows, self.training.packing, self.training.batch_size)

    def decisions(self) -> Iterator[tuple[str, Any, str]]:
        """(key, value, reason) of every decision."""
        for key, reason in self.reasons.items():
            value: Any = reduce(getattr, key.split("."), self)
            yield key, value, reason

    def headline(self) -> str:
        """The plan in one line, the machine first."""
        checkpointing = "on" if self.training.gradient_checkpointing else "off"
        taken = self.training
        checkpointing += spared(taken.tiled_mlp, taken.activation_offload, taken.embedding_offload)
        peak, free = self.estimate.peak_bytes / GIB, self.hardware.free_bytes / GIB
        replayed = f" · {self.rows.in_words}" if self.rows.replayed_rows else ""
        return (
            f"{self.hardware.title} · {self.training.precision} · {self.step_text()} · "
            f"gradient checkpointing {checkpointing} ({peak:.1f} of {free:.1f} GiB) · "
            f"{self.steps} steps{replayed}"
        )

    def step_text(self) -> str:
        """`micro-batch 4 × 4 = 16 rows per step`, or `16 rows per step, packed to 1,024 tokens`."""
        rows, packing = self.training.batch_size, self.training.packing
        if packing and self.accumulation == 1:
            return f"{rows} rows per step, packed to {packing:,} tokens"
        micro_batch = self.training.micro_batch_size
        batch = f"micro-batch {micro_batch} × {self.accumulation} = {rows} rows per step"
        return f"{batch}, packed" if packing else batch

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes on disk: the trained weights with the states of the optimizer."""
        each = 2 if self.training.precision == "pure-bf16" else 4
        states = self.estimate.breakdown["optimizer"] + self.estimate.managed_bytes
        # L2-SP: an adapter's starting weights are random or another run's, and are saved too.
        full = isinstance(self.method, Full)
        starts = 0 if full else self.estimate.breakdown.get("l2_sp", 0)
        return self.estimate.trainable_parameters * each + states + starts

    def run_bytes(self, more_bytes: int = 0) -> int:
        """Most bytes on disk of the checkpoints and of the trained weights.

        `more_bytes` is saved with the trained weights: tokenizer, template, configuration.
        """
        each = STORED_BYTES if isinstance(self.method, Full) else 4
        weights = self.estimate.trainable_parameters * each + more_bytes
        # At most one save per validation, per save_steps, and at the end.
        saves = self.steps // self.training.save_steps + self.steps // self.training.eval_steps + 1
        kept = min(self.training.save_total_limit + MORE_CHECKPOINTS, saves)
        return self.checkpoint_bytes * kept + weights


def choices_of(
    model: Model,
    method: Method,
    training: Training,
    rows: RowStatistics,
    hardware: Hardware | None = None,
) -> Choices:
    """The sections as the estimator's inputs.

    `auto` is the smallest value, bf16 and sdpa; without hardware the device is a GPU.
    """
    micro_batch = 1 if training.micro_batch_size == "auto" else training.micro_batch_size
    return Choices(
        **choices_of_method(method),
        l2_sp=training.l2_sp > 0,
        precision="bf16" if training.precision == "auto" else training.precision,
        weights_dtype=model.dtype,
        optimizer="adamw" if training.optimizer == "auto" else training.optimizer,
        attention="sdpa" if model.attention == "auto" else model.attention,
        seq_len=rows.longest_tokens,
        micro_batch=micro_batch,
        gradient_accumulation=training.batch_size // micro_batch,
        gradient_checkpointing=training.gradient_checkpointing is not False,
        embedding_offload=training.embedding_offload is True,
        activation_offload=training.activation_offload is True,
        tiled_mlp=training.tiled_mlp is True,
        label_share=rows.label_share,
        device="cuda" if hardware is None or hardware.kind == "cuda" else "cpu",
        optimized=why_not_optimized(training, hardware) is None,
        shares_keys=hardware is None or hardware.shares_keys,
    )


def why_not_optimized(training: Training, hardware: Hardware | None) -> str | None:
    """Why all optimisations are off; None if they may be on. Without hardware: a known GPU."""
    asked = training.optimizations
    if asked == "off":
        return "training.optimizations: off"
    if hardware is not None and hardware.rocm and asked != "all":
        return "not tested on ROCm; training.optimizations: all turns it on"
    return None


def choices_of_method(method: Method) -> dict[str, Any]:
    """The method as fields of `Choices`."""
    match method:
        case Full():
            return {"mode": "full"}
        case Lora():
            return _choices_of_lora(method)
        case Qlora():
            return _choices_of_lora(method) | {"double_quantization": method.double_quantization}
        case Bottleneck():
            fields = {"bottleneck": method.bottleneck, "placement": method.placement}
        case PrefixTuning():
            fields = {"virtual_tokens": method.virtual_tokens, "projection": method.projection}
        case PromptTuning():
            fields = {"virtual_tokens": method.virtual_tokens}
        case _:
            assert_never(method)
    return {"mode": method.mode, "four_bit_base": method.quantization == "nf4", **fields}


def _choices_of_lora(method: LoraKeys) -> dict[str, Any]:
    targets = method.target_modules
    return {
        "mode": "qlora" if isinstance(method, Qlora) else "lora",
        "rank": method.rank,
        "dropout": method.dropout,
        "target_modules": targets if isinstance(targets, str) else tuple(targets),
        "layers": None if method.layers is None else tuple(sorted(set(method.layers))),
        "rank_pattern": tuple(method.rank_pattern.items()),  # the first key that matches counts
        "experts": method.experts,
        "dora": method.dora,
        "modules_to_save": tuple(method.modules_to_save),
    }


def packed(choices: Choices, rows: RowStatistics, tokens: int, batch_size: int) -> Choices:
    """Micro-batches of packed rows, each one sequence of `tokens`."""
    return replace(
        choices,
        packed_rows=True,
        micro_batch=1,
        seq_len=tokens,
        longest_row=rows.longest_tokens,
        label_share=rows.packed_share(tokens),
        repeated_keys=rows.repeated_keys(tokens) if choices.device == "cuda" else 0,
        gradient_accumulation=math.ceil(batch_size / rows.packed_rows(tokens)),
    )


def short_key(key: str) -> str:
    """`training.eval_steps` → `eval steps`, as in tables."""
    return key.partition(".")[2].replace("_", " ").replace(".", " ") or key
