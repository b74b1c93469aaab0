"""How long an optimizer step takes on a GPU: a roofline (Williams et al. 2009) of the step.

Its products are counted by formula, and so are the bytes that other operations move and their
launches (tests/card counts both on a pretended GPU). The coefficients are fitted on half of the
published figures in docs/data/measured_speed.csv by `python -m scripts.speed_error --fit`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ftcli.console import about, duration
from ftcli.errors import MachineError
from ftcli.memory.activations.head_bytes import LOSS_CHUNK_POSITIONS
from ftcli.memory.activations.layers import TILE_TOKENS, offloaded_bytes
from ftcli.memory.adapted import adapted
from ftcli.memory.architecture import Architecture, LayerKind, in_mlp
from ftcli.memory.choices import Choices
from ftcli.memory.hardware import (
    GPU_SPEEDS,
    PCIE_BYTES_PER_SECOND,
    GpuSpeed,
    Hardware,
    gpu_name,
)
from ftcli.memory.trained import trainable_parameters, trains_head

COEFFICIENTS = Path(__file__).with_name("speed.json")

# Of a forward pass (FlashAttention-2, Dao 2023, section 4.1: 5 products against 2).
ATTENTION_BACKWARD = 2.5
# Bytes of a trained weight that an update reads and writes: weight, gradient and states.
UPDATE_BYTES = {"adamw": 28, "adamw-8bit": 16, "paged-adamw-8bit": 16, "sgd": 12}
# Bytes that a logit costs: written, shifted, exponentiated, summed, cast and read again
# (ftcli.kernels.head; transformers/loss/loss_utils.py moves about as many).
BYTES_PER_LOGIT = 34
# Reads and writes of each score of eager attention, forward and backward.
EAGER_ACCESSES = 16
# 4-bit weights: read, written in 16 bits, and read by the product.
DEQUANTISED_BYTES = 0.5 + 2 + 2
# Launches of a frozen layer's forward and backward pass, by linear module; what LoRA adds to each
# that it adapts, alone and fused; and what training its own weight adds (tests/card/budget.json).
LAUNCHES, LORA_LAUNCHES, FUSED_LAUNCHES, TRAINED_LAUNCHES, NF4_LAUNCHES = 17, 21, 13, 5, 3
# Liger has a kernel for what takes 50 launches in a layer of Llama.
LIGER_LAUNCHES = -7
# Share of a layer's work in its forward pass, which checkpointing repeats.
FORWARD = 0.4
# Share of its bandwidth that a GPU reaches in copies.
REACHED_BANDWIDTH = 0.85
# Of 200 TFLOP/s, for the exponent.
REFERENCE = 200e12


@dataclass(frozen=True)
class Coefficients:
    """What is fitted."""

    products: float
    """Share of a GPU's peak that products reach, at REFERENCE."""
    exponent: float
    """How that share falls with the peak."""
    low_power: float
    """Of it, what GPUs of at most 150 W reach."""
    moved: float
    """Times that each input and output of a linear module is read or written by other operations
    of a forward pass."""
    fused: float
    """Of that, what fused kernels move (Liger, Unsloth, torch.compile)."""
    moved_lora: float
    """Times that LoRA reads or writes inputs and outputs where it is not fused."""
    launch_seconds: float
    low: float
    """The interval: seconds are multiplied by it."""
    high: float


@dataclass(frozen=True)
class Work:
    """What one optimizer step asks of a GPU."""

    product_flops: float
    plain_bytes: float
    """Inputs and outputs of linear modules, as often as passes go through them."""
    lora_bytes: float
    """The same of modules with LoRA."""
    other_bytes: float
    """Weights, logits, scores of eager attention, the optimizer's update."""
    launches: float
    tokens: int


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step, and its interval."""

    seconds: float
    low: float
    high: float
    tokens: int
    """With padding."""
    bound_by: str
    """products, memory, launches or copies (to RAM): what takes most of it."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches in a training."""

    product_flops: float
    """In a second of 16-bit products."""
    bytes: float
    """In a second: of its memory."""
    copied_bytes: float
    """In a second: between its memory and pinned RAM."""
    launch_seconds: float


