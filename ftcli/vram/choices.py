"""What decides the memory of a training step, besides the model's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ftcli.shapes import Targets

Mode = Literal["full", "lora", "qlora"]
Precision = Literal["bf16", "fp16", "fp32", "pure-bf16"]
WeightsDtype = Literal["auto", "bf16", "fp16", "fp32"]
Optimizer = Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "sgd"]
Attention = Literal["sdpa", "flash", "eager"]
Loss = Literal["chunked", "full"]


@dataclass(frozen=True)
class Stack:
    """Facts of the software below. The defaults are ftcli's own stack (transformers 5.24, peft
    0.21, bitsandbytes 0.50); other values describe the stacks of published measurements."""

    adapter_bytes: Literal[2, 4] = 4
    """Bytes of one adapter weight; ftcli keeps adapters in fp32, see engine.methods."""
    kbit_preparation: bool = False
    """peft's prepare_model_for_kbit_training: all that is not 4-bit becomes fp32."""
    foreach_optimizer: bool = False
    """torch's foreach AdamW instead of the fused one, transformers' default since torch 2.8."""
    full_loss_bytes_per_logit: int = 12
    """A loss on all logits: fp32 copy, log-softmax and gradient (transformers 4.49 and later);
    14 where the shift or the caller keeps the 16-bit logits too, 16 where it keeps fp32 ones."""


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
    targets: Targets = "all-linear"
    dropout: float = 0.0
    double_quantization: bool = True
    micro_batch: int = 1
    seq_len: int = 1024
    """Tokens of the longest row, after padding and truncation."""
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = True
    attention: Attention = "sdpa"
    loss: Loss = "chunked"
    labelled_share: float = 1.0
    """Share of the tokens that are trained on; the rest get no logits."""
    padding: bool = False
    """Rows of a micro-batch bring a mask of their padding. ftcli.engine.loss passes none: it pads
    on the right, where causal attention never looks."""
    packing: bool = False
    """Several rows in one sequence; sdpa keeps them apart by a mask."""
    stack: Stack = Stack()

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.micro_batch * self.seq_len

    @property
    def labelled_tokens(self) -> int:
        return math.ceil(self.tokens * self.labelled_share)

    @property
    def autocast(self) -> bool:
        return self.precision in ("bf16", "fp16")

    @property
    def kbit(self) -> bool:
        return self.mode == "qlora" and self.stack.kbit_preparation

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
        if self.kbit:
            return 4
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
        if self.attention == "flash":
            return False
        return self.attention == "eager" or self.packing or (self.padding and self.micro_batch > 1)

    @property
    def repeats_kv(self) -> bool:
        """Keys and values are copied to one per query head, unless the kernel can share them.

        transformers/integrations/sdpa_attention.py: `use_gqa_in_sdpa` is false with a mask.
        """
        return self.mask
