"""The machine's GPU or CPU as `Hardware`; recognising out of memory, and freeing memory."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ftcli.compat import repeat_shared_keys
from ftcli.config.recipe import Device, Recipe
from ftcli.environment import is_wsl
from ftcli.errors import MachineError
from ftcli.kernels.cpu import return_freed_memory
from ftcli.memory.hardware import (
    CARD_KERNELS,
    FIRST_WITH_BF16,
    FIRST_WITH_SHARED_KEYS,
    LEFT_FREE_BYTES,
    ComputeCapability,
    Hardware,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# CPU flags for bf16 products in hardware; otherwise they are emulated, several times slower than
# fp32 (measured on an AVX2 CPU: 0.02 against 0.15 TFLOP/s).
FAST_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}

# Messages of other errors than torch's OutOfMemoryError for out of memory.
NO_MEMORY = (
    "allocate memory",  # c10/core/impl/alloc_cpu.cpp
    "CUDA error: out of memory",  # torch.AcceleratorError: of CUDA itself, past torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED",  # ATen/cuda/Exceptions.cpp
    "CUBLAS_STATUS_NOT_INITIALIZED",  # a full GPU has no room for cuBLAS's handle
    "CUDNN_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",  # while loading a kernel
)

# Of a GPU's free memory that a plan may take under WSL: what does not fit is swapped, not refused.
WSL_SHARE = 0.9

# Traces of an NVIDIA driver and its GPUs, without torch.
NVIDIA_GPUS, NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus"), Path("/dev")
NVIDIA_SMI_SECONDS = 10


def hardware_for(recipe: Recipe) -> Hardware:
    """The device that this recipe's model uses here; raises MachineError."""
    try:
        return find_hardware(recipe.model.device)
    except MachineError as error:
        error.message += "; model.device: cpu uses the CPU instead"
        raise


def find_hardware(device: Device) -> Hardware:
    """The hardware for `model.device`: a GPU that torch can use, or the CPU.

    Raises MachineError (`no_cuda`) if `auto` finds an NVIDIA GPU that torch cannot use: training
    would silently take days on the CPU.
    """
    if device == "auto" and torch.cuda.is_available():
        return _first_gpu()
    if device == "auto" and not _gpu_is_hidden() and _has_nvidia_gpu():
        raise MachineError(
            "no_cuda",
            f"torch cannot use the NVIDIA GPU of this machine: {_why_no_cuda()}",
        )
    total, free = _memory()
    return Hardware(
        kind="cpu",
        name=_cpu_name(),
        memory_bytes=total,
        free_bytes=free,
        compute_capability=None,
        fast_bf16=bool(FAST_BF16_FLAGS & _cpu_flags()),
        cores=_cores(),
    )


def _first_gpu() -> Hardware:
    properties = torch.cuda.get_device_properties(0)
    capability, rocm = (properties.major, properties.minor), torch.version.hip is not None
    if not rocm and not _has_kernels(capability, torch.cuda.get_arch_list()):
        raise MachineError(
            "no_cuda",
            f"torch {torch.__version__} has no kernels for the {properties.name} (compute "
            f"capability {capability[0]}.{capability[1]}); install a build that has (pytorch.org, "
            "for an older or newer CUDA)",
        )
    free, total = torch.cuda.mem_get_info(0)
    wsl = is_wsl()
    usable = max(0, (int(WSL_SHARE * free) if wsl else free) - LEFT_FREE_BYTES)
    return Hardware(
        kind="cuda",
        name=properties.name,
        memory_bytes=total,
        free_bytes=usable,
        # ROCm's are numbers of another kind.
        compute_capability=None if rocm else capability,
        fast_bf16=rocm or capability >= FIRST_WITH_BF16,
        cores=os.cpu_count() or 1,
        kernels=frozenset(name for name in CARD_KERNELS if find_spec(name) is not None),
        rocm=rocm,
        wsl=wsl,
        ram_bytes=_memory()[1],
        gpus=torch.cuda.device_count(),
    )


