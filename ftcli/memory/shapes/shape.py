"""A model's sizes, the names of its linear modules, and the parameter counts that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftcli.errors import ModelError, did_you_mean


@dataclass(frozen=True)
class Layout:
    """What a layer calls its linear modules, by what they do."""

    queries: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Of q, k and v; a single name where they are one matrix."""
    output: str = "o_proj"
    """What follows the attention."""
    inner: tuple[str, ...] = ("gate_proj", "up_proj")
    """From hidden width to the MLP's; a single name where gate and up are one matrix."""
    down: str = "down_proj"
    """Back to hidden width."""


LLAMA = Layout()
UNGATED = Layout(inner=("up_proj",))
PHI3 = Layout(queries=("qkv_proj",), inner=("gate_up_proj",))
GLM = Layout(inner=("gate_up_proj",))
PHI = Layout(output="dense", inner=("fc1",), down="fc2")
STARCODER2 = Layout(inner=("c_fc",), down="c_proj")
NEOX = Layout(
    queries=("query_key_value",), output="dense", inner=("dense_h_to_4h",), down="dense_4h_to_h"
)


# Rows can be packed: proven equal to padded rows (tests/kernels/test_packed_families.py).
PACKED_TYPES = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
)


QkNorm = Literal["none", "head", "width"]
Head = Literal["plain", "scaled", "softcapped"]
Targets = Literal["all-linear"] | tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only transformer, as many as its exact parameter count needs."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    """Width of one head; not always hidden / heads (Qwen3, Gemma)."""
    intermediate: int
    """Inner width of the MLP; of one expert where there are several."""
    vocab: int
    tied: bool
    """Head and embedding are one matrix."""
    mlp_matrices: int = 3
    """3: gate, up and down; 2: up and down."""
    experts: int = 1
    active_experts: int = 1
    attention_bias: bool = False
    """Biases on the q, k and v projections."""
    output_bias: bool = False
    """Bias on the attention's output projection."""
    mlp_bias: bool = False
    head_bias: bool = False
    """Bias on the head (Phi-2)."""
    layer_norms: int = 2
    """Norms of hidden width in a layer; 1 where attention and MLP read the same one (Falcon)."""
    norm_vectors: int = 1
    """Trained vectors of a norm: 1 weight; 2 with a bias (LayerNorm); 0 neither (OLMo 1)."""
    native_layer_norm: bool = False
    """Norms are torch's layer_norm, one kernel that takes bf16 as it is; others are RMSNorms
    written out in fp32 steps. OLMo 1, with fp32_norms too, casts to fp32 and back around it."""
    qk_norm: QkNorm = "none"
    """Norms of queries and keys: over one head (Qwen3) or over all heads together (OLMo2)."""
    fp32_norms: bool = False
    """Norms are scaled before they are cast back from fp32 (Gemma, OLMo2)."""
    layout: Layout = LLAMA
    """Names of the linear modules, and which of them are one matrix."""
    capped_scores: bool = False
    """Attention scores pass through a tanh, which torch's sdpa cannot do (Gemma 2)."""
    activation_parameters: int = 0
    """Trained numbers of the MLP's activation in a layer (2 of xIELU in Apertus)."""
    head: Head = "plain"
    """What follows the head's product: nothing, a factor (Granite), or a tanh (Gemma 2)."""
    sliding_window: int | None = None
    """Tokens that attention looks back in `windowed_layers`; None where no layer is so limited."""
    windowed_layers: int = 0
    """Layers whose attention has the window; the others see all tokens before."""
    dropout: bool = False
    """The model drops some of its attention weights or hidden states in training."""
    stretched_positions: bool = False
    """Positions are rotated by the longest row of the batch (dynamic RoPE, LongRoPE)."""
    stored_bytes: Literal[2, 4] = 2
    """Bytes of one weight in the model's files."""
    model_type: str = "llama"
    name: str = ""
    """What the user called the model."""
    hub_id: str | None = None

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def fused_queries(self) -> bool:
        """q, k and v are one matrix (Phi-3, Falcon, GPT-NeoX)."""
        return len(self.layout.queries) == 1

    @property
    def fused_gate(self) -> bool:
        """gate and up are one matrix (Phi-3, GLM)."""
        return self.mlp_matrices == 3 and len(self.layout.inner) == 1

    @property
    def fused_projections(self) -> bool:
        """q, k, v are one matrix, and gate and up another (Phi-3)."""
        return self.fused_queries and self.fused_gate

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of one transformer layer, as PEFT's all-linear sees them.

        Experts are absent: transformers 5 has them as 3-D parameters, which bitsandbytes skips
        (peft 0.21 adapts them: ftcli.memory.trained).
        """
        layout, hidden, query = self.layout, self.hidden, self.query_width
        widths = [query, self.kv_width, self.kv_width]
        outputs = [sum(widths)] if self.fused_queries else widths
        modules = {
            name: (hidden, width) for name, width in zip(layout.queries, outputs, strict=True)
        }
        modules[layout.output] = (query, hidden)
        if self.experts > 1:
            return modules
        inner = self.intermediate * (2 if self.fused_gate else 1)
        names = layout.inner[-1:] if self.mlp_matrices == 2 else layout.inner
        modules |= dict.fromkeys(names, (hidden, inner))
        return modules | {layout.down: (self.intermediate, hidden)}

    def expert_tensors(self) -> dict[str, int]:
        """Elements of a layer's router and stacked experts; empty for a dense model."""
        if self.experts == 1:
            return {}
        expert_matrix = self.hidden * self.intermediate
        return {
            "gate": self.experts * self.hidden,
            "gate_up_proj": self.experts * (self.mlp_matrices - 1) * expert_matrix,
            "down_proj": self.experts * expert_matrix,
        }

    def layer_vectors(self) -> list[int]:
        """Lengths of the norm weights and biases of one layer."""
        query, kv, hidden, inner = self.query_width, self.kv_width, self.hidden, self.intermediate
        vectors = [hidden] * self.layer_norms * self.norm_vectors
        vectors += {"none": [], "head": [self.head_dim] * 2, "width": [query, kv]}[self.qk_norm]
        vectors += [query, kv, kv] if self.attention_bias else []
        vectors += [hidden] if self.output_bias else []
        vectors += [inner] * (self.mlp_matrices - 1) + [hidden] if self.mlp_bias else []
        return vectors + [1] * self.activation_parameters

    def outer_vectors(self) -> list[int]:
        """Lengths of the vectors outside the layers: of the last norm, and the head's bias."""
        return [self.hidden] * self.norm_vectors + ([self.vocab] if self.head_bias else [])

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the transformer layers: those that are quantised."""
        sizes = self.linear_modules().values()
        return self.layers * sum(inputs * outputs for inputs, outputs in sizes)

    @property
    def expert_parameters(self) -> int:
        return self.layers * sum(self.expert_tensors().values())

    @property
    def embedding_parameters(self) -> int:
        """Embeddings and, where it is a matrix of its own, the head."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def vector_parameters(self) -> int:
        """Norm weights and biases, with the norm before the head."""
        return self.layers * sum(self.layer_vectors()) + sum(self.outer_vectors())

    @property
    def parameters(self) -> int:
        return (
            self.linear_parameters
            + self.expert_parameters
            + self.embedding_parameters
            + self.vector_parameters
        )

    def target_modules(self, targets: Targets) -> dict[str, tuple[int, int]]:
        """The linear layers that get an adapter, by `q_proj` or `self_attn.q_proj`.

        Raises ModelError (`target_modules`).
        """
        modules = self.linear_modules()
        if targets == "all-linear":
            return modules
        wanted = [target.rsplit(".", 1)[-1] for target in targets]
        absent = [name for name in dict.fromkeys(wanted) if name not in modules]
        if absent:
            named = ", ".join(f"{name!r}{did_you_mean(name, modules)}" for name in absent)
            raise ModelError(
                "target_modules",
                f"{self.name or self.model_type} has no linear layer {named}; "
                f"it has {', '.join(modules)}",
            )
        return {name: size for name, size in modules.items() if name in wanted}
