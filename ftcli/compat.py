"""Names of Python and libraries that ftcli uses or replaces though they are private: nine, each
with its reason.

tests/test_compat.py fails first when a library moves one. Libraries are imported in functions, to
keep this module light. Not counted: methods of transformers' Trainer (training/) and PEFT's
BaseTuner (models/bottleneck.py) that subclasses implement or override, and `_apply_gate`, which
transformers' interface for experts has each registered function call.
"""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

CPU_OPERATIONS = "bitsandbytes.backends.cpu.ops"
FALCON = "transformers.models.falcon.modeling_falcon"


class _WithoutHubKernel(MetaPathFinder):
    """Imports one module of bitsandbytes as if the package `kernels` were not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == CPU_OPERATIONS else None
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_without(module: ModuleType) -> None:
            modules: dict[str, Any] = sys.modules
            found = {"kernels": modules["kernels"]} if "kernels" in modules else {}
            modules["kernels"] = None  # its import raises ImportError, which bitsandbytes catches
            try:
                execute(module)
            finally:
                del modules["kernels"]
                modules |= found

        loader.exec_module = execute_without
        return spec


def refuse_hub_kernel() -> None:
    """Call before bitsandbytes is imported: on a CPU with bf16 units, version 0.50 fetches a kernel
    from the hub and runs it if the package `kernels` is installed. No setting turns that off, and
    the kernel in its wheel computes the same."""
    if not any(isinstance(finder, _WithoutHubKernel) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WithoutHubKernel())


def attention_name(model: PreTrainedModel) -> str:
    """Name of the attention that the layers use; transformers has only a public setter."""
    found: str = model.config.get_text_config(decoder=True)._attn_implementation
    return found


@contextmanager
def attention_named(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the block, layers use the attention registered with transformers under this name.

    Run the backward pass in it too: gradient checkpointing runs layers again.
    """
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def repeat_shared_keys() -> None:
    """Have transformers repeat keys that several heads share before it calls torch's sdpa.

    On a GPU before 2020 torch has no fused kernel for shared keys, and would make all scores
    (aten/native/transformers/cuda/sdp_utils.cpp); transformers 5.24 asks for no such case.
    """
    from transformers.integrations import sdpa_attention

    sdpa_attention.use_gqa_in_sdpa = lambda *_: False


def softmax_backward(upstream: Tensor, probabilities: Tensor) -> Tensor:
    """Gradient of a softmax over the last dimension, in one pass over memory, as in autograd.

    With public operations it would read and write the probabilities three times.
    """
    import torch

    return torch._softmax_backward_data(upstream, probabilities, -1, probabilities.dtype)


def gate_experts(module: Any, rows: Tensor) -> Tensor:
    """Activation of an expert's first product, for a module of transformers' experts."""
    found: Tensor = module._apply_gate(rows) if module.has_gate else module.act_fn(rows)
    return found


def stay_in_place(module: nn.Module) -> None:
    """Keep a module's weights where and as they are when the model around it is moved or cast.

    torch moves the parts of a model by their `_apply`; Trainer and accelerate move whole models.
    """
    own: Any = module
    own._apply = lambda *_, **__: own


@contextmanager
def replaced(owner: Any, name: str, other: Any) -> Iterator[None]:
    """A function or class of a library replaced within the block."""
    own = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, own)


def rows_known_as_padded() -> AbstractContextManager[None]:
    """Within the block transformers does not ask whether rows are packed: it would read the
    positions, for which the host waits (5.24, masking_utils.py)."""
    from transformers import masking_utils

    return replaced(masking_utils, "find_packed_sequence_indices", lambda *_: None)


def no_placement_hooks() -> AbstractContextManager[None]:
    """Within the block, a model whose device map names several devices gets no hooks of accelerate,
    which would copy whole modules to the GPU for each of their calls."""
    from transformers import modeling_utils

    return replaced(modeling_utils, "accelerate_dispatch", lambda *_: None)


def plain_falcon_layers() -> AbstractContextManager[None]:
    """Within the block, Falcon's linear layers are torch's own: they compute the same, and
    transformers 5.24 quantises no subclass (integrations/bitsandbytes.py)."""
    from torch import nn

    return replaced(import_module(FALCON), "FalconLinear", nn.Linear)


def fake_tensors() -> AbstractContextManager[object]:
    """Within the block, tensors have sizes and types, but no values: torch has no public name."""
    from torch._subclasses import FakeTensorMode

    # It prints the traceback of what a class cannot do, which the caller handles.
    logging.getLogger(FakeTensorMode.__module__).setLevel(logging.CRITICAL)
    return FakeTensorMode()


def run_exit_functions() -> None:
    """Run what was registered with atexit: `os._exit` skips it, and there is no public call."""
    atexit._run_exitfuncs()
