"""Lines of `ftcli estimate-vram`: verdict, items, step, figures, GPU; changes, sweeps, runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from ftcli.console import print_result, shown_path, width, wrapped
from ftcli.memory import Choices, Estimate
from ftcli.memory.choices import MODE_NAMES, why_no_checkpointing
from ftcli.memory.fit.fitting import Alternatives, FitResult
from ftcli.memory.fit.limits import MOST, Limit, Sweep, SweepRow
from ftcli.memory.hardware import Hardware
from ftcli.memory.step import ANSWERED_ROWS
from ftcli.shell import GIB, gib, shown_size
from ftcli.training.estimate.estimate_memory import EstimateResult

if TYPE_CHECKING:
    from ftcli.training.estimate.calibrate import CalibratedRun, CalibrationResult, Figure

LABELS = {
    "weights": "weights",
    "quantization": "quantisation constants",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "l2_sp": "starting weights (L2-SP)",
    "activations": "activations",
    "logits": "logits and loss",
    "workspace": "workspace",
    "reserve": "allocator's reserve",
    "context": "CUDA context",
    "interval": "up to the upper bound",
    "free": "free",
}
# Distinct without colour, on any terminal and in a file.
FILLS = {
    "weights": "█",
    "quantization": "▓",
    "adapter": "▒",
    "gradients": "#",
    "optimizer": "=",
    "l2_sp": "^",
    "activations": "+",
    "logits": "~",
    "workspace": "-",
    "reserve": "%",
    "context": ":",
    "interval": "?",
    "free": "·",
}
# Columns of the shortest bar that is worth showing.
MIN_BAR = 10
# Smaller items get no line.
LEAST_BYTES = 5e6


def show_estimate(found: EstimateResult) -> None:
    """Print an estimate."""
    _print(estimate_lines(found))


def show_calibration(found: CalibrationResult) -> None:
    """Print what recorded runs took, next to their estimates."""
    _print(calibration_lines(found))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        indent = len(line) - len(line.lstrip(" ")) + 2
        print_result(wrapped(line, " " * indent).replace("\xa0", " "))


def estimate_lines(found: EstimateResult) -> Iterator[str]:
    """The verdict, then what it is based on; no line is wider than the terminal."""
    yield _verdict(found)
    if found.fits_card is False and found.fit is None and found.instead is None:
        yield "--fit instead of --gpu finds the cheapest changes that fit"
    yield f"{_what(found)}, {_how(found.choices)}"
    for note in _notes(found):
        yield f"note: {note}"
    yield from _items(found.estimate)
    yield from _step(found.estimate)
    yield from _figures(found.estimate)
    if found.hardware is not None:
        yield from _gpu(found.estimate, found.hardware)
        yield from _fit_and_limit(found, found.hardware)
    if found.time is not None:
        yield ""
        yield from found.time.lines()
    if found.sweep is not None:
        yield from _sweep(found.sweep)
    if found.textbook and found.fit is None and found.limit is None and found.sweep is None:
        yield ""
        yield "Textbook figures for full fine-tuning, before activations:"
        for figure in found.textbook:
            start = f"  {figure.label:<24}{gib(figure.total_bytes):>9}  "
            yield start + figure.why


def _fit_and_limit(found: EstimateResult, hardware: Hardware) -> Iterator[str]:
    """The lines of --fit and --max."""
    if found.fit is not None:
        yield from _changes(found.fit, hardware, found.written)
    if found.instead is not None:
        yield ""
        yield _nothing(found.instead, hardware)
    if found.limit is not None:
        yield from _limit(found.limit, hardware)


def _what(found: EstimateResult) -> str:
    estimate, choices = found.estimate, found.choices
    parameters = f"{estimate.total_parameters / 1e9:.2f} B parameters"
    hub_id = found.architecture.hub_id
    known_as = f"{hub_id}, " if hub_id and hub_id.lower() != found.architecture.name.lower() else ""
    size = f"{found.architecture.name} ({known_as}{parameters})"
    if choices.mode == "full":
        return f"{size}, full fine-tuning"
    share = estimate.trainable_parameters / estimate.total_parameters
    return f"{size}, {MODE_NAMES[choices.mode]}{_sizes(choices)} ({share:.2%} trained)"


def _sizes(choices: Choices) -> str:
    """The size of the method, and whether the base is in 4 bits if its name does not say so."""
    four_bits = " on a 4-bit base" if choices.four_bit_base else ""
    match choices.mode:
        case "full":
            return ""
        case "lora" | "qlora":
            return f" r={choices.rank}"
        case "bottleneck":
            return f" of width {choices.bottleneck}{four_bits}"
        case "prefix-tuning" | "prompt-tuning":
            return f" with {choices.virtual_tokens} virtual tokens{four_bits}"
        case _:
            assert_never(choices.mode)


def _how(choices: Choices) -> str:
    checkpointing = "with" if choices.checkpointing else "without"
    return (
        f"micro-batch {choices.micro_batch} × {choices.seq_len} tokens, {choices.precision}, "
        f"{checkpointing} gradient checkpointing{choices.spared}, {choices.optimizer}, "
        f"{choices.attention}"
    )


def _notes(found: EstimateResult) -> Iterator[str]:
    """What the flags do not show."""
    choices, architecture = found.choices, found.architecture
    stacks = [each for kind in architecture.kinds for each in kind.experts]
    if choices.quantization is not None and not all(each.quantises for each in stacks):
        yield "the experts stay in 16 bits: their rows are not whole blocks of 64 weights"
    if stacks and choices.has_lora and not choices.experts:
        yield "the experts stay frozen; method.experts adapts them too"
    if (why := why_no_checkpointing(choices.mode, architecture)) is not None:
        yield f"no gradient checkpointing: {why}"
    if choices.attention == "sdpa" and "sdpa" not in architecture.attention:
        yield f"{architecture.name} has no sdpa attention in transformers: taken as eager"
    if found.open_choices:
        yield (
            f"{' and '.join(found.open_choices)} (auto): the smallest value is taken; --gpu GPU "
            "plans them as train does"
        )


def _items(estimate: Estimate) -> Iterator[str]:
    items = [(LABELS[k], size) for k, size in estimate.breakdown.items() if size >= LEAST_BYTES]
    largest = max(size for _, size in items)
    for label, size in items:
        yield _barred(label, size, largest)


def _step(estimate: Estimate) -> Iterator[str]:
    """The phases of a step in order; the largest is the peak."""
    yield f"peak {shown_size(estimate.peak_bytes)}, at the {estimate.peak_phase}"
    for name, size in estimate.phases.items():
        mark = " peak" if name == estimate.peak_phase else ""
        yield _barred(name, size, estimate.peak_bytes, mark)


def _barred(label: str, size: int, largest: int, mark: str = "") -> str:
    start = f"  {label:<24}{shown_size(size):>{max(9, len(shown_size(largest)) + 1)}}  "
    bar = width() - len(start) - len(" peak")
    if bar < MIN_BAR:
        return f"{start.rstrip()}{mark}"
    return f"{start}{'█' * max(1, round(bar * size / largest))}{mark}"


def _figures(estimate: Estimate) -> Iterator[str]:
    low, high = estimate.low_bytes / GIB, estimate.high_bytes / GIB
    yield (
        f"allocated by tensors {shown_size(estimate.peak_bytes)} · reserved by the allocator "
        f"{shown_size(estimate.reserved_bytes)} · shown by nvidia-smi, with the context, "
        f"{shown_size(estimate.device_bytes)}"
    )
    yield f"between {low:.1f} and {high:.1f} GiB, based on {estimate.based_on}"
    if estimate.managed_bytes:
        yield (
            f"paged optimizer states {shown_size(estimate.managed_bytes)} more: on the GPU while "
            "there is room, else in RAM"
        )
    outside = estimate.moments
    on_host = outside["merge_on_cpu"]
    merge = f" · merge {shown_size(on_host)} of RAM" if on_host else ""
    if outside["ram"]:
        yield f"in RAM while it trains: {shown_size(outside['ram'])}"
    yield (
        f"outside the step: validation {shown_size(outside['validation'])} · generation, "
        f"batch {ANSWERED_ROWS}, {shown_size(outside['answers'])} (smaller batches less){merge}"
    )


def _gpu(estimate: Estimate, hardware: Hardware) -> Iterator[str]:
    """One bar of the whole GPU, and its legend."""
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
    yield " " + "  ".join(signs)


def _parts(estimate: Estimate, hardware: Hardware) -> dict[str, int]:
    """The parts of the GPU's memory, in bytes."""
    items = dict(estimate.breakdown)
    context = items.pop("context")
    taken = {**items, "reserve": estimate.reserved_bytes - estimate.peak_bytes, "context": context}
    upper = estimate.high_bytes - estimate.device_bytes
    free = max(0, hardware.usable_bytes - estimate.high_bytes)
    return {**taken, "interval": upper, "free": free}


