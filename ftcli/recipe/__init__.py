"""The recipe: what a user may write, and every default, in one schema.

Attribute docstrings become the texts of `ftcli schema` and of the key reference. Validators judge
and never edit; where a default depends on the model, the data or the machine, it is the word
`auto`, and the plan decides it with a reason.
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ftcli.recipe.method import (
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
from ftcli.recipe.section import (
    NO_BOOLEAN,
    CountFromZero,
    NotNegative,
    Positive,
    PositiveCount,
    Rate,
    Section,
    Share,
    require_regex,
)

__all__ = [
    "METHOD_CLASSES",
    "Adapter",
    "AnswerFormat",
    "Data",
    "Evaluation",
    "FrozenKeys",
    "Full",
    "Generation",
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
    "Section",
    "Training",
    "holds_4_bits",
]


# YAML reads 1e-1 as a text.
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.IGNORECASE)


def _share_count_or_file(value: object) -> object:
    if isinstance(value, str):
        if not EXPONENT.fullmatch(value):
            return value
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        found = json.dumps(value, default=str)
        raise ValueError(f"expected a share, a number of rows or a file, found {found}")
    if not math.isfinite(value) or value < 0 or (value >= 1 and value != int(value)):
        raise ValueError(f"{value} is neither a share below 1 nor a whole number of rows")
    return value


HoldOut = Annotated[int | float | str, BeforeValidator(_share_count_or_file)]


class Model(Section):
    """The base model."""

    id: str
    """Hub id, local folder, or an alias such as `smollm2-135m`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; none: its main branch."""
    attention: Literal["auto", "sdpa", "eager", "flash"] = "auto"
    """Attention implementation; flash needs the flash-attn package and a CUDA card."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type in which frozen base weights are held; auto follows the precision of the run."""


class Data(Section):
    """Where the rows are and what to make of them."""

    train: str
    """Training rows: a jsonl, json, csv or parquet file (also .gz), or a hub dataset id."""
    format: Literal["auto", "pairs", "messages", "sharegpt", "alpaca", "text", "columns"] = "auto"
    """Shape of a row; auto recognises it by the columns."""
    validation: HoldOut = 0.1
    """Held out to choose the best checkpoint: a share, a number of rows, or a file; 0: none."""
    test: HoldOut = 0
    """Held out for `ftcli eval` and never used to choose a checkpoint: as `validation`."""
    max_length: PositiveCount = 1024
    """Longest row in tokens; what is cut of answers is counted."""
    prompt: str | None = None
    """For `columns`: a column, or a template such as `Product: {name}`; with `completion`."""
    completion: str | None = None
    """For `columns`: the answer's column, or a template."""
    system: str | None = None
    """System prompt of every row: a text, or a template with `{column}`."""
    loss_on: Literal["answer", "last", "all"] = "answer"
    """Tokens trained on: every answer, the last answer only, or everything."""
    deduplicate: bool = True
    """Keep the first of rows that are equal in prompt and answer."""
    shuffle: bool = True
    """Draw the rows of an epoch in random order (by `training.seed`)."""
    allow_truncation: bool = False
    """Go on when more than 1% of the answer tokens are lost to `max_length`."""
    allow_leaks: bool = False
    """Go on when a prompt of a validation or test file is trained on, or held out twice."""
    template: str | None = None
    """Chat template instead of the model's own: chatml, llama3, gemma, mistral or plain, a Jinja
    file, or the Jinja text itself; none: the model's, or plain where it has none."""
    template_kwargs: dict[str, str | bool | int | float] = {}
    """Arguments for the chat template, such as `enable_thinking: false`."""

    @model_validator(mode="after")
    def columns_keys_go_together(self) -> Data:
        given = (self.prompt is not None, self.completion is not None)
        if self.format == "columns" and not all(given):
            raise ValueError("format columns needs data.prompt and data.completion")
        if self.format == "auto" and any(given) and not all(given):
            there, absent = ("prompt", "completion") if given[0] else ("completion", "prompt")
            raise ValueError(
                f"data.{there} names a column or template, and data.{absent} is missing; give both"
            )
        if self.format not in ("auto", "columns") and any(given):
            raise ValueError(
                "data.prompt and data.completion need format columns or auto, found format "
                f"{self.format}"
            )
        return self


