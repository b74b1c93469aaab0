"""Memory and abilities of a machine: this one, or a GPU known by name."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ftcli.errors import UsageError
from ftcli.shell import GIB

ComputeCapability = tuple[int, int]

# `ftcli[cuda]` brings it.
CARD_KERNELS = ("liger_kernel",)

# CUDA programming guide, table of arithmetic by compute capability: bf16 since Ampere.
FIRST_WITH_BF16: ComputeCapability = (8, 0)
# torch's fused attention for keys that heads share (aten/native/transformers/cuda/sdp_utils.cpp).
FIRST_WITH_SHARED_KEYS: ComputeCapability = (8, 0)


@dataclass(frozen=True)
class Hardware:
    """The machine that a plan is made for; `ftcli.models.device` asks torch for it."""

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    """Memory of the GPU, or RAM without one."""
    free_bytes: int
    """What a training may take; of a GPU without LEFT_FREE_BYTES."""
    compute_capability: ComputeCapability | None
    """None without CUDA."""
    fast_bf16: bool
    """bf16 runs on matrix units of its own, not through fp32."""
    cores: int
    """0 for a GPU known by name: its machine is not known."""
    kernels: frozenset[str] = frozenset()
    """Installed packages of CARD_KERNELS, on a machine with a GPU."""
    rocm: bool = False
    """An AMD GPU, which torch calls CUDA."""
    wsl: bool = False
    """Linux in Windows, whose driver swaps a full GPU's memory to RAM instead of failing."""
    ram_bytes: int | None = None
    """Free RAM of a machine with a GPU; None: not known."""
    gpus: int = 1
    """GPUs that torch sees; the first is used."""

    @property
    def title(self) -> str:
        """`NVIDIA GeForce RTX 4090`, or `CPU (AMD EPYC)`."""
        if self.gpus > 1:
            return f"{self.name} (the first of {self.gpus} GPUs)"
        named = self.kind == "cuda" or self.name == "CPU"
        return self.name if named else f"CPU ({self.name})"

    @property
    def shares_keys(self) -> bool:
        """Its fused attention takes keys that several heads share."""
        capability = self.compute_capability
        return capability is None or capability >= FIRST_WITH_SHARED_KEYS

    @property
    def usable_bytes(self) -> int:
        """What a training may take, as nvidia-smi shows it: with its CUDA context."""
        own = context_bytes(self.compute_capability) if self.kind == "cuda" else 0
        return self.free_bytes + own


# What a CUDA process takes before its first tensor: nvidia-smi minus torch's reserved memory.
_CONTEXT_BYTES: dict[ComputeCapability, int] = {
    (7, 0): int(0.30 * GIB),  # V100: assumed
    (7, 5): int(0.14 * GIB),  # T4: 141 MiB over 79 runs of fitcheck
    (8, 0): int(0.55 * GIB),  # A100: 0.50 to 0.55, gaps in the memory logs of axolotl
    (8, 6): int(0.45 * GIB),  # A10, RTX 30: assumed
    (8, 9): int(0.45 * GIB),  # L4, RTX 40: assumed
    (9, 0): int(0.55 * GIB),  # H100, H200: assumed equal to the A100
    (12, 0): int(0.55 * GIB),  # RTX 50: assumed equal to the largest
}
_UNKNOWN_CONTEXT_BYTES = max(_CONTEXT_BYTES.values())


def context_bytes(capability: ComputeCapability | None) -> int:
    """Bytes of a CUDA context on a GPU of this capability; the largest known for others."""
    if capability is None:
        return _UNKNOWN_CONTEXT_BYTES
    return _CONTEXT_BYTES.get(capability, _UNKNOWN_CONTEXT_BYTES)


class GpuSpeed(NamedTuple):
    """Of a GPU as its maker states it: dense products of 16-bit numbers that are summed in fp32,
    and its memory."""

    tflops: float
    gigabytes_per_second: float
    low_power: bool = False
    """At most 150 W, with which it cannot keep its clock in products."""


# NVIDIA's data sheets and its whitepapers of Ampere GA102, Ada and Blackwell RTX.
GPU_SPEEDS = {
    "RTX 3060": GpuSpeed(25.6, 360),
    "RTX 3070": GpuSpeed(40.6, 448),
    "RTX 3080": GpuSpeed(59.5, 760),
    "RTX 3090": GpuSpeed(71, 936),
    "RTX 3090 Ti": GpuSpeed(80, 1008),
    "RTX 4060 Ti": GpuSpeed(44.1, 288),
    "RTX 4070": GpuSpeed(58.3, 504),
    "RTX 4070 Ti SUPER": GpuSpeed(88.2, 672),
    "RTX 4080": GpuSpeed(97.5, 717),
    "RTX 4090": GpuSpeed(165.2, 1008),
    "RTX 5080": GpuSpeed(112.6, 960),
    "RTX 5090": GpuSpeed(209.5, 1792),
    "T4": GpuSpeed(65, 320, low_power=True),
    "V100": GpuSpeed(125, 900),
    "A10": GpuSpeed(125, 600, low_power=True),
    "A10G": GpuSpeed(70, 600, low_power=True),
    "L4": GpuSpeed(121, 300, low_power=True),
    "A100": GpuSpeed(312, 2039),
    "A100 40GB": GpuSpeed(312, 1555),
    "H100": GpuSpeed(989, 3350),
    "H200": GpuSpeed(989, 4800),
}


# What the driver adds to a model's name, as in `NVIDIA A100-SXM4-80GB`.
_ADDED = re.compile(r"NVIDIA|GeForce|Tesla|[-\s]SXM\d?|[-\s]?PCI[Ee]|HBM\de?|[-\s]\d+\s?GB\b")