def _verdict(found: EstimateResult) -> str:
    """`Fits: 7.4 of 24.0 GiB (RTX 4090 24GB)`; without a GPU, which known ones it fits."""
    if found.hardware is None:
        return _fitting_gpus(found.estimate)
    usable = f"{gib(found.hardware.usable_bytes)} ({found.hardware.name})"
    needed, most = found.estimate.device_bytes / GIB, found.estimate.high_bytes / GIB
    if not found.fits_card:
        return f"Does not fit: {needed:.1f} of {usable}"
    if not found.fits_upper_bound:
        return f"May not fit: {needed:.1f}, upper bound {most:.1f} of {usable}"
    return f"Fits: {needed:.1f} of {usable}"


def _fitting_gpus(estimate: Estimate) -> str:
    """GPUs that fit by the upper bound, and GPUs that fit by the estimate only."""
    surely = [name for name, fits in estimate.fits_upper_bound.items() if fits]
    perhaps = [name for name, fits in estimate.fits.items() if fits and name not in surely]
    parts = [f"Fits: {', '.join(surely)}"] if surely else []
    parts += [f"may not fit (upper bound too large): {', '.join(perhaps)}"] * bool(perhaps)
    return "; ".join(parts) or "Fits none of the known GPUs"


def _changes(found: FitResult, hardware: Hardware, written: Path | None) -> Iterator[str]:
    """The changes with their costs, and the resulting training."""
    yield ""
    if found.changes:
        yield f"to fit {hardware.name}, the cheapest changes:"
    for change in found.changes:
        upper = f"up to {gib(change.high_bytes)}"
        yield f"  {change.change}: {gib(change.device_bytes)}, {upper} ({change.key})"
        yield f"    costs {change.cost}"
    yield _outcome(found, hardware)
    if written is not None:
        yield f"written: {shown_path(written)}"


