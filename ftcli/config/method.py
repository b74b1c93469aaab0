"""`method:` of a recipe: one class per method, so that each has its own keys only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, assert_never, get_args

from pydantic import Field, field_validator, model_validator

from ftcli.config.section import (
    CountFromZero,
    Positive,
    PositiveCount,
    Section,
    Share,
    require_regex,
)

NamesOfModules = Annotated[list[str], Field(min_length=1)]


class Full(Section):
    """Every weight is trained; writes a model as large as the base."""

    mode: Literal["full"]


class LoraKeys(Section):
    """Keys of both LoRA and QLoRA."""

    rank: PositiveCount = 16
    """r: inner dimension of the update; 8 for a format, 16 as a start, 32 for new knowledge."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank (LoRA, Hu et al. 2021, section 4.1)."""
    dropout: Share = 0.0
    """Dropout on the adapter's input; 0 as in PEFT: it costs time and memory."""
    target_modules: Literal["all-linear"] | NamesOfModules = "all-linear"
    """Linear layers that get an adapter: all of them but the head, or a list of names."""
    experts: bool = False
    """Also adapt the experts of a mixture of experts; without it they stay frozen, as the router
    does in any case."""
    layers: Annotated[list[CountFromZero], Field(min_length=1)] | None = None
    """Numbers of the transformer layers that get an adapter, from 0; none: all."""
    rank_pattern: dict[str, PositiveCount] = {}
    """Another rank for some modules, by name: `down_proj: 32`."""
    rslora: bool = False
    """Scale by alpha / √rank, for ranks over 32 (rsLoRA, Kalajdzievski 2023)."""
    dora: bool = False
    """Train magnitude and direction of the weights separately (DoRA, Liu et al. 2024); slower, and
    more memory."""
    modules_to_save: list[Literal["embed_tokens", "lm_head"]] = []
    """Also train these in full: for new words and languages."""

    @field_validator("rank_pattern")
    @classmethod
    def rank_pattern_compiles(cls, value: dict[str, int]) -> dict[str, int]:
        for key in value:
            require_regex(key, f"{key[:60]}: ")
        return value

    @model_validator(mode="after")
    def experts_take_plain_updates(self) -> LoraKeys:
        """As PEFT 0.21's (tuners/lora/layer.py, ParamWrapper)."""
        if self.experts and (self.dora or self.dropout):
            key = "dora" if self.dora else "dropout"
            raise ValueError(
                f"experts: an update of experts has no {key}; remove method.{key} or method.experts"
            )
        return self


class Lora(LoraKeys):
    """A low-rank update of frozen 16-bit weights."""

    mode: Literal["lora"]


class Qlora(LoraKeys):
    """LoRA over a 4-bit base (NF4)."""

    mode: Literal["qlora"]
    double_quantization: bool = True
    """Quantise the quantisation constants too: 4.13 instead of 4.5 bits per weight."""


class FrozenKeys(Section):
    """Keys of the methods that add modules or virtual tokens to a frozen base."""

    quantization: Literal["none", "nf4"] = "none"
    """Quantisation of the frozen base; nf4: 4 bits, as in QLoRA."""


class Bottleneck(FrozenKeys):
    """Small bottleneck networks after the blocks of each layer (Houlsby et al. 2019)."""

    mode: Literal["bottleneck"]
    bottleneck: PositiveCount = 64
    """Inner width; 64 as in the authors' code (adapter-bert)."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """Between the two matrices; gelu as in the authors' code."""
    placement: Literal["both", "attention", "mlp"] = "both"
    """After attention and MLP (Houlsby), or one of them (mlp: Pfeiffer et al. 2021)."""


class PrefixTuning(FrozenKeys):
    """Learned keys and values in front of each layer's own (Li and Liang 2021)."""

    mode: Literal["prefix-tuning"]
    virtual_tokens: PositiveCount = 20
    """Length of the prefix; 20 as in PEFT's examples, 10 to 200 in the paper (figure 4)."""
    init_text: str | None = None
    """Initialise the prefix with the base's keys and values of this text, cut or repeated to its
    length; none: with tokens drawn from the vocabulary. Not with `projection`."""
    projection: bool = False
    """Compute the prefix by a small network during training (the paper's section 4.3)."""

    @model_validator(mode="after")
    def init_text_goes_without_projection(self) -> PrefixTuning:
        if self.projection and self.init_text is not None:
            raise ValueError(
                "init_text: with method.projection a network computes the prefix, which begins at "
                "zero; remove one of them"
            )
        return self


class PromptTuning(FrozenKeys):
    """A learned soft prompt in front of the input (Lester et al. 2021)."""

    mode: Literal["prompt-tuning"]
    virtual_tokens: PositiveCount = 20
    """Length of the soft prompt; more than 20 gains little (the paper's figure 3)."""
    init_text: str | None = None
    """Initialise the soft prompt with this text, cut or repeated to its length; none: with tokens
    drawn from the vocabulary."""


Method = Annotated[
    Full | Lora | Qlora | Bottleneck | PrefixTuning | PromptTuning, Field(discriminator="mode")
]

METHOD_CLASSES: Mapping[str, type[Section]] = {
    get_args(kind.model_fields["mode"].annotation)[0]: kind
    for kind in (Full, Lora, Qlora, Bottleneck, PrefixTuning, PromptTuning)
}
"""Value of `method.mode` → its class."""


def has_4_bit_base(method: Method) -> bool:
    """Whether the method's frozen base is quantised."""
    match method:
        case Full() | Lora():
            return False
        case Qlora():
            return True
        case Bottleneck() | PrefixTuning() | PromptTuning():
            return method.quantization == "nf4"
        case _:
            assert_never(method)
