"""A pretended NVIDIA GPU for a build of torch without CUDA: tensors on it have no values.

Fake tensors may be on `cuda`, but torch's autograd then asks for a device guard and for the hooks
of CUDA, which a CPU build lacks. Both are C++ objects with virtual functions; here their tables
are written with ctypes. `torch.cuda` is patched, so that libraries find the GPU too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from bitsandbytes.functional import name2qmap
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from transformers import masking_utils

from ftcli.memory.hardware import FIRST_WITH_SHARED_KEYS, Card, find_card

LIBRARIES = Path(torch.__file__).parent / "lib"
CUDA = 1  # c10/core/DeviceType.h
REGISTER_GUARD = (
    "_ZN3c104impl19registerDeviceGuardENS_10DeviceTypeEPKNS0_24DeviceGuardImplInterfaceE"
)
CUDA_HOOKS = "_ZN2at6detail12getCUDAHooksEv"
# at::CUDAHooksInterface of torch 2.13: two destructors, then these.
IS_BUILT, IS_AVAILABLE, HAS_PRIMARY_CONTEXT = 2, 3, 4
FUNCTIONS = 48
BEFORE = 2  # words of a table before its functions: offset and type

FOREACH = (torch.utils._foreach_utils, torch.nn.utils.clip_grad)
PINNED = "pretended_pinned"

_KEPT: list[Any] = []
"""What C++ points to."""


def _function(value: int) -> int:
    """Address of a function that returns this."""
    made = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: value)
    _KEPT.append(made)
    return int(ctypes.cast(made, ctypes.c_void_p).value or 0)


def register_guard() -> None:
    """Let autograd have one device of CUDA; call it before the first backward pass of a process.

    torch replaces a guard of no devices by one that does nothing.
    """
    if torch.version.cuda is not None:
        return
    register = getattr(ctypes.CDLL(str(LIBRARIES / "libc10.so")), REGISTER_GUARD)
    register.argtypes, register.restype = [ctypes.c_int8, ctypes.c_void_p], None
    table = (ctypes.c_void_p * FUNCTIONS)(*[_function(0)] * FUNCTIONS)
    guard = ctypes.c_void_p(ctypes.addressof(table))
    _KEPT.extend((table, guard))
    register(CUDA, ctypes.addressof(guard))
    torch._C._ensureCUDADeviceGuardSet()


@contextmanager
def _cuda_hooks() -> Iterator[None]:
    """CUDA is the accelerator of torch's C++ code."""
    hooks = getattr(ctypes.CDLL(str(LIBRARIES / "libtorch_cpu.so")), CUDA_HOOKS)
    hooks.restype, hooks.argtypes = ctypes.c_void_p, []
    pointer = ctypes.c_void_p.from_address(hooks())
    own = int(pointer.value or 0)
    words = range(-BEFORE, FUNCTIONS)
    table = (ctypes.c_void_p * len(words))(
        *(ctypes.c_void_p.from_address(own + 8 * word).value for word in words)
    )
    for slot, value in ((IS_BUILT, 1), (IS_AVAILABLE, 1), (HAS_PRIMARY_CONTEXT, 0)):
        table[BEFORE + slot] = _function(value)
    _KEPT.append(table)
    pointer.value = ctypes.addressof(table) + 8 * BEFORE
    try:
        assert torch._C._get_accelerator().type == "cuda"
        yield
    finally:
        pointer.value = own


def _replacements(card: Card) -> dict[str, Any]:
    capability = card.compute_capability or (8, 9)
    free = card.hardware.free_bytes
    properties = SimpleNamespace(
        name=f"NVIDIA GeForce {card.model}",
        major=capability[0],
        minor=capability[1],
        total_memory=card.memory_bytes,
        multi_processor_count=128,
    )
    random = torch.zeros(16, dtype=torch.uint8)
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: capability >= (8, 0),
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
        "device_count": lambda: 1,
        "set_device": lambda _: None,
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: capability,
        "mem_get_info": lambda *_: (free, card.memory_bytes),
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "max_memory_reserved": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "get_rng_state": lambda *_: random,
        "get_rng_state_all": lambda: [random],
        "set_rng_state": lambda *_: None,
        "set_rng_state_all": lambda *_: None,
        "manual_seed": lambda _: None,
        "manual_seed_all": lambda _: None,
    }


def _cast_in_place(one: Tensor, other: Tensor) -> None:
    """torch 2.13 swaps the parameters of a module that it casts, and refuses to for fake ones."""
    assert one.device == other.device, "make it on the card: a fake parameter cannot be moved"
    one.data = other.data


def _is_cuda(tensors: Any, device: torch.device) -> bool:
    return device.type == "cuda"


def _pin_memory(tensor: Tensor) -> Tensor:
    """A copy that `is_pinned` knows."""
    pinned = tensor.clone()
    mark_pinned(pinned)
    return pinned


def mark_pinned(tensor: Tensor) -> None:
    setattr(tensor, PINNED, True)


def is_pinned(tensor: Tensor) -> bool:
    return hasattr(tensor, PINNED)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that torch 2.13 chooses (ATen/native/transformers/cuda, sdp_utils.cpp): a CPU
    build has only the products."""
    if torch.is_autocast_enabled("cuda"):  # it casts for this function (ATen/autocast_mode.h)
        half = torch.get_autocast_dtype("cuda")
        query, key, value = (each.to(half) for each in (query, key, value))
    fused = torch.cuda.get_device_capability() >= FIRST_WITH_SHARED_KEYS
    assert fused or not enable_gqa, "all scores would be made"
    if fused and attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    grad = torch.is_grad_enabled()
    return efficient(query, key, value, attn_mask, grad, dropout_p, is_causal, scale=scale)[0]


@contextmanager
def pretended_card(name: str = "RTX 4090") -> Iterator[FakeTensorMode]:
    """Within the block torch has this GPU, and new tensors have no values."""
    from accelerate.state import AcceleratorState, PartialState

    card = find_card(name)
    with ExitStack() as stack:
        stack.enter_context(_cuda_hooks())
        for function, other in _replacements(card).items():
            stack.enter_context(mock.patch.object(torch.cuda, function, other))
            if hasattr(torch.cuda.random, function):
                stack.enter_context(mock.patch.object(torch.cuda.random, function, other))
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(mock.patch.object(torch.utils, "swap_tensors", _cast_in_place))
        stack.enter_context(mock.patch.dict(name2qmap, clear=True))  # else with fake tensors
        for state in (AcceleratorState, PartialState):  # each knows the device of the process
            stack.enter_context(mock.patch.dict(state._shared_state, clear=True))
        # transformers takes fake tensors for a traced graph, in which it makes every mask.
        stack.enter_context(mock.patch.object(masking_utils, "is_tracing", lambda *_: False))
        for module in FOREACH:  # which torch takes for no subclass
            stack.enter_context(mock.patch.object(module, "_has_foreach_support", _is_cuda))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", _pin_memory))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attention))
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        yield stack.enter_context(mode)