def _outcome(found: FitResult, hardware: Hardware) -> str:
    choices = found.choices
    as_it_is = "" if choices.spared else " as it is"
    start = "then" if found.changes else f"fits {hardware.name}{as_it_is}"
    checkpointing = "with" if choices.gradient_checkpointing else "without"
    return (
        f"{start}: micro-batch {choices.micro_batch} × {choices.gradient_accumulation}, "
        f"{checkpointing} gradient checkpointing{choices.spared}, {_figure(found.estimate)} of "
        f"{gib(hardware.usable_bytes)}"
    )


def _nothing(instead: Alternatives, hardware: Hardware) -> str:
    text = f"no change of `ftcli train` makes it fit {hardware.name}"
    ways = []
    if instead.card is not None:
        ways.append(f"{instead.card} takes it (--fit {instead.card.replace('RTX ', '')!r})")
    if instead.model is not None:
        ways.append(f"--model {instead.model} fits with nothing else changed")
    if not ways:
        return f"{text}, and no other known GPU and no smaller known model fits either"
    return f"{text}, and ftcli trains on one GPU; {', or '.join(ways)}"


def _limit(limit: Limit, hardware: Hardware) -> Iterator[str]:
    """The largest value that fits, by the upper bound."""
    if limit.value is None or limit.estimate is None:
        yield f"not even {limit.size} 1 fits {hardware.name}"
        return
    more = " or more" if limit.value == MOST else ""
    spared, in_ram = limit.choices.spared, limit.estimate.moments["ram"]
    context = f"; gradient checkpointing{spared}" * bool(spared)
    context += f", {gib(in_ram)} of it" * bool(in_ram)
    context += "; the model's own limit is not checked" * (limit.size == "max-length")
    yield (
        f"largest {limit.size} that fits {hardware.name}: {limit.value}{more} "
        f"({_figure(limit.estimate)} of {gib(hardware.usable_bytes)}){context}"
    )


