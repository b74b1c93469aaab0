"""advice.json: what the rows are like, what the base does with them, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ftcli.disk import write_json
from ftcli.metrics.dataset.answers import AnswerForm
from ftcli.metrics.dataset.rows import Contradictions, Lengths, NearDuplicates
from ftcli.prepared import Split

Verdict = Literal["prompt", "fine-tune", "fine-tune if called often"]


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


def write_advice(advice: Advice, folder: Path) -> None:
    """Write it to the folder of the prepared rows."""
    write_json(advice_file(folder), advice.model_dump(mode="json"))
