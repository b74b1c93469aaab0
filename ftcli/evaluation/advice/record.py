"""advice.json: what the rows are like, what the base does with them, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ftcli.data.prepared import Split
from ftcli.runs.atomic import write_json

Kind = Literal["labels", "json", "sql", "lines", "sections", "opening", "length", "free text"]
Verdict = Literal["prompt", "fine-tune", "fine-tune if called often"]


@dataclass(frozen=True)
class Duplicates:
    """Rows that nearly equal a training row; rows are named `file:line`."""

    rows: int
    rows_looked_at: int
    pairs_shown: tuple[tuple[str, str, float], ...]
    """The earlier row, the later one, and their Jaccard similarity."""


@dataclass(frozen=True)
class NearDuplicates(Duplicates):
    """Those of the training rows, and of held-out rows."""

    share: float
    held_out: Duplicates
    disagreeing: int
    """Near duplicates with another short answer."""


@dataclass(frozen=True)
class AnswerForm:
    """What answers have in common."""

    kind: Kind
    share: float
    """Of the answers that were read; 0 for free text."""
    detail: str
    eval_format: Mapping[str, Any] | None
    """The block of a recipe that measures the form; none: no block does."""
    fixed: bool = False


@dataclass(frozen=True)
class Contradictions:
    """Prompts that are equal but for case and white space, with answers that are not."""

    prompts: int
    rows: int
    shown: tuple[tuple[str, ...], ...]
    """`file:line` of a few rows with different answers, of the first such prompts."""


@dataclass(frozen=True)
class Spread:
    """Tokens: half of the rows have no more than the median, nine of ten no more than p90."""

    median: int
    p90: int
    max: int
    total: int


@dataclass(frozen=True)
class Histogram:
    """Rows from each edge up to the next; the last edge is above every row."""

    edges: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Lengths:
    """Lengths of all rows, in tokens."""

    prompt: Spread
    answer: Spread
    histogram: Histogram


@dataclass(frozen=True)
class Instruction:
    """What all prompts begin with."""

    tokens: int
    share_of_prompts: float
    share_of_rows: float
    begins: str


@dataclass(frozen=True)
class Probe:
    """Scores of the base on a few rows, with examples in its prompt and without."""

    key: str
    """Changes with everything that the scores depend on."""
    rows: int
    rows_from: Mapping[Split, int]
    shots: int
    """Examples in a prompt: fewer than were asked for where the context holds no more."""
    shots_asked: int
    format: Mapping[str, Any] | None
    decided_by: Mapping[str, str]
    """The scores, with their labels, on which the verdict rests."""
    zero_shot: Mapping[str, Any]
    """Scores with their intervals, named as in `ftcli eval`."""
    few_shot: Mapping[str, Any]


class Advice(BaseModel):
    """All of advice.json; plain texts have only rows and lengths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[3] = 3  # goes up when the same rows would give other statistics
    fingerprint: str
    rows: int
    near_duplicates: NearDuplicates | None = None
    format: AnswerForm | None = None
    same_prompt_different_answers: Contradictions | None = None
    lengths: Lengths | None = None
    instruction: Instruction | None = None
    probe: Probe | None = None
    verdict: Verdict = "fine-tune"
    sentences: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Fields of advice.json as `prepare --json` shows them."""
        return self.model_dump(mode="json", exclude={"version", "fingerprint"})

    def write(self, folder: Path) -> None:
        """Into the folder of the prepared rows."""
        write_json(advice_file(folder), self.model_dump(mode="json"))


def advice_file(folder: Path) -> Path:
    """Where the advice stands in a data folder."""
    return folder / "advice.json"


def read_advice(folder: Path, fingerprint: str) -> Advice | None:
    """Earlier advice on the same rows; none: it is missing, old, or cannot be read."""
    try:
        kept = Advice.model_validate_json(advice_file(folder).read_bytes())
    except (OSError, ValidationError):
        return None
    return kept if kept.fingerprint == fingerprint else None
