"""What of a model decides its counts and memory: measured from its config, without torch here.

`ftcli.models.architectures.measure` measures it; known models come with their measurements.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from ftcli.errors import ModelError

Head = Literal["plain", "scaled", "softcapped"]
"""What follows the head's product: nothing, a factor (Granite), or a tanh (Gemma 2)."""

# Narrower modules stay out of 4 bits: gates of one number per head, coefficients (Gemma 3n).
# Narrower 3-D parameters are no experts, but kernels of convolutions.
LEAST_QUANTISED_WIDTH = 16
# Weights per scale: the default of bitsandbytes and transformers.
NF4_BLOCK = 64

# Rows can be packed: proven equal to padded rows (tests/kernels/test_packed_families.py).
PACKED_TYPES = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
)

ATTENTION, MLP = "(attention)", "mlp"
"""Among the modules of a layer: the attention kernel, and what sees each token alone (of
`PACKED_TYPES`)."""


class Linear(NamedTuple):
    """A linear module of a layer that runs on text and passes a gradient on."""

    name: str
    """In its layer: `self_attn.q_proj`."""
    inputs: int
    outputs: int
    reads: int
    """Modules of one number read the same tensor."""
    unquantised: bool = False
    """Stays out of 4 bits: inputs are cast to its weight's type, which would be bytes, or
    transformers quantises no layer of its class."""

    @property
    def elements(self) -> int:
        return self.inputs * self.outputs

    @property
    def quantises(self) -> bool:
        """Whole blocks in each row: of others, bitsandbytes 0.50 mixes up the scales on a CPU
        (backends/cpu/ops.py, dequantize_4bit)."""
        whole = self.inputs % NF4_BLOCK == 0 and self.outputs >= LEAST_QUANTISED_WIDTH
        return whole and not self.unquantised


def in_mlp(linear: Linear) -> bool:
    return linear.name.startswith(f"{MLP}.")


class Experts(NamedTuple):
    """A 3-D parameter: stacked weights of a layer's experts."""

    name: str
    number: int
    rows: int
    columns: int
    adaptable: bool
    """LoRA can adapt it: its forward is ftcli's own (ftcli.kernels.experts). PEFT's own update of a
    stack takes as much memory as the stack, and in 4 bits it is wrong."""

    @property
    def elements(self) -> int:
        return self.number * self.rows * self.columns

    @property
    def quantises(self) -> bool:
        """Whole blocks in each row, as of linear modules."""
        return self.columns % NF4_BLOCK == 0


class Norm(NamedTuple):
    """A norm of a layer, per token."""

    elements: int
    rows: int
    """Vectors that are normed: one, or one for each head."""
    native: bool
    """It is torch's layer_norm."""


class Attention(NamedTuple):
    """Heads of one call of the attention kernel, and the widths of one head."""

    heads: int
    kv_heads: int
    key_width: int
    value_width: int
    capped: bool = False
    """Scores pass through a tanh, which torch's sdpa cannot do (Gemma 2)."""


class Bytes(NamedTuple):
    """Bytes of b rows of s tokens: per_token · b·s + per_pair · b·s²."""

    per_token: float
    per_pair: float = 0.0

    def of(self, tokens: int, keys: int) -> float:
        return tokens * (self.per_token + self.per_pair * keys)


class Shared(NamedTuple):
    """Tensors that all layers are given: per_position · s + per_token · b·s + per_pair · b·s²."""

    per_position: float
    per_token: float
    per_pair: float

    def of(self, rows: int, positions: int, keys: int) -> float:
        tokens = rows * positions
        return self.per_position * positions + tokens * (self.per_token + self.per_pair * keys)


@dataclass(frozen=True)
class Way:
    """How layers compute, as far as the bytes that they save depend on it."""

    weight_bytes: Literal[2, 4]
    autocast: bool
    quantised: bool
    """Linear layers return the type of what they read (bitsandbytes' Linear4bit)."""
    eager: bool
    """Attention is written out; else it is a fused kernel."""
    masked: bool
    """The kernel is given a mask."""
    trained: bool
    """Every weight is trained; else a gradient only passes through."""
    tiled: bool = False
    """Only the input of each MLP is saved (ftcli.kernels.small_gpu)."""


