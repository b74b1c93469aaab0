"""What decides the memory of a training step, apart from the model's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ftcli.memory.architecture import PACKED_TYPES, Architecture, LayerKind, Way

Targets = Literal["all-linear"] | tuple[str, ...]
Mode = Literal["full", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning"]
# Methods that add to frozen weights, and have no mode of their own for a 4-bit base.
FROZEN_MODES: tuple[Mode, ...] = ("bottleneck", "prefix-tuning", "prompt-tuning")
Placement = Literal["attention", "mlp", "both"]
Quantization = Literal["nf4", "gptq4", "int8"]
MODE_NAMES: dict[Mode, str] = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "bottleneck": "bottleneck adapters",
    "prefix-tuning": "prefix tuning",
    "prompt-tuning": "prompt tuning",
}
Precision = Literal["bf16", "fp16", "fp32", "pure-bf16"]
WeightsDtype = Literal["auto", "bf16", "fp16", "fp32"]
Optimizer = Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "sgd"]
Attention = Literal["sdpa", "flash", "eager"]
Loss = Literal["chunked", "full"]

# transformers 5.24, modeling_layers.py: it takes the cache from a layer that is computed again.
NO_CHECKPOINTING = (
    "keys and values of a prefix are in the cache, which a recomputed layer would fill twice"
)


def why_no_checkpointing(mode: Mode, architecture: Architecture) -> str | None:
    """Why layers cannot be computed again; None: they can."""
    if mode == "prefix-tuning":
        return NO_CHECKPOINTING
    if not architecture.checkpoints:
        return f"transformers has no gradient checkpointing for {architecture.model_type}"
    return None


def why_no_tiles(mode: Mode, architecture: Architecture) -> str | None:
    """Why MLPs cannot run in tiles; None: they can."""
    if architecture.model_type not in PACKED_TYPES:
        return f"not tested for {architecture.model_type}"
    return why_no_checkpointing(mode, architecture)


def why_no_embedding_offload(choices: Choices, architecture: Architecture) -> str | None:
    """Why embeddings and head cannot be in RAM; None: they can."""
    if architecture.model_type not in PACKED_TYPES:
        return f"not tested for {architecture.model_type}"
    if choices.mode not in ("lora", "qlora", "bottleneck"):
        return f"{MODE_NAMES[choices.mode]} trains or replaces them"
    if choices.modules_to_save:
        return f"method.modules_to_save trains {', '.join(choices.modules_to_save)}"
    return None


def spared(tiled_mlp: bool, activation_offload: bool, embedding_offload: bool) -> str:
    """What else saves memory, in words that follow `gradient checkpointing`."""
    states = ", hidden states in RAM" * activation_offload
    return ", MLPs in tiles" * tiled_mlp + states + ", embeddings in RAM" * embedding_offload


@dataclass(frozen=True)
class Stack:
    """Facts of the software below. The defaults are ftcli's own stack (transformers 5.24, peft
    0.21, bitsandbytes 0.50); other values describe the stacks of published measurements."""

    like_ours: bool = True
    """The loop and the layers are those of transformers and PEFT on one GPU."""
    adapter_bytes: Literal[2, 4] = 4
    """Bytes of one adapter weight; ftcli keeps adapters in fp32, see ftcli.models.methods."""
    saved_bytes: Literal[2, 4] | None = 4
    """Bytes of one weight of a module trained fully next to an adapter: ftcli keeps it in fp32, see
    ftcli.models.methods; None: in the model's own type, as PEFT copies it."""
    kbit_preparation: bool = False
    """peft's prepare_model_for_kbit_training: all that is not 4-bit becomes fp32."""
    foreach_optimizer: bool = False
    """torch's foreach AdamW instead of the fused one, transformers' default since torch 2.8."""
    steps_in_backward: bool = False
    """The optimizer steps as each gradient appears and frees it (torchtune's optimizer_in_bwd)."""
    full_loss_bytes_per_logit: int = 12
    """A loss on all logits: fp32 copy, log-softmax and gradient (transformers 4.49 and later);
    14 where the shift or the caller keeps the 16-bit logits too, 16 where it keeps fp32 ones."""
    fused_loss_bytes_per_hidden: int | None = None
    """A loss that never stores logits (Liger, cut cross entropy): bytes of each element of the
    last hidden states instead."""
    trl_head: bool = False
    """The chunked loss is TRL 1.16's own (add_fused_lm_head) instead of ftcli.models.loss."""
    quantization: Quantization | None = None
    """Quantisation of the frozen weights; None: NF4 in QLoRA, none elsewhere."""
    linear_experts: bool = False
    """Experts are linear layers, which bitsandbytes quantises (transformers before 5)."""
    fused_qkv: bool = False
    """q, k and v come out of one matrix whatever the model's own code does (litgpt)."""
    saves_quantised_inputs: bool = False
    """4-bit layers keep their inputs for a backward pass that has no use for them (bitsandbytes
    before 0.43)."""
    compiled: bool = False
    """torch.compile computes norms and activations again instead of keeping them."""
    overlaps_copies: bool = False
    """Offloaded activations are copied while the GPU computes (Unsloth, torchtune)."""
    trainable_parameters: int | None = None
    """Trained weights of a method that ftcli has no formula for; None: by formula."""