@cache
def _stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(COEFFICIENTS.read_text(encoding="utf-8"))
    return found


def store(part: str, values: dict[str, Any]) -> None:
    """Write `fitted` or `measured`; scripts do."""
    text = json.dumps(_stored() | {part: values}, indent=1)
    COEFFICIENTS.write_text(f"{text}\n", encoding="utf-8")
    _stored.cache_clear()


def coefficients() -> Coefficients:
    return Coefficients(**_stored()["fitted"])


def measured() -> dict[str, dict[str, float]]:
    """Rates of GPUs that scripts/bench_card.py has measured, by their names in GPU_SPEEDS."""
    found: dict[str, dict[str, float]] = _stored()["measured"]
    return found


def stated_rates(gpu: GpuSpeed, fitted: Coefficients | None = None) -> Rates:
    """By its maker's figures, and the shares of them that published runs reached."""
    found = fitted or coefficients()
    peak = gpu.tflops * 1e12
    reached = found.products * (peak / REFERENCE) ** -found.exponent
    reached *= found.low_power if gpu.low_power else 1.0
    return Rates(
        product_flops=peak * min(reached, 1.0),
        bytes=gpu.gigabytes_per_second * 1e9 * REACHED_BANDWIDTH,
        copied_bytes=PCIE_BYTES_PER_SECOND,
        launch_seconds=found.launch_seconds,
    )


def rates_of(gpu: str) -> Rates | None:
    """Of a GPU by its name here or in the driver: measured, else stated; None for another."""
    name = gpu_name(gpu)
    if name is None:
        return None
    own = measured().get(name)
    return stated_rates(GPU_SPEEDS[name]) if own is None else Rates(**own)


@dataclass(frozen=True)
class RunTime:
    """The time of a training on a GPU, without validations and saves."""

    step: StepTime
    seconds: float | None
    """None: how many tokens are trained on is not known."""
    cost_per_hour: float | None

    @property
    def cost(self) -> float | None:
        if self.seconds is None or self.cost_per_hour is None:
            return None
        return self.seconds / 3600 * self.cost_per_hour

    def scaled(self, value: float) -> tuple[float, float]:
        """The interval of seconds, or of what grows with them."""
        step = self.step
        return value * step.low / step.seconds, value * step.high / step.seconds

    def lines(self) -> Iterator[str]:
        """Tokens per second, and where the rows are known hours and cost, each with its
        interval."""
        names = {"memory": "memory traffic", "copies": "copies to RAM"}
        step = self.step
        slow, fast = (step.tokens / seconds for seconds in (step.high, step.low))
        yield (
            f"time   {step.tokens_per_second:,.0f} tokens per second ({slow:,.0f} to {fast:,.0f}); "
            f"most of it {names.get(step.bound_by, step.bound_by)}"
        )
        if self.seconds is None:
            return
        low, high = self.scaled(self.seconds)
        cost = ""
        if self.cost is not None:
            least, most = self.scaled(self.cost)
            cost = (
                f"; {self.cost:,.2f} ({least:,.2f} to {most:,.2f}) at {self.cost_per_hour:g} "
                "per hour"
            )
        yield (
            f"       {about(self.seconds)} ({duration(low)} to {duration(high)}) for all steps, "
            f"without validations and saves{cost}"
        )

    def as_json(self) -> dict[str, Any]:
        step, cost = self.step, self.cost
        found: dict[str, Any] = {
            "tokens_per_second": round(step.tokens_per_second, 1),
            "tokens_per_second_interval": [
                round(step.tokens / each, 1) for each in (step.high, step.low)
            ],
            "seconds_per_step": step.seconds,
            "tokens_per_step": step.tokens,
            "bound_by": step.bound_by,
            "seconds": self.seconds,
        }
        if self.seconds is not None:
            found["seconds_interval"] = list(self.scaled(self.seconds))
        if cost is not None:
            found["cost"], found["cost_interval"] = cost, list(self.scaled(cost))
        return found