def gpu_name(name: str) -> str | None:
    """In GPU_SPEEDS, of a GPU by its name here or in the driver; None for another, such as a
    laptop's."""
    model = _ADDED.sub(" ", name).strip()
    if model == "A100" and re.search(r"\b40\s?GB", name):
        model = "A100 40GB"
    return model if model in GPU_SPEEDS else None


# What PCIe 4.0 with 16 lanes reaches for pinned memory, of 32 GB/s.
PCIE_BYTES_PER_SECOND = 20e9

# Kernels of cuBLAS, bitsandbytes and Triton are loaded when they are first used; a desktop grows.
LEFT_FREE_BYTES = 3 * GIB // 10

# A desktop session takes 0.3 to 1 GiB of the GPU that drives the display; the middle is assumed.
DISPLAY_BYTES = GIB // 2

# CUDA shows 97% (8 GiB) to 99% (80 GiB) of a GPU's memory; the driver keeps the rest.
_VISIBLE_SHARE = 0.98


@dataclass(frozen=True)
class Card:
    """A GPU as it is sold."""

    model: str
    sold_gib: float
    visible_gib: float
    """Total capacity as torch's out-of-memory messages state it."""
    compute_capability: ComputeCapability | None
    drives_display: bool
    """Assumed of desktop GPUs, not of data-centre GPUs."""

    @property
    def name(self) -> str:
        return f"{self.model} {self.sold_gib:g}GB"

    @property
    def memory_bytes(self) -> int:
        return int(self.sold_gib * GIB)

    @property
    def usable_bytes(self) -> int:
        """What is left for training, its CUDA context included."""
        display_bytes = DISPLAY_BYTES if self.drives_display else 0
        return int(self.visible_gib * GIB) - display_bytes - LEFT_FREE_BYTES

    @property
    def context_bytes(self) -> int:
        return context_bytes(self.compute_capability)

    @property
    def hardware(self) -> Hardware:
        """A machine with this GPU, of which only the display and the context take memory.

        A GPU known only by its size is assumed to have bf16, as all since 2020.
        """
        capability = self.compute_capability
        return Hardware(
            kind="cuda",
            name=self.name,
            memory_bytes=self.memory_bytes,
            free_bytes=self.usable_bytes - self.context_bytes,
            compute_capability=capability,
            fast_bf16=capability is None or capability >= FIRST_WITH_BF16,
            cores=0,
            kernels=frozenset(CARD_KERNELS),
        )


# No GPU is smaller or larger: such a size is a typing error (`4090gb`).
_LEAST_GIB, _MOST_GIB = 2, 512

# Of a model with two sizes the smaller is first: the name without a size means that one.
KNOWN_CARDS: tuple[Card, ...] = (
    Card("RTX 3060", 12, 11.76, (8, 6), True),
    Card("RTX 3070", 8, 7.78, (8, 6), True),
    Card("RTX 3080", 10, 9.77, (8, 6), True),
    Card("RTX 3080", 12, 11.76, (8, 6), True),
    Card("RTX 3090", 24, 23.69, (8, 6), True),
    Card("RTX 4060 Ti", 16, 15.70, (8, 9), True),
    Card("RTX 4070", 12, 11.73, (8, 9), True),
    Card("RTX 4080", 16, 15.69, (8, 9), True),
    Card("RTX 4090", 24, 23.64, (8, 9), True),
    # 16 GB by docs.nvidia.com/nim (supported models); as much of it visible as of the RTX 4080's.
    Card("RTX 5080", 16, 15.69, (12, 0), True),
    Card("RTX 5090", 32, 31.36, (12, 0), True),
    Card("T4", 16, 14.56, (7, 5), False),
    Card("V100", 16, 15.77, (7, 0), False),
    Card("V100", 32, 31.73, (7, 0), False),
    Card("A10", 24, 22.04, (8, 6), False),
    Card("A10G", 24, 22.04, (8, 6), False),
    Card("L4", 24, 22.03, (8, 9), False),
    Card("A100", 40, 39.38, (8, 0), False),
    Card("A100", 80, 79.15, (8, 0), False),
    Card("H100", 80, 79.10, (9, 0), False),
    Card("H200", 141, 139.80, (9, 0), False),
)


def find_card(wanted: str) -> Card:
    """The GPU named by `4090`, `rtx 4090`, `A100 80GB`, or a size (`24GB`, `24`).

    A size is a desktop GPU of that many GiB. Raises UsageError (`gpu_unknown`).
    """
    key = _key(wanted)
    for card in KNOWN_CARDS:
        if key in (_key(card.model), _key(card.name)):
            return card
    size = re.fullmatch(r"(\d+(?:\.\d+)?)(gi?b?)?", key)
    if size and _LEAST_GIB <= float(size.group(1)) <= _MOST_GIB:
        return card_of_size(float(size.group(1)))
    models = {_key(card.model): card.model for card in KNOWN_CARDS}
    near = [models[name] for name in difflib.get_close_matches(key, models, n=3, cutoff=0.6)]
    *others, last = near or [""]
    meant = f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?" if last else ""
    raise UsageError(
        "gpu_unknown",
        f"no GPU {wanted!r} is known{meant or '.'} Give the memory of another GPU, e.g. 8GB; "
        f"known by name: {', '.join(card.name for card in KNOWN_CARDS)}",
    )


def card_of_size(gib: float) -> Card:
    """A desktop GPU known only by its size in GiB."""
    return Card("GPU of", gib, _VISIBLE_SHARE * gib, None, drives_display=True)


def _key(name: str) -> str:
    """`NVIDIA GeForce RTX 4090` → `4090`."""
    return re.sub(r"nvidia|geforce|rtx|tesla|[\s_-]", "", name.lower())
