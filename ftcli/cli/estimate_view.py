"""Lines of `ftcli estimate-vram`: the items, the step, the figures, the card."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import assert_never

from ftcli.cli.fit_view import fit_lines, limit_lines, sweep_lines
from ftcli.console import gigabytes, megabytes, width
from ftcli.memory import Choices, Estimate
from ftcli.memory.choices import MODE_NAMES, NO_CHECKPOINTING
from ftcli.memory.hardware import Hardware
from ftcli.memory.step import ANSWERED_ROWS
from ftcli.training.estimate.result import EstimateResult

LABELS = {
    "weights": "weights",
    "quantization": "quantisation constants",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "hold": "starting weights (hold)",
    "activations": "activations",
    "logits": "logits and loss",
    "workspace": "workspace",
    "reserve": "allocator's reserve",
    "context": "CUDA context",
    "interval": "up to the upper end",
    "free": "free",
}
# Told apart without colour, on any terminal and in a file.
FILLS = {
    "weights": "█",
    "quantization": "▓",
    "adapter": "▒",
    "gradients": "#",
    "optimizer": "=",
    "hold": "^",
    "activations": "+",
    "logits": "~",
    "workspace": "-",
    "reserve": "%",
    "context": ":",
    "interval": "?",
    "free": "·",
}
# Too small to be worth a line.
LEAST_BYTES = 5e6


def estimate_lines(found: EstimateResult) -> Iterator[str]:
    """The whole answer, none of its lines longer than the terminal is wide."""
    yield from _wrapped(f"{_what(found)}, {_how(found.choices)}", "  ")
    for note in _notes(found):
        yield from _wrapped(f"note: {note}", "  ")
    yield from _items(found.estimate)
    yield from _step(found.estimate)
    yield from _figures(found.estimate)
    if found.hardware is not None:
        yield from _card(found.estimate, found.hardware)
    yield from _wrapped(_fits(found), "      ")
    if found.fits_card is False and found.fit is None:
        yield "--fit in place of --gpu finds the cheapest changes that do"
    if found.fit is not None and found.hardware is not None:
        yield from fit_lines(found.fit, found.hardware, found.written)
    if found.limit is not None and found.hardware is not None:
        yield from limit_lines(found.limit, found.hardware)
    if found.sweep is not None:
        yield from sweep_lines(found.sweep)
    if found.fit is None and found.limit is None and found.sweep is None:
        yield from _textbook(found)


def _what(found: EstimateResult) -> str:
    estimate, choices = found.estimate, found.choices
    parameters = f"{estimate.total_parameters / 1e9:.2f} B parameters"
    hub_id = found.shape.hub_id
    known_as = f"{hub_id}, " if hub_id and hub_id.lower() != found.shape.name.lower() else ""
    size = f"{found.shape.name} ({known_as}{parameters})"
    if choices.mode == "full":
        return f"{size}, full fine-tuning"
    share = estimate.trainable_parameters / estimate.total_parameters
    return f"{size}, {MODE_NAMES[choices.mode]}{_sizes(choices)} ({share:.2%} trained)"


def _sizes(choices: Choices) -> str:
    """What gives a method its size, and how it holds the base where that is not its name."""
    four_bits = " on a 4-bit base" if choices.four_bit_base else ""
    match choices.mode:
        case "full":
            return ""
        case "lora" | "qlora":
            return f" r={choices.rank}"
        case "adapter":
            return f" of width {choices.bottleneck}{four_bits}"
        case "prefix" | "prompt":
            return f" with {choices.virtual_tokens} virtual tokens{four_bits}"
        case _:
            assert_never(choices.mode)


def _how(choices: Choices) -> str:
    checkpointing = "with" if choices.checkpointing else "without"
    return (
        f"micro-batch {choices.micro_batch} × {choices.seq_len} tokens, {choices.precision}, "
        f"{checkpointing} gradient checkpointing, {choices.optimizer}, {choices.attention}"
    )


def _notes(found: EstimateResult) -> Iterator[str]:
    """What is not as the words of the flags would have it."""
    choices, shape = found.choices, found.shape
    if shape.experts > 1 and choices.quantization is not None:
        yield "the experts stay in 16 bits: 4-bit quantisation reaches linear layers alone"
    if shape.experts > 1 and choices.mode != "full":
        yield "ftcli train takes mixtures of experts with mode full alone"
    if choices.mode == "prefix":
        yield f"no gradient checkpointing: {NO_CHECKPOINTING}"
    if shape.capped_scores and choices.attention == "sdpa":
        yield f"{shape.name} caps its attention scores, which sdpa cannot: taken as eager"
    if found.open_choices:
        yield (
            f"what the recipe leaves open ({', '.join(found.open_choices)}) is taken at its "
            "smallest; --fit shows what train takes on a card"
        )


def _items(estimate: Estimate) -> Iterator[str]:
    items = [(LABELS[k], size) for k, size in estimate.breakdown.items() if size >= LEAST_BYTES]
    largest = max(size for _, size in items)
    for label, size in items:
        yield _barred(label, size, largest)


def _step(estimate: Estimate) -> Iterator[str]:
    """The moments of a step in their order; the greatest is the peak."""
    yield f"peak {megabytes(estimate.peak_bytes)}, at the {estimate.peak_phase}"
    for name, size in estimate.phases.items():
        mark = " peak" if name == estimate.peak_phase else ""
        yield _barred(name, size, estimate.peak_bytes, mark)


def _barred(label: str, size: int, largest: int, mark: str = "") -> str:
    start = f"  {label:<24}{megabytes(size):>{max(9, len(megabytes(largest)) + 1)}}  "
    bar = max(10, width() - len(start) - len(" peak"))
    return f"{start}{'█' * max(1, round(bar * size / largest))}{mark}"


def _figures(estimate: Estimate) -> Iterator[str]:
    low, high = estimate.low_bytes / 1e9, estimate.high_bytes / 1e9
    yield from _wrapped(
        f"allocated by tensors {megabytes(estimate.peak_bytes)} · reserved by the allocator "
        f"{megabytes(estimate.reserved_bytes)} · shown by nvidia-smi, with the context, "
        f"{megabytes(estimate.device_bytes)}",
        "  ",
    )
    yield from _wrapped(f"between {low:.1f} and {high:.1f} GB: rests on {estimate.rests_on}", "  ")
    if estimate.managed_bytes:
        yield from _wrapped(
            f"paged optimizer states {megabytes(estimate.managed_bytes)} more: on the card while "
            "there is room, else in the host's memory",
            "  ",
        )
    moments = estimate.moments
    on_host = moments["merge_on_cpu"]
    merge = f" · merge {megabytes(on_host)} of the host's memory" if on_host else ""
    yield from _wrapped(
        f"outside the step: validation {megabytes(moments['validation'])} · up to {ANSWERED_ROWS} "
        f"answers at once {megabytes(moments['answers'])}, fewer at once less{merge}",
        "  ",
    )


def _card(estimate: Estimate, hardware: Hardware) -> Iterator[str]:
    """One bar of the whole card, and what its signs mean."""
    parts = _parts(estimate, hardware)
    space = width() - 2
    total = max(sum(parts.values()), hardware.usable_bytes)
    bar, reached = "", 0
    for name, size in parts.items():
        reached += size
        bar += FILLS[name] * (round(space * reached / total) - len(bar))
    end = round(space * hardware.usable_bytes / total)
    yield f"|{bar[:end]}|{bar[end:]}"
    signs = [f"{FILLS[n]}\xa0{LABELS[n].replace(' ', chr(160))}" for n in parts if FILLS[n] in bar]
    for line in _wrapped(" " + "  ".join(signs), " "):
        yield line.replace("\xa0", " ")


def _parts(estimate: Estimate, hardware: Hardware) -> dict[str, int]:
    """The card's memory from its start to its end, in bytes."""
    items = dict(estimate.breakdown)
    context = items.pop("context")
    taken = {**items, "reserve": estimate.reserved_bytes - estimate.peak_bytes, "context": context}
    upper = estimate.high_bytes - estimate.device_bytes
    free = max(0, hardware.usable_bytes - estimate.high_bytes)
    return {**taken, "interval": upper, "free": free}


