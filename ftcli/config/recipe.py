"""The recipe: what a user may write, and every default, in one schema.

Attribute docstrings become the texts of `ftcli schema` and of the key reference. A default that
depends on the model, the data or the machine is the word `auto`; the plan decides it, with a
reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ftcli.config.answer_format import AnswerFormat, JsonFormat, RegexFormat, SqlFormat, TextFormat
from ftcli.config.data import Data, Replay
from ftcli.config.evaluation import Evaluation, Generation, Grounding
from ftcli.config.method import (
    METHOD_CLASSES,
    Bottleneck,
    FrozenKeys,
    Full,
    Lora,
    LoraKeys,
    Method,
    PrefixTuning,
    PromptTuning,
    Qlora,
    has_4_bit_base,
)
from ftcli.config.section import (
    NO_BOOLEAN,
    CountFromZero,
    NotNegative,
    PathKind,
    Positive,
    PositiveCount,
    Rate,
    Section,
    Share,
)

__all__ = [
    "METHOD_CLASSES",
    "AnswerFormat",
    "Bottleneck",
    "Data",
    "Device",
    "Evaluation",
    "FrozenKeys",
    "Full",
    "Generation",
    "Grounding",
    "JsonFormat",
    "Lora",
    "LoraKeys",
    "Method",
    "Model",
    "PrefixTuning",
    "PromptTuning",
    "Qlora",
    "Recipe",
    "RegexFormat",
    "Replay",
    "Section",
    "SqlFormat",
    "TextFormat",
    "Training",
    "has_4_bit_base",
]


def l2_sp_fault(rate: float, strength: float) -> str | None:
    """The error if every step goes all the way back to the starting weights, or further."""
    if rate * strength < 1:
        return None
    return (
        f"each step goes learning_rate × l2_sp = {rate:g} × {strength:g} = {rate * strength:g} of "
        f"the way back to the start, so that nothing is learnt; take l2_sp well below {1 / rate:g}"
    )


def _off(value: object) -> object:
    """YAML 1.1 reads `off` as false."""
    return "off" if value is False else value


class Training(Section):
    """How the training runs."""

    epochs: Annotated[float, Field(gt=0, le=10_000), NO_BOOLEAN] = 3.0
    """Passes over the training rows."""
    max_steps: PositiveCount | None = None
    """Stop after this many optimizer steps, whatever `epochs` is; `data.replay` adds its own."""
    learning_rate: Literal["auto"] | Rate = "auto"
    """Peak learning rate; auto: by the method, 2e-5 (full) to 3e-2 (prompt-tuning)."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "linear"
    """Schedule of the learning rate after the warm-up."""
    warmup_ratio: Share = 0.0
    """Share of the steps in which the learning rate rises to its peak. It begins at 0, so the first
    step learns nothing; take 0.03 to 0.1 if the first losses jump."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled weight decay."""
    l2_sp: NotNegative = 0.0
    """Strength of decoupled L2-SP (Li et al. 2018): each step moves the weights back by learning
    rate × l2_sp of their distance from the start, so that less is forgotten. With AdamW no weight
    ends much farther than 1 / l2_sp from its start; 0: off."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    batch_size: PositiveCount = 16
    """Rows per optimizer step (effective batch); the plan chooses a micro-batch that fits."""
    micro_batch_size: Literal["auto"] | PositiveCount = "auto"
    """Rows per forward pass; must divide `batch_size`."""
    packing: Literal["auto"] | bool | PositiveCount = "auto"
    """Rows of a step without padding, in micro-batches of up to this many tokens; false: padded
    rows. Neither changes the rows of a step or its loss. true or a number: an error if packing is
    not possible."""
    optimizations: Annotated[Literal["auto", "all", "off"], BeforeValidator(_off)] = "auto"
    """auto: optimisations of docs/performance.md where they were tested; all: also on ROCm; off:
    transformers' and PEFT's own forward on padded rows."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass; auto: only if memory requires it."""
    activation_offload: Literal["auto"] | bool = "auto"
    """Keep the hidden states between layers in RAM, with gradient checkpointing on a GPU; auto:
    only if memory requires it, for the longest rows. The gradients stay the same."""
    embedding_offload: Literal["auto"] | bool = "auto"
    """Keep frozen embeddings and the head in RAM, for LoRA, QLoRA and bottleneck on a GPU; auto:
    only if memory requires it. The gradients stay the same but for rounding."""
    tiled_mlp: Literal["auto"] | bool = "auto"
    """Run MLPs on 4,096 tokens at a time, with gradient checkpointing; auto: only if memory
    requires it. The gradients stay the same but for rounding."""
    precision: Literal["auto", "bf16", "fp16", "fp32", "pure-bf16"] = "auto"
    """Arithmetic: bf16 and fp16 are mixed precision; pure-bf16 keeps no fp32 master weights."""
    optimizer: Literal["auto", "adamw", "adamw-8bit", "paged-adamw-8bit", "sgd"] = "auto"
    """auto: AdamW in fp32; 8-bit paged for full fine-tuning that fits no other way."""
    neftune_noise_alpha: Positive | None = None
    """Noise on the embeddings during training (NEFTune, Jain et al. 2023)."""
    eval_steps: Literal["auto"] | PositiveCount = "auto"
    """Optimizer steps between two validations."""
    save_steps: Literal["auto"] | PositiveCount = "auto"
    """Optimizer steps between two checkpoints; auto: at every validation, but weights that are not
    the best so far only if saving takes under 2% of the time since the last."""
    save_total_limit: PositiveCount = 2
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

    @model_validator(mode="after")
    def lr_scheduler_and_warm_up_agree(self) -> Training:
        if self.lr_scheduler == "constant" and self.warmup_ratio:
            raise ValueError(
                "lr_scheduler constant has no warm-up; take constant_with_warmup, or remove "
                "warmup_ratio"
            )
        if self.lr_scheduler == "constant_with_warmup" and not self.warmup_ratio:
            raise ValueError("lr_scheduler constant_with_warmup needs a warmup_ratio, such as 0.03")
        return self

    @model_validator(mode="after")
    def l2_sp_leaves_something_to_learn(self) -> Training:
        if self.learning_rate != "auto":
            wrong = l2_sp_fault(self.learning_rate, self.l2_sp)
            if wrong is not None:
                raise ValueError(wrong)
        return self


Device = Literal["auto", "cpu"]


class Model(Section):
    """The base model."""

    id: Annotated[str, PathKind("model")]
    """Hub id, local folder, or an alias such as `smollm2-135m`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; none: its main branch."""
    device: Device = "auto"
    """Device for training and inference; auto: the GPU if the machine has one, else the CPU. A GPU
    that torch cannot use is an error with auto; cpu ignores it."""
    attention: Literal["auto", "sdpa", "eager", "flash"] = "auto"
    """Attention implementation; flash needs the flash-attn package and a CUDA GPU."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type of the frozen base weights; auto follows the precision of the run."""


# No separator or control character, and not only dots.
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
        """The run folder; absolute in a loaded recipe."""
        return Path(self.output or f"runs/{self.name}")
