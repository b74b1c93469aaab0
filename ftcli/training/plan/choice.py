"""A decision with its reason, and a whole plan of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Generic, TypeVar

from ftcli.data.prepared import Prepared
from ftcli.memory import Choices, Estimate
from ftcli.memory.choices import Attention, Optimizer, Precision, WeightsDtype
from ftcli.memory.hardware import Hardware
from ftcli.runs.training_records import PlanRecord

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A decision and why it was taken."""

    value: T
    reason: str


@dataclass(frozen=True)
class Profile:
    """What the plan has to know of the data."""

    rows: int
    tokens: int
    longest_tokens: int
    labelled_share: float
    validation_tokens: int
    replayed_rows: int = 0
    """Of `rows`, those of data.replay."""
    shared_tokens: int = 0
    """Tokens with which a row usually begins as others do."""
    common_tokens: int = 0
    """Tokens with which every row begins; packed rows that may share them hold them once."""

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.rows

    def packed_tokens(self, rows: int) -> int:
        """Most tokens of so many packed rows."""
        return self.longest_tokens + (rows - 1) * self._own_tokens

    def packed_rows(self, tokens: int) -> Fraction:
        """How many of the longest rows come to so many packed tokens."""
        return 1 + Fraction(tokens - self.longest_tokens, self._own_tokens)

    def packed_share(self, tokens: int) -> float:
        """Labels by so many packed tokens; of what is there once, each row has its own."""
        if not self.common_tokens:
            return self.labelled_share
        unpacked = self.packed_rows(tokens) * self.longest_tokens
        return self.labelled_share * float(unpacked / tokens)

    @property
    def _own_tokens(self) -> int:
        """Of the longest row, those that not every row begins with."""
        return max(1, self.longest_tokens - self.common_tokens)

    @property
    def rows_in_words(self) -> str:
        """`1000 rows`, or `1,888 task + 333 replay rows`."""
        if not self.replayed_rows:
            return f"{self.rows} rows"
        return f"{self.rows - self.replayed_rows:,} task + {self.replayed_rows:,} replay rows"


@dataclass(frozen=True)
class Plan:
    """One training, decided. `accumulation` × `micro_batch` is the recipe's batch size."""

    hardware: Hardware
    precision: Choice[Precision]
    weights_dtype: Choice[WeightsDtype]
    attention: Choice[Attention]
    optimizer: Choice[Optimizer]
    learning_rate: Choice[float]
    micro_batch: Choice[int]
    accumulation: int
    packing: Choice[int]
    """Tokens of a micro-batch of packed rows; 0: rows are padded."""
    shared_prefix: Choice[bool] | None
    common_tokens: int
    """Tokens with which every row begins, once in a micro-batch; 0 where they are not shared."""
    fused_lora: Choice[bool] | None
    liger: Choice[bool] | None
    dequantised: Choice[bool] | None
    gradient_checkpointing: Choice[bool]
    steps: Choice[int]
    epochs: float
    warmup_steps: int
    eval_every: Choice[int]
    save_every: Choice[int]
    estimated: Choices
    """What the estimate is of."""
    estimate: Estimate
    replay: Choice[int] | None = None
    """Rows that are replayed in each epoch."""
    hold: Choice[float] | None = None
    """How strongly the trained weights are pulled to their start."""

    def choices(self) -> Mapping[str, Choice[Any]]:
        """The decisions by name, in the order in which they are shown."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in found.items() if isinstance(value, Choice)}

    def headline(self) -> str:
        """The plan in one line, the machine first."""
        checkpointing = "" if self.gradient_checkpointing.value else "no "
        peak, free = self.estimate.peak_bytes / 1e9, self.hardware.free_bytes / 1e9
        return (
            f"{self.hardware.title} · {self.precision.value} · {self.rows_in_words()} · "
            f"{checkpointing}checkpointing ({peak:.1f} of {free:.1f} GB) · "
            f"{self.steps.value} steps{self._replayed()}"
        )

    def rows_in_words(self) -> str:
        """`micro-batch 4 × 4 = 16 rows a step`, or `16 rows a step, packed to 1,024 tokens`."""
        rows = self.micro_batch.value * self.accumulation
        if self.packing.value and self.accumulation == 1:
            return f"{rows} rows a step, packed to {self.packing.value:,} tokens"
        batch = f"micro-batch {self.micro_batch.value} × {self.accumulation} = {rows} rows a step"
        return f"{batch}, packed" if self.packing.value else batch

    def _replayed(self) -> str:
        return "" if self.replay is None else f" · {self.replay.reason}"

    def record(self) -> PlanRecord:
        """plan.json: decisions with reasons, and the estimate."""
        plain = {"accumulation": self.accumulation, "warmup_steps": self.warmup_steps}
        decided = {name: asdict(choice) for name, choice in self.choices().items()}
        return PlanRecord.model_validate(decided | plain | {"estimate": asdict(self.estimate)})

    def as_json(self) -> dict[str, Any]:
        """As plan.json holds it; decisions that were not to be taken are left out."""
        return self.record().model_dump(mode="json", exclude_none=True)


def profile_of(prepared: Prepared) -> Profile:
    """The profile of prepared data."""
    train = prepared.trained_on
    return Profile(
        rows=train.rows,
        tokens=train.tokens,
        longest_tokens=prepared.longest.tokens,
        labelled_share=train.trained_tokens / train.tokens,
        validation_tokens=prepared.validation.tokens,
        replayed_rows=prepared.replay.rows if prepared.replay is not None else 0,
        shared_tokens=prepared.shared_tokens,
        common_tokens=prepared.common_tokens,
    )