def _has_kernels(capability: ComputeCapability, built: Sequence[str]) -> bool:
    """Whether a build for these architectures (`sm_86`, `compute_90`) runs on a GPU: code of the
    same major version and no later minor, or PTX of any earlier one (CUDA programming guide)."""
    for each in built:
        kind, _, digits = each.partition("_")
        if not digits[:-1].isdigit() or not digits[-1].isdigit():
            continue  # sm_90a is of one architecture alone
        architecture = (int(digits[:-1]), int(digits[-1]))
        same = architecture[0] == capability[0] or kind == "compute"
        if same and architecture <= capability:
            return True
    return not built  # a build without CUDA, or a test's


def free_bytes(device: torch.device) -> int:
    """Free memory, including what torch has reserved but does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return _memory()[1]


def _gpu_is_hidden() -> bool:
    """Whether the user has hidden every GPU from CUDA (CUDA programming guide)."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")


def _has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver reports a GPU; WSL has only nvidia-smi."""
    if any(NVIDIA_GPUS.glob("*")) or any(NVIDIA_DEVICES.glob("nvidia[0-9]*")):
        return True
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        found = subprocess.run([command, "-L"], capture_output=True, timeout=NVIDIA_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0 and found.stdout.startswith(b"GPU ")


def _why_no_cuda() -> str:
    """The reason and what to do."""
    if torch.version.cuda is None and torch.version.hip is None:
        public = torch.__version__.partition("+")[0]
        # PyPI has a CUDA build for this kind of machine only.
        usual = platform.system() == "Linux" and platform.machine() == "x86_64"
        install = f"pip install --force-reinstall torch=={public}" if usual else "see pytorch.org"
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build ({install})"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        words = " ".join(str(error).split()).partition(" Please ")[0].rstrip(".")
    else:
        words = "it finds none"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = f" (CUDA_VISIBLE_DEVICES is {visible})" if visible is not None else ""
    return (
        f"{words}{shown}; this build is for CUDA {torch.version.cuda}: update the NVIDIA driver, "
        "or give the container its GPUs (docker run --gpus all)"
    )


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Raise MachineError if torch runs out of memory in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = torch.cuda.get_device_name() if uses_gpu() else "this machine"
        raise MachineError("memory", f"{where} is out of memory: {advice}") from error


def uses_gpu() -> bool:
    """Whether this process uses a GPU; it may ignore an existing one."""
    return torch.cuda.is_initialized()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch's on GPU or CPU, CUDA's own, or Python's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in NO_MEMORY)


def free_memory() -> None:
    """Free unused memory, also on the GPU, before the next model is loaded.

    Trainers, callbacks and 4-bit layers have reference cycles, which only the collector frees.
    """
    gc.collect()
    return_freed_memory()
    torch.cuda.empty_cache()


def device_of(hardware: Hardware) -> torch.device:
    """torch's name for the hardware."""
    return torch.device("cuda", 0) if hardware.kind == "cuda" else torch.device("cpu")


def repeat_keys_if_needed(device: torch.device) -> None:
    """See `Hardware.shares_keys`: of a GPU of NVIDIA; ROCm has a kernel of its own."""
    if device.type != "cuda" or torch.version.hip is not None:
        return
    if torch.cuda.get_device_capability(device) < FIRST_WITH_SHARED_KEYS:
        repeat_shared_keys()


def input_device(network: PreTrainedModel) -> torch.device:
    """Where a model computes; its first weights may be those of a tower on the CPU, or of
    embeddings in RAM (ftcli.kernels.small_gpu)."""
    embeddings: Any = network.get_input_embeddings()
    found: torch.device = getattr(embeddings, "output_device", embeddings.weight.device)
    return found


def _cores() -> int:
    """Cores this process may use: its affinity, limited by its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores or 1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroups, or no quota ("max")
        return cores or 1


def _memory() -> tuple[int, int]:
    """Total and available bytes of memory."""
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cpu_name() -> str:
    return _cpu_info("model name") or "CPU"


def _cpu_flags() -> set[str]:
    return set((_cpu_info("flags") or _cpu_info("Features")).split())