def _fits(found: EstimateResult) -> str:
    if found.hardware is None:
        return _fitting_cards(found.estimate)
    usable, memory = found.hardware.usable_bytes, found.hardware.memory_bytes
    card = f"{found.hardware.name} ({usable / 1e9:.1f} of its {gigabytes(memory)} usable)"
    if not found.fits_card:
        return f"does not fit: {card}"
    return f"fits: {card}" if found.surely_fits else f"fits, but for the interval's end: {card}"


def _fitting_cards(estimate: Estimate) -> str:
    """Those that take the upper end of the interval, and those that take the estimate alone."""
    surely = [name for name, fits in estimate.surely_fits.items() if fits]
    perhaps = [name for name, fits in estimate.fits.items() if fits and name not in surely]
    parts = [f"fits: {', '.join(surely)}"] if surely else []
    parts += [f"perhaps, by the estimate alone: {', '.join(perhaps)}"] if perhaps else []
    return "; ".join(parts) or "fits no single card that is known here"


def _textbook(found: EstimateResult) -> Iterator[str]:
    if found.textbook:
        yield ""
        yield "Textbook figures for full fine-tuning, before activations:"
    for figure in found.textbook:
        start = f"  {figure.label:<24}{gigabytes(figure.total_bytes):>9}  "
        yield from _wrapped(start + figure.why, " " * len(start))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, width(), subsequent_indent=indent, break_on_hyphens=False)
