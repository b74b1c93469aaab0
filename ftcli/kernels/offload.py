"""Hidden states in RAM between the forward and the backward pass.

With gradient checkpointing autograd saves the input of each layer, and nothing in a layer: it runs
again in the backward pass, outside of this context. torch's `save_on_cpu` copies all that is saved,
tables of positions too, and waits for each copy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakTensorKeyDictionary


def in_ram(hidden: int) -> saved_tensors_hooks:
    """Within the block, saved tensors [..., hidden] are in RAM until the backward pass reads them.

    On a GPU the copies are queued after the work that made the tensor, and before its reading.
    """

    copied: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor] | Tensor:
        if tensor.shape[-1:] != (hidden,) or tensor.dim() < 3:
            return tensor
        if tensor not in copied:  # a norm saves its input twice
            kept = torch.empty(
                tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
            )
            copied[tensor] = kept.copy_(tensor, non_blocking=True)
        return tensor.device, copied[tensor]

    def unpack(packed: tuple[torch.device, Tensor] | Tensor) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, kept = packed
        return kept.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