class Training(Section):
    """How the training runs."""

    epochs: Annotated[float, Field(gt=0, le=10_000), NO_BOOLEAN] = 3.0
    """Passes over the training rows."""
    max_steps: PositiveCount | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    learning_rate: Literal["auto"] | Rate = "auto"
    """Peak learning rate; auto: of the method's own kind, 2e-5 (full) to 3e-2 (prompt)."""
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_ratio: Share = 0.03
    """Share of the steps over which the learning rate rises to its peak."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    batch_size: PositiveCount = 16
    """Rows of one optimizer step (effective batch); the micro-batch is planned to fit."""
    micro_batch_size: Literal["auto"] | PositiveCount = "auto"
    """Rows that go through the model at once; must divide `batch_size`."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Compute activations again in the backward pass; auto: only where memory asks for it."""
    precision: Literal["auto", "bf16", "fp16", "fp32", "pure-bf16"] = "auto"
    """Arithmetic: bf16 and fp16 are mixed precision; pure-bf16 keeps no fp32 master weights."""
    optimizer: Literal["auto", "adamw", "adamw-8bit", "paged-adamw-8bit", "sgd"] = "auto"
    """auto: AdamW in fp32; in 8 bits, paged, for full fine-tuning that fits no other way."""
    neftune_noise_alpha: Positive | None = None
    """Noise on the embeddings while training (NEFTune, Jain et al. 2023)."""
    eval_steps: Literal["auto"] | PositiveCount = "auto"
    """Optimizer steps between two validations."""
    save_steps: Literal["auto"] | PositiveCount = "auto"
    """Optimizer steps between two checkpoints; auto: with every validation."""
    keep_checkpoints: PositiveCount = 2
    """Checkpoints kept besides the best one."""
    early_stopping_patience: PositiveCount | None = None
    """Stop after this many validations without a better loss."""
    seed: CountFromZero = 42
    """Seed of splits, row order, adapter weights and dropout."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """Trackers to log to; each needs its package."""

    @model_validator(mode="after")
    def micro_batch_divides_batch(self) -> Training:
        if self.micro_batch_size != "auto" and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size "
                f"{self.batch_size}"
            )
        return self


class Generation(Section):
    """How answers are drawn in eval and generate; the flags of `ftcli generate` go before it."""

    max_new_tokens: PositiveCount = 256
    """Longest answer in tokens."""
    temperature: NotNegative = 0.0
    """0: greedy, the most likely token at each place."""
    top_p: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN] = 1.0
    """Draw from the smallest set of tokens with this probability (only with a temperature)."""
    top_k: CountFromZero = 0
    """Draw from this many likeliest tokens; 0: all."""
    repetition_penalty: Positive = 1.0
    """Above 1: tokens already used become less likely (CTRL, Keskar et al. 2019)."""


class RegexFormat(Section):
    """The whole answer matches a regular expression."""

    type: Literal["regex"]
    pattern: str
    """Python regular expression; `^` and `$` are implied, `.` stays within a line."""

    @field_validator("pattern")
    @classmethod
    def pattern_compiles(cls, value: str) -> str:
        require_regex(value)
        return value


class JsonFormat(Section):
    """The whole answer is one JSON object."""

    type: Literal["json"]
    keys: list[str] = []
    """Exactly these keys, in any order; empty: any object."""


AnswerFormat = Annotated[RegexFormat | JsonFormat, Field(discriminator="type")]


class Evaluation(Section):
    """What `ftcli eval` looks at besides loss, stop rate and text overlap."""

    format: AnswerFormat | None = None
    """Form every answer must have; its share is reported as `format_rate`."""


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
    output: str | None = None
    """Run folder, relative to the recipe; none: `runs/<name>`."""