def run_time(
    architecture: Architecture,
    choices: Choices,
    hardware: Hardware,
    tokens: float | None,
    cost_per_hour: float | None = None,
) -> RunTime:
    """The time of a training of so many tokens; raises MachineError (`time`)."""
    require_timed(architecture, choices)
    rates = rates_of(hardware.name)
    if rates is None:
        raise MachineError(
            "time",
            f"--time: the speed of {hardware.name} is not known; name a GPU, as --gpu 4090 "
            f"({', '.join(GPU_SPEEDS)})",
        )
    step = step_time(architecture, choices, rates)
    seconds = None if tokens is None else tokens / step.tokens_per_second
    return RunTime(step, seconds, cost_per_hour)


def require_timed(architecture: Architecture, choices: Choices) -> None:
    """Raise MachineError (`time`) for what no formula here counts."""
    why = None
    if architecture.has_experts:
        why = "how many experts see a token is not known"
    elif architecture.recurrent or not architecture.linear_parameters:
        why = "its layers are not products of linear modules and attention alone"
    elif choices.precision == "fp32":
        why = "no figures of training in fp32 were collected"
    if why is not None:
        raise MachineError("time", f"--time: {why}, so the time of a step cannot be estimated")


def step_time(
    architecture: Architecture,
    choices: Choices,
    rates: Rates,
    fitted: Coefficients | None = None,
) -> StepTime:
    """Seconds of an optimizer step on a GPU of these rates."""
    found, work = fitted or coefficients(), step_work(architecture, choices)
    moved = found.moved * (found.fused if is_fused(choices) else 1.0)
    lora = 0.0 if fuses_lora(choices) else found.moved_lora
    total_bytes = moved * work.plain_bytes + lora * work.lora_bytes + work.other_bytes
    copied = 2 * offloaded_bytes(architecture, choices) + _copied_head(architecture, choices)
    copied *= choices.gradient_accumulation
    parts = {
        "products": work.product_flops / rates.product_flops,
        "memory": total_bytes / rates.bytes,
        "launches": work.launches * rates.launch_seconds,
        "copies": 0.0 if choices.stack.overlaps_copies else copied / rates.copied_bytes,
    }
    on_gpu = parts["products"] + parts["memory"] + parts["copies"]
    # The host launches while the GPU computes; where both take as long, neither hides the other.
    seconds = (on_gpu**4 + parts["launches"] ** 4) ** 0.25
    return StepTime(
        seconds,
        seconds * found.low,
        seconds * found.high,
        work.tokens,
        max(parts, key=parts.__getitem__),
    )


def _copied_head(architecture: Architecture, choices: Choices) -> int:
    """Bytes of a head in RAM that go to the GPU in a micro-batch: all of it for each chunk."""
    chunks = math.ceil(choices.label_tokens / LOSS_CHUNK_POSITIONS)
    head = architecture.vocab * architecture.hidden * choices.weight_bytes
    return chunks * head if choices.embedding_offload else 0


def is_fused(choices: Choices) -> bool:
    return choices.liger or choices.stack.compiled


def fuses_lora(choices: Choices) -> bool:
    return choices.fused_lora or choices.stack.compiled