@dataclass(frozen=True)
class Saved:
    """What one layer of a kind saves for backward in one way."""

    kept: Bytes
    norms: Bytes
    """Of it, by norms."""
    before: tuple[tuple[str, Bytes], ...]
    """Of it, before a linear module or `ATTENTION` runs."""
    inputs: tuple[int, ...]
    """`Linear.reads` of tensors that are saved whether or not the module is trained."""
    temporaries: tuple[Bytes, ...]
    """What comes and goes in its backward pass: the largest of these."""

    def saved_before(self, module: str) -> Bytes:
        return dict(self.before)[module]


@dataclass(frozen=True)
class Measured:
    """What a model saves for backward in one way."""

    way: Way
    kinds: tuple[Saved, ...]
    """Of each of `Architecture.kinds`."""
    shared_saved: Shared
    shared_passed: Shared
    """Gradient checkpointing keeps these, saved or not."""
    last_norm: Bytes
    """What comes between the layers and the head."""


@dataclass(frozen=True)
class LayerKind:
    """Layers that are built alike."""

    label: str
    layers: tuple[int, ...]
    """Their numbers."""
    linear: tuple[Linear, ...]
    """In the order in which they run."""
    experts: tuple[Experts, ...]
    others: tuple[int, ...]
    """Elements of each other parameter."""
    norms: tuple[Norm, ...]
    attention: tuple[Attention, ...]
    window: int | None
    """Tokens that its attention looks back; None: all."""

    @property
    def linear_parameters(self) -> int:
        return sum(each.elements for each in self.linear)

    @property
    def expert_parameters(self) -> int:
        return sum(each.elements for each in self.experts)

    @property
    def quantised_parameters(self) -> int:
        linear = sum(each.elements for each in self.linear if each.quantises)
        return linear + sum(each.elements for each in self.experts if each.quantises)

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.expert_parameters + sum(self.others)

    @property
    def cached_width(self) -> int:
        """Elements of keys and values that generation keeps of a token."""
        return sum(each.kv_heads * (each.key_width + each.value_width) for each in self.attention)


