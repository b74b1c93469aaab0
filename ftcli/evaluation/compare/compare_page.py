"""compare.md and the terminal's output: table and notes of a comparison, and its plot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from ftcli.console import counted, duration
from ftcli.evaluation.compare.cells import METHODS, cell_label, short_rate
from ftcli.evaluation.statistics import percent
from ftcli.runs.results import ComparedBase, ComparedCell, CompareResult
from ftcli.shell import gib, shown_path, shown_size

NONE = "–"
MARKERS = "osD^vP"


def table_rows(found: CompareResult) -> list[dict[str, str]]:
    """Rows of the table, the base first: column → cell."""
    rows = [{"method": "base", "learning rate": "", **_scores(found.base, found)}]
    for cell in found.finished:
        star = " *" if cell.chosen and found.has_rates else ""
        speed = cell.tokens_per_second
        rows.append(
            {
                "method": cell.method,
                "learning rate": short_rate(cell.learning_rate) + star,
                **_scores(cell, found),
                "trainable parameters": amount(cell.trainable_parameters),
                "peak memory": gib(cell.peak_memory_bytes),
                "tokens/s": NONE if speed is None else f"{speed:,.0f}",
                "file size": shown_size(cell.saved_bytes),
                "time": ("≥ " if cell.resumed else "") + duration(cell.seconds),
            }
        )
    return [dict.fromkeys(rows[-1], "") | row for row in rows]


def _scores(of: ComparedBase | ComparedCell, found: CompareResult) -> dict[str, str]:
    """Cells of the scores; general text: the base's perplexity, and its change by the training."""
    loss, general = of.scores["loss"], of.scores.get("general_text")
    before = found.base.scores.get("general_text")
    low, high = loss.interval
    words = {"held-out loss": f"{loss.value:.3f} ({low:.2f}–{high:.2f})"}
    shares = {"format valid": "format_rate", "finished (EOS)": "stop_rate"}
    for head, name in shares.items():
        if name in of.scores:
            words[head] = percent(of.scores[name].value)
        elif any(name in cell.scores for cell in found.finished):
            words[head] = NONE
    words["general text"] = NONE
    if general is not None and isinstance(of, ComparedBase):
        words["general text"] = f"{math.exp(general.value):.1f}"
    elif general is not None and before is not None:
        change = math.expm1(general.value - before.value)
        shown = f"{change:+.{1 if abs(change) < 0.0995 else 0}%}"
        words["general text"] = shown.replace("-", "−")
    return words


def amount(count: int) -> str:
    """`135 M`, `4.9 M`, `9.2 k`: three figures at most."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 99.5 else f"{value:.1f}{unit}"
    return str(count)


def headline(found: CompareResult) -> str:
    """Of a local model, its folder's name."""
    local = found.model.startswith((".", "/", "~"))
    model = Path(found.model).name if local else found.model
    return f"{model}, tuned on the data of {shown_path(Path(found.recipe))}"


def notes(found: CompareResult) -> Iterator[str]:
    """What a reader of the figures needs to know."""
    steps = "the recipe's own length" if found.steps is None else counted(found.steps, "step")
    length = f"{steps} each"
    text = f" ({found.general_text})" if found.general_text else ""
    yield (
        f"{counted(found.rows, 'held-out row')} ({found.data}), {length}, seed {found.seed}; "
        f"general text: change of its perplexity{text}"
    )
    yield (
        "better and worse are corrected for all pairs of methods and base (Holm); intervals do not "
        "cover what another training seed would change"
    )
    if found.data == "validation":
        yield "these rows chose the checkpoints; set data.test for a fair loss"
    rounded = [cell.name for cell in found.finished if cell.four_bit]
    if rounded and found.base.four_bit:
        yield "the base is in 4 bits, as these methods use it"
    elif rounded:
        yield (
            f"general text of {', '.join(rounded)}: change from the base in 16 bits, quantisation "
            "to 4 bits included"
        )
    if found.has_rates:
        yield "* the rate with the lowest validation loss of its method"
    if any(cell.resumed for cell in found.finished):
        yield "≥ stopped and resumed: the time of its last process alone"
    for cell in found.failed:
        yield f"{cell.name} failed: {' '.join(cell.reason.split())}"


def page(found: CompareResult, picture: str) -> str:
    """compare.md; `picture`: path of the plot from there."""
    rows = table_rows(found)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    parts = (
        f"# {headline(found)}",
        found.verdict,
        "\n".join(f"| {' | '.join(cells)} |" for cells in lines),
        "\n".join(f"- {note}" for note in notes(found)),
        f"![held-out loss and trainable parameters]({picture})\n",
    )
    return "\n\n".join(parts)


def draw(found: CompareResult, file: Path) -> None:
    """Held-out loss by trainable parameters, one point per cell; rates not chosen are faint."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="trainable parameters", ylabel="held-out loss (95% interval)")
    for cell in found.finished:
        loss = cell.scores["loss"]
        low, high = loss.interval
        axes.errorbar(
            cell.trainable_parameters,
            loss.value,
            yerr=[[max(0.0, loss.value - low)], [max(0.0, high - loss.value)]],
            # A method has the same marker in every plot, so that colour is not needed.
            marker=MARKERS[METHODS.index(cell.method)],
            color=f"C{METHODS.index(cell.method)}",
            linestyle="none",
            alpha=1.0 if cell.chosen else 0.35,
            capsize=3,
            label=cell_label(cell),
        )
    axes.axhline(found.base.scores["loss"].value, color="0.35", linestyle="--", label="base")
    axes.set_xscale("log")
    axes.set_title(headline(found), fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=150)