def step_work(architecture: Architecture, choices: Choices) -> Work:
    """Counted over all micro-batches of a step."""
    tokens, times = choices.tokens, choices.gradient_accumulation
    again = 1 if choices.checkpointing else 0
    full = choices.mode == "full"
    passes = 2 + again + full  # forward, again, gradients of inputs, of weights
    flops = plain = others = launches = 0.0
    for kind in architecture.kinds:
        layers = len(kind.layers)
        elements = sum(each.elements for each in kind.linear)
        flops += layers * 2 * elements * tokens * passes
        widths = sum(each.inputs + each.outputs for each in kind.linear)
        plain += layers * widths * choices.activation_bytes * tokens * (3 + again)
        flops += layers * _attention_flops(kind, choices) * (1 + ATTENTION_BACKWARD + again)
        others += layers * _scores_bytes(kind, choices) * (1 + again / 3)
        # Weights are read, and kernels launched, once for each tile of an MLP.
        more = math.ceil(tokens / TILE_TOKENS) - 1 if choices.tiling else 0
        tiled = [each for each in kind.linear if in_mlp(each)]
        read = elements + more * sum(each.elements for each in tiled)
        others += layers * passes * _weight_bytes(read, choices)
        if choices.tiling and sum(norm.rows == 1 for norm in kind.norms) > 2:  # one after the MLP
            flops += layers * 2 * tokens * sum(each.elements for each in tiled)
        modules = len(kind.linear) + more * len(tiled)
        launches += layers * modules * _launches(choices) * (1 + FORWARD * again)
    lora_bytes, lora_launches = _lora(architecture, choices, again)
    trained = trainable_parameters(architecture, choices)
    flops += 0 if full else 2 * trained * tokens * (3 + again)
    labels = choices.label_tokens if choices.loss == "chunked" else choices.tokens
    head = architecture.vocab * architecture.hidden
    flops += 2 * head * labels * (2 + trains_head(architecture, choices))
    others += labels * architecture.vocab * BYTES_PER_LOGIT
    return Work(
        product_flops=times * flops,
        plain_bytes=times * plain,
        lora_bytes=times * lora_bytes,
        other_bytes=times * others + trained * UPDATE_BYTES[choices.optimizer],
        launches=times * (launches + lora_launches),
        tokens=times * tokens,
    )


def _attention_flops(kind: LayerKind, choices: Choices) -> float:
    """Of a forward pass: half of the keys of a row, on average; eager attention computes all."""
    row = choices.keys if choices.longest_row is None else choices.longest_row
    keys = float(row if kind.window is None else min(row, kind.window))
    keys *= 1.0 if choices.attention == "eager" else 0.5
    widths = sum(call.heads * (call.key_width + call.value_width) for call in kind.attention)
    return 2 * keys * widths * choices.tokens


def _scores_bytes(kind: LayerKind, choices: Choices) -> float:
    if choices.attention != "eager":
        return 0
    heads = sum(call.heads for call in kind.attention)
    return EAGER_ACCESSES * heads * choices.keys * choices.tokens * choices.compute_bytes


def _weight_bytes(elements: int, choices: Choices) -> float:
    if choices.quantization is not None:
        return elements * DEQUANTISED_BYTES
    cast = choices.weight_bytes + choices.compute_bytes if choices.weight_bytes == 4 else 0
    return elements * (choices.compute_bytes + cast)


def _launches(choices: Choices) -> float:
    """Of one linear module of a layer, forward and backward."""
    found = LAUNCHES + (LIGER_LAUNCHES if is_fused(choices) else 0)
    found += TRAINED_LAUNCHES if choices.mode == "full" else 0
    return found + (NF4_LAUNCHES if choices.quantization is not None else 0)


def _lora(architecture: Architecture, choices: Choices, again: int) -> tuple[float, float]:
    """Bytes and launches of the modules that LoRA adapts."""
    if not choices.has_lora:
        return 0.0, 0.0
    size = launches = 0.0
    each = FUSED_LAUNCHES if fuses_lora(choices) else LORA_LAUNCHES
    for alike in adapted(architecture, choices).kinds:
        widths = sum(one.linear.inputs + one.linear.outputs for one in alike.updates)
        size += alike.layers * widths * choices.activation_bytes * choices.tokens * (3 + again)
        launches += alike.layers * len(alike.updates) * each * (1 + FORWARD * again)
    return size, launches