@dataclass(frozen=True)
class Choices:
    """One way to train. Defaults are those of `ftcli estimate-vram`."""

    mode: Mode
    precision: Precision = "bf16"
    """bf16 and fp16: autocast; pure-bf16: 16-bit weights without fp32 masters or autocast."""
    weights_dtype: WeightsDtype = "auto"
    """Of frozen weights; auto: 16-bit, but fp32 where precision is fp32."""
    optimizer: Optimizer = "adamw"
    rank: int = 16
    target_modules: Targets = "all-linear"
    layers: tuple[int, ...] | None = None
    """Numbers of the layers that LoRA adapts; None: all."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Modules with a rank of their own: the end of a name, as a pattern; the first that matches
    counts."""
    dropout: float = 0.0
    l2_sp: bool = False
    """Trained weights are pulled to their starts (training.l2_sp), which stay in memory."""
    experts: bool = False
    """LoRA adapts stacked experts too."""
    dora: bool = False
    """LoRA with a trained magnitude for each output (DoRA)."""
    modules_to_save: tuple[str, ...] = ()
    """Whole modules trained in addition to the adapters: `embed_tokens`, `lm_head`."""
    bottleneck: int = 64
    """Inner width of a bottleneck adapter."""
    placement: Placement = "both"
    """The blocks of a layer that are followed by an adapter."""
    virtual_tokens: int = 20
    """Trained positions of prefix and prompt tuning."""
    projection: bool = False
    """A prefix that comes out of a small network (P-tuning's reparametrisation)."""
    four_bit_base: bool = False
    """The frozen base of `FROZEN_MODES` is in NF4 (QLoRA's always is)."""
    double_quantization: bool = True
    micro_batch: int = 1
    seq_len: int = 1024
    """Tokens of the longest row, after truncation; for packed rows, of a micro-batch."""
    longest_row: int | None = None
    """Tokens of the longest of packed rows; None: `seq_len` is one row."""
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = True
    activation_offload: bool = False
    """With checkpointing: the layers' inputs are kept in RAM."""
    embedding_offload: bool = False
    """Frozen input embeddings and head are in RAM (ftcli.kernels.small_gpu)."""
    tiled_mlp: bool = False
    """With checkpointing: MLPs run on a tile of the tokens at a time (ftcli.kernels.small_gpu)."""
    attention: Attention = "sdpa"
    loss: Loss = "chunked"
    label_share: float = 1.0
    """Share of label tokens; the rest get no logits."""
    padding: bool = False
    """Rows of a micro-batch bring a mask of their padding. ftcli.models.loss passes none: it pads
    on the right, where causal attention never looks."""
    device: Literal["cuda", "cpu"] = "cuda"
    packing: bool = False
    """Several rows in one sequence; sdpa keeps them apart by a mask."""
    optimized: bool = False
    """The optimisations of docs/performance.md are on."""
    liger: bool = False
    """Norms, rotary positions and the MLP's gate are Liger's kernels (ftcli.kernels.liger): a norm
    keeps its input as it is, and the gate's activation is made again."""
    shares_keys: bool = True
    """The GPU's fused attention takes keys that several heads share; before 2020 they are repeated
    for it (ftcli.compat)."""
    keeps_dequantised: bool = False
    """Dequantised copies of all 4-bit weights stay in memory (a CPU with room)."""
    packed_rows: bool = False
    """Rows without padding: on a CPU through ftcli.kernels.attention, which keeps queries,
    keys, values and the attention probabilities of short rows, but not its output; on a GPU
    through torch's flash kernel, which keeps the same as for padded rows."""
    repeated_keys: int = 0
    """Keys of shared prefixes that a GPU's attention over packed rows repeats (ftcli.kernels.
    varlen), beyond one for each token."""
    stack: Stack = Stack()

    @property
    def positions(self) -> int:
        """Positions of one row in the layers: prompt tuning puts its virtual tokens before it."""
        return self.seq_len + (self.virtual_tokens if self.mode == "prompt-tuning" else 0)

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch."""
        return self.micro_batch * self.positions

    @property
    def keys(self) -> int:
        """Positions that a token of one row can attend to: a prefix is before it."""
        return self.positions + (self.virtual_tokens if self.mode == "prefix-tuning" else 0)

    @property
    def label_tokens(self) -> int:
        return math.ceil(self.micro_batch * self.seq_len * self.label_share)

    @property
    def has_lora(self) -> bool:
        return self.mode in ("lora", "qlora")

    @property
    def checkpointing(self) -> bool:
        """Whether layers are computed again; peft refuses it for a prefix (peft_model.py)."""
        return self.gradient_checkpointing and self.mode != "prefix-tuning"

    @property
    def offloading(self) -> bool:
        return self.activation_offload and self.checkpointing

    @property
    def spared(self) -> str:
        return spared(self.tiling, self.offloading, self.embedding_offload)

    @property
    def tiling(self) -> bool:
        return self.tiled_mlp and self.checkpointing

    @property
    def quantization(self) -> Quantization | None:
        if self.stack.quantization is not None:
            return self.stack.quantization
        if self.mode == "qlora" or (self.four_bit_base and self.mode in FROZEN_MODES):
            return "nf4"
        return None

    @property
    def autocast(self) -> bool:
        return self.precision in ("bf16", "fp16")

    @property
    def fused_lora(self) -> bool:
        """A frozen weight and its update are one node (ftcli.kernels.lora), which keeps the
        layer's input as it is."""
        return self.optimized and self.why_not_fused is None

    @property
    def why_not_fused(self) -> str | None:
        """Why LoRA cannot be fused; None if it can."""
        if not self.has_lora:
            return "there is no LoRA"
        if self.dora:
            return "DoRA divides by the norm of base and update"
        if self.dropout:
            return "dropout between a layer's input and its update"
        if not self.autocast and self.weight_bytes != self.stack.adapter_bytes:
            return "without autocast PEFT casts between 16-bit weights and fp32 updates"
        return None

    @property
    def kbit(self) -> bool:
        return self.quantization is not None and self.stack.kbit_preparation

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight that is not quantised."""
        if self.kbit:
            return 4
        if self.mode == "full":
            return 2 if self.precision == "pure-bf16" else 4
        if self.weights_dtype == "auto":
            return 4 if self.precision == "fp32" else 2
        return 4 if self.weights_dtype == "fp32" else 2

    @property
    def residual_bytes(self) -> int:
        """Bytes of one element of the residual stream: it follows embeddings and norms."""
        return self.weight_bytes

    @property
    def activation_bytes(self) -> int:
        """Bytes of one element that a linear layer returns.

        `Linear4bit` returns the type of its input, autocast or not.
        """
        if self.kbit or self.quantization == "nf4":
            return self.weight_bytes
        return 2 if self.autocast else self.weight_bytes

    @property
    def compute_bytes(self) -> int:
        """Bytes of one element in the attention kernel and the head, which autocast reaches."""
        return 2 if self.autocast else self.activation_bytes

    @property
    def mask(self) -> bool:
        """The attention kernel is given a mask, not only the word `causal`.

        Eager has no causal kernel and always adds one; flash has no use for one.
        """
        if self.attention == "flash" or self.packed_rows:
            return False
        if self.attention == "eager" or self.packing or self.mode == "prefix-tuning":
            # A prefix makes the keys longer than the queries, which `causal` cannot say.
            return True
        return self.padding and self.micro_batch > 1

    @property
    def own_attention(self) -> bool:
        """Rows are packed through ftcli's own attention."""
        return self.packed_rows and self.device == "cpu"

    @property
    def repeats_kv(self) -> bool:
        """Keys and values are copied to one per query head, unless the kernel can share them.

        transformers/integrations/sdpa_attention.py: `use_gqa_in_sdpa` is false with a mask.
        """
        return self.mask or not self.shares_keys

    def way(self, kind: LayerKind | None = None) -> Way:
        """How a layer of this kind computes; without one, a layer without a window."""
        # sdpa gets a mask for a window that is no longer than a row (transformers,
        # masking_utils.py, _ignore_causal_mask_sdpa).
        short = kind is not None and kind.window is not None and kind.window <= self.keys
        fused = self.attention == "sdpa" and not self.packed_rows
        wide = self.residual_bytes == 4 and self.autocast
        return Way(
            weight_bytes=4 if self.residual_bytes == 4 else 2,
            autocast=self.autocast,
            quantised=wide and (self.kbit or self.quantization == "nf4"),
            eager=self.attention == "eager" and not self.packed_rows,
            masked=fused and (self.mask or short),
            trained=self.mode == "full",
            tiled=self.tiling,
        )