def _sweep(sweep: Sweep) -> Iterator[str]:
    """A table of the values, with a bar of what nvidia-smi shows."""
    yield ""
    heads = [sweep.size, "allocated", "on the GPU", "between", "fits"]
    cells = [_cells(row) for row in sweep.rows]
    columns = list(zip(heads[: len(cells[0])], *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    starts = [
        "  " + "  ".join(cell.rjust(each) for cell, each in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]
    yield starts[0]
    sizes = [row.estimate.device_bytes for row in sweep.rows]
    bar = max(1, width() - len(starts[0]) - 2)
    for start, size in zip(starts[1:], sizes, strict=True):
        yield f"{start}  {'█' * max(1, round(bar * size / max(sizes)))}"


def _cells(row: SweepRow) -> list[str]:
    estimate = row.estimate
    between = f"{estimate.low_bytes / GIB:.1f}–{estimate.high_bytes / GIB:.1f} GiB"
    figures = [gib(estimate.peak_bytes), gib(estimate.device_bytes), between]
    fits = [] if row.fits is None else ["yes" if row.fits else "no"]
    return [str(row.value), *figures, *fits]


def _figure(estimate: Estimate) -> str:
    return f"{gib(estimate.device_bytes)}, up to {gib(estimate.high_bytes)}"


ON_A_CPU = (
    "resident: RAM, above the memory of the process before the model; the interval is from runs on "
    "GPUs"
)


def calibration_lines(found: CalibrationResult) -> list[str]:
    """Each run with its figures, then a summary."""
    lines = [line for run in found.runs for line in _run_lines(run)]
    count = len(found.figures)
    figures = "1 figure" if count == 1 else f"{count} figures"
    error = f"{found.median_error:.1%}"
    lines.append(f"median error {error} of {figures}, {found.inside} inside the interval")
    if any(figure.measure == "resident" for figure in found.figures):
        lines.append(ON_A_CPU)
    return lines


def _run_lines(run: CalibratedRun) -> Iterator[str]:
    choices = run.record.choices
    rank = f" r={choices.rank}" if choices.has_lora else ""
    checkpointing = "on" if choices.checkpointing else "off"
    facts = (
        run.record.model,
        f"{MODE_NAMES[choices.mode]}{rank}",
        choices.precision,
        f"{choices.micro_batch} × {choices.seq_len} tokens",
        f"gradient checkpointing {checkpointing}",
        run.machine,
    )
    yield shown_path(run.run.path)
    yield f"  {' · '.join(facts)}"
    for figure in run.figures:
        yield _figure_line(figure)


def _figure_line(figure: Figure) -> str:
    direction = "high" if figure.error > 0 else "low"
    where = "inside" if figure.inside else "outside"
    interval = f"{_size(figure.low_bytes)} to {_size(figure.high_bytes)}"
    return (
        f"  {figure.measure:<9} {_size(figure.measured_bytes):>8} · "
        f"estimate {_size(figure.estimated_bytes)}, {abs(figure.error):.1%} too {direction} · "
        f"{where} {interval}"
    )


def _size(size_bytes: int) -> str:
    """GiB with two decimals, which show an error of 1%."""
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else shown_size(size_bytes)