@dataclass(frozen=True, eq=False)
class Architecture:
    """A decoder, text in and text out."""

    model_type: str
    hidden: int
    vocab: int
    tied: bool
    """Head and embedding are one matrix."""
    stack: str
    """Name of the list of layers: `model.layers`."""
    kinds: tuple[LayerKind, ...]
    outer: tuple[int, ...]
    """Elements of each parameter outside the layers but the embeddings, the head and towers."""
    head: Head
    head_bias: bool
    towers: tuple[str, ...]
    """Modules that do not run on text."""
    tower_parameters: int
    parameters: int
    """All, each once."""
    attention: tuple[Literal["sdpa", "eager"], ...]
    """Implementations that the class has."""
    scaled_embeddings: bool
    """The layers read another tensor than the embeddings return."""
    stored_bytes: Literal[2, 4]
    """Bytes of one weight in the model's files."""
    dropout: bool
    """Attention weights or hidden states are dropped in training."""
    stretched_positions: bool
    """Positions are rotated by the longest row of the batch (dynamic RoPE, LongRoPE)."""
    checkpoints: bool
    """transformers can compute its layers again (gradient checkpointing)."""
    ways: list[Measured] = field(default_factory=list, repr=False)
    """What was measured so far; copies of an architecture share it."""
    name: str = ""
    """What the user called the model."""
    hub_id: str | None = None
    measure: Callable[[Way], Measured] | None = field(default=None, repr=False)
    """Measures a way that is not in `ways`."""

    @property
    def layers(self) -> int:
        return sum(len(kind.layers) for kind in self.kinds)

    @property
    def linear_parameters(self) -> int:
        return sum(len(kind.layers) * kind.linear_parameters for kind in self.kinds)

    @property
    def quantised_parameters(self) -> int:
        """Weights of linear modules and experts that 4 bits are used for."""
        return sum(len(kind.layers) * kind.quantised_parameters for kind in self.kinds)

    @property
    def expert_parameters(self) -> int:
        return sum(len(kind.layers) * kind.expert_parameters for kind in self.kinds)

    @property
    def has_experts(self) -> bool:
        return any(kind.experts for kind in self.kinds)

    @property
    def recurrent(self) -> bool:
        """Some layers keep a state instead of keys and values."""
        return any(kind.linear and not kind.attention for kind in self.kinds)

    @property
    def embedding_parameters(self) -> int:
        """Embeddings and, where it is a matrix of its own, the head."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def cached_width(self) -> int:
        """Elements of keys and values that generation keeps of a token, over all layers."""
        return sum(len(kind.layers) * kind.cached_width for kind in self.kinds)

    @property
    def largest_matrix(self) -> int:
        """Weights of the largest linear module of the layers."""
        return max((each.elements for kind in self.kinds for each in kind.linear), default=0)

    def kind_of(self, layer: int) -> LayerKind:
        return next(kind for kind in self.kinds if layer in kind.layers)

    def linear_names(self) -> Iterator[tuple[str, Linear]]:
        """Full names of the linear modules of all layers, in the order of the layers."""
        for layer in range(self.layers):
            for linear in self.kind_of(layer).linear:
                yield f"{self.stack}.{layer}.{linear.name}", linear

    def expert_stacks(self) -> Iterator[tuple[int, Experts, str]]:
        """Stacks of experts of all layers: layer, stack, and full name."""
        for layer in range(self.layers):
            for each in self.kind_of(layer).experts:
                yield layer, each, f"{self.stack}.{layer}.{each.name}"

    def unquantised_pattern(self) -> str:
        """A regular expression for the names of all modules that stay out of 4 bits."""
        kinds = []
        for kind in self.kinds:
            names = "|".join(re.escape(each.name) for each in kind.linear if each.quantises)
            if names:
                numbers = "|".join(map(str, kind.layers))
                kinds.append(rf"{re.escape(self.stack)}\.(?:{numbers})\.(?:{names})")
        return rf"(?!(?:{'|'.join(kinds)})$).+$" if kinds else ".+"

    def saved(self, way: Way) -> Measured:
        """What is saved in one way; measured now if it was not before.

        Raises ModelError for a way of a known model that is not shipped, where nothing measures it.
        """
        for found in self.ways:
            if found.way == way:
                return found
        if self.measure is None:
            raise ModelError("not_measured", f"{self.name or self.model_type}: {way}")
        measured = self.measure(way)
        self.ways.append(measured)
        return measured


def read_architecture(text: str) -> Architecture:
    """From `write_architecture`."""
    found = json.loads(text)
    kinds = tuple(_read_kind(kind) for kind in found.pop("kinds"))
    ways = [_read_measured(*each) for each in found.pop("ways")]
    for name in ("outer", "towers", "attention"):
        found[name] = tuple(found[name])
    return Architecture(kinds=kinds, ways=ways, **found)


def write_architecture(architecture: Architecture) -> str:
    """As JSON on one line, with every way that was measured."""
    found = {
        each.name: getattr(architecture, each.name)
        for each in fields(Architecture)
        if each.name not in ("kinds", "ways", "measure", "name", "hub_id")
    }
    found["kinds"] = [_values(kind) for kind in architecture.kinds]
    found["ways"] = [
        [_values(each.way), [_values(kind) for kind in each.kinds], *_values(each)[2:]]
        for each in architecture.ways
    ]
    return json.dumps(found, separators=(",", ":"))


def _values(each: Any) -> list[Any]:
    return [getattr(each, field.name) for field in fields(each)]


def _read_kind(values: list[Any]) -> LayerKind:
    label, layers, linear, experts, others, norms, attention, window = values
    return LayerKind(
        label=label,
        layers=tuple(layers),
        linear=tuple(Linear(*each) for each in linear),
        experts=tuple(Experts(*each) for each in experts),
        others=tuple(others),
        norms=tuple(Norm(*each) for each in norms),
        attention=tuple(Attention(*each) for each in attention),
        window=window,
    )


def _read_measured(way: list[Any], kinds: list[list[Any]], *rest: list[float]) -> Measured:
    saved, passed, last_norm = rest
    return Measured(
        way=Way(*way),
        kinds=tuple(
            Saved(
                kept=Bytes(*kept),
                norms=Bytes(*norms),
                before=tuple((name, Bytes(*each)) for name, each in before),
                inputs=tuple(inputs),
                temporaries=tuple(Bytes(*each) for each in temporaries),
            )
            for kept, norms, before, inputs, temporaries in kinds
        ),
        shared_saved=Shared(*saved),
        shared_passed=Shared(*passed),
        last_norm=Bytes(*last_norm),
    )
