"""The recipe: what a user may write, and every default, in one schema.

Attribute docstrings become the texts of `ftcli schema` and of the key reference. Validators judge
and never edit; where a default depends on the model, the data or the machine, it is the word
`auto`, and the plan decides it with a reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ftcli.config.answer_format import AnswerFormat, JsonFormat, RegexFormat, SqlFormat, TextFormat
from ftcli.config.data import Data, Replay
from ftcli.config.evaluation import Evaluation, Generation
from ftcli.config.grounding import Grounding
from ftcli.config.method import (
    METHOD_CLASSES,
    Adapter,
    FrozenKeys,
    Full,
    Lora,
    LoraKeys,
    Method,
    Prefix,
    Prompt,
    Qlora,
    holds_4_bits,
)
from ftcli.config.section import PathKind, Section
from ftcli.config.training import Hold, Training

__all__ = [
    "METHOD_CLASSES",
    "Adapter",
    "AnswerFormat",
    "Data",
    "Device",
    "Evaluation",
    "FrozenKeys",
    "Full",
    "Generation",
    "Grounding",
    "Hold",
    "JsonFormat",
    "Lora",
    "LoraKeys",
    "Method",
    "Model",
    "Prefix",
    "Prompt",
    "Qlora",
    "Recipe",
    "RegexFormat",
    "Replay",
    "Section",
    "SqlFormat",
    "TextFormat",
    "Training",
    "holds_4_bits",
]


Device = Literal["auto", "cpu"]


class Model(Section):
    """The base model."""

    id: Annotated[str, PathKind("model")]
    """Hub id, local folder, or an alias such as `smollm2-135m`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; none: its main branch."""
    device: Device = "auto"
    """Where the model is trained and used; auto: the GPU where the machine has one, else the CPU.
    A GPU that torch cannot use is an error under auto; cpu leaves it alone."""
    attention: Literal["auto", "sdpa", "eager", "flash"] = "auto"
    """Attention implementation; flash needs the flash-attn package and a CUDA card."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type in which frozen base weights are held; auto follows the precision of the run."""


# No separator or control character, and something besides dots.
FOLDER_NAME = r"^[^/\\\x00-\x1f]*[^./\\\x00-\x1f][^/\\\x00-\x1f]*$"


class Recipe(Section):
    """One training, complete."""

    name: Annotated[str, Field(min_length=1, pattern=FOLDER_NAME)]
    """Name of the run."""
    model: Model
    method: Method
    data: Data
    training: Training = Training()
    generation: Generation = Generation()
    eval: Evaluation = Evaluation()
    output: Annotated[str | None, PathKind("folder")] = None
    """Run folder, relative to the recipe; none: `runs/<name>`."""

    @property
    def run_dir(self) -> Path:
        """The run folder; absolute in a recipe that was loaded."""
        return Path(self.output or f"runs/{self.name}")
