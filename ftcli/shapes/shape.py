"""A model's sizes, and the parameter counts that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftcli.errors import ModelError, did_you_mean

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
    """The head is the embedding matrix, held once."""
    mlp_matrices: int = 3
    """3: gate, up and down; 2: up and down."""
    experts: int = 1
    active_experts: int = 1
    attention_bias: bool = False
    """Biases on the q, k and v projections."""
    output_bias: bool = False
    """Bias on the attention's output projection."""
    mlp_bias: bool = False
    layer_norms: int = 2
    """Norms of hidden width in a layer."""
    qk_norm: QkNorm = "none"
    """Norms of queries and keys: over one head (Qwen3) or over all heads together (OLMo2)."""
    fp32_norms: bool = False
    """Norms are scaled before they are cast back from fp32 (Gemma, OLMo2)."""
    fused_projections: bool = False
    """q, k, v are one matrix, and gate and up another (Phi-3)."""
    capped_scores: bool = False
    """Attention scores pass through a tanh, which torch's sdpa cannot do (Gemma 2)."""
    head: Head = "plain"
    """What follows the head's product: nothing, a factor (Granite), or a tanh (Gemma 2)."""
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

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of one transformer layer, as PEFT's all-linear sees them.

        Experts are absent: transformers 5 holds them as 3-D parameters, which PEFT's all-linear
        and bitsandbytes pass over.
        """
        hidden, inner = self.hidden, self.intermediate
        query, kv = self.query_width, self.kv_width
        if self.fused_projections:
            return {
                "qkv_proj": (hidden, query + 2 * kv),
                "o_proj": (query, hidden),
                "gate_up_proj": (hidden, 2 * inner),
                "down_proj": (inner, hidden),
            }
        attention = {
            "q_proj": (hidden, query),
            "k_proj": (hidden, kv),
            "v_proj": (hidden, kv),
            "o_proj": (query, hidden),
        }
        if self.experts > 1:
            return attention
        gate = {"gate_proj": (hidden, inner)} if self.mlp_matrices == 3 else {}
        return attention | gate | {"up_proj": (hidden, inner), "down_proj": (inner, hidden)}

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
        vectors = [hidden] * self.layer_norms
        vectors += {"none": [], "head": [self.head_dim] * 2, "width": [query, kv]}[self.qk_norm]
        vectors += [query, kv, kv] if self.attention_bias else []
        vectors += [hidden] if self.output_bias else []
        vectors += [inner] * (self.mlp_matrices - 1) + [hidden] if self.mlp_bias else []
        return vectors

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the transformer layers: what 4 bits can hold."""
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
        return self.layers * sum(self.layer_vectors()) + self.hidden

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
        for target in wanted:
            if target not in modules:
                raise ModelError(
                    "target_modules",
                    f"{self.name or self.model_type} has no linear layer {target!r}"
                    f"{did_you_mean(target, modules)}; it has {', '.join(modules)}",
                )
        return {name: size for name, size in modules.items() if name in wanted}

    def lora_parameters(self, rank: int, targets: Targets = "all-linear") -> int:
        """Σ rank · (in + out) over the adapted layers: A is rank × in, B is out × rank."""
        sizes = self.target_modules(targets).values()
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in sizes)
