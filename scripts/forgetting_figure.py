"""The picture and the table of what scripts/forgetting.py has found, in docs/forgetting.md.

python scripts/forgetting_figure.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INCHES = (7.0, 4.6)
# Told apart with any colour vision (Okabe and Ito 2008), and by their form.
COLOURS = {"full": "#D55E00", "replay": "#009E73", "hold": "#0072B2", "lora": "#CC79A7"}
MARKERS = {"full": "o", "replay": "s", "hold": "^", "lora": "D"}
# On a ground of its own the picture can be read on a light page and on a dark one.
PAPER, INK, GRID = "#ffffff", "#1f2328", "#d1d9e0"

DOCS = Path(__file__).resolve().parents[1] / "docs"
FOUND, FIGURE = DOCS / "data" / "forgetting.json", DOCS / "figures" / "forgetting.svg"
PAGE = DOCS / "forgetting.md"
BEGIN, END = "<!-- begin: scripts/forgetting_figure.py -->", "<!-- end -->"

Cell = Mapping[str, Any]


def main() -> None:
    draw(json.loads(FOUND.read_text("utf-8")), FIGURE)
    PAGE.write_text(page(), "utf-8")


def page() -> str:
    """The page as it is, with the picture and the table of what was found."""
    result = json.loads(FOUND.read_text("utf-8"))
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    picture = f"![{alternative(result)}](figures/{FIGURE.name})"
    part = "\n\n".join([BEGIN, picture, table(result), END])
    return f"{before}{part}{rest.partition(END)[2]}"


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Task loss against forgetting, a point a training with its 95% intervals."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "ftcli", "text.color": INK}
    settings |= dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=INCHES, layout="constrained", facecolor=PAPER)
        axes = figure.add_subplot(facecolor=PAPER)
        axes.grid(color=GRID, linewidth=0.8)
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        kinds = [_kind(cell) for cell in result["cells"]]
        for place, cell in enumerate(result["cells"]):
            # Of several strengths the last is the filled one.
            _point(axes, cell, filled=kinds[place] not in kinds[place + 1 :])
        base = result["base"]
        axes.set_xlabel(
            f"rise of the perplexity of general text (%; base {base['perplexity']:.1f})"
        )
        axes.set_ylabel(f"loss on the task's test rows (base {base['test_loss']:.2f})")
        axes.set_title(
            "Better is further down; less is forgotten further left", fontsize=10, loc="left"
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.08)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        file.parent.mkdir(parents=True, exist_ok=True)
        words = {"Title": alternative(result), "Date": None}
        figure.savefig(file, metadata=words if file.suffix == ".svg" else None)


def _point(axes: Any, cell: Cell, *, filled: bool) -> None:
    kind = _kind(cell)
    change, loss = 100 * cell["general"]["change"], cell["test_loss"]
    (left, right), (low, high) = cell["general"]["change_interval"], cell["test_loss_interval"]
    axes.errorbar(
        change,
        loss,
        xerr=[[change - 100 * left], [100 * right - change]],
        yerr=[[loss - low], [high - loss]],
        color=COLOURS[kind],
        marker=MARKERS[kind],
        markerfacecolor=COLOURS[kind] if filled else PAPER,
        markersize=7,
        linewidth=0.9,
        label=_label(cell),
    )


def _kind(cell: Cell) -> str:
    if cell["method"] != "full":
        return "lora"
    return "replay" if cell["replay"] else "hold" if cell["hold"] else "full"


def _label(cell: Cell) -> str:
    if cell["hold"]:
        return f"full + hold, strength {cell['hold']:g}"
    name: str = cell["name"]
    return name


def alternative(result: Mapping[str, Any]) -> str:
    """The picture in words, for whoever does not see it."""
    points = "; ".join(
        f"{_label(cell)}: rise {cell['general']['change']:+.1%}, task loss {cell['test_loss']:.3f}"
        for cell in result["cells"]
    )
    return f"Loss on the task against the rise of the perplexity of general text. {points}."


def table(result: Mapping[str, Any]) -> str:
    """Markdown, a line a training."""
    lines = [
        "| training | general perplexity | rise (95%) | of full's | validation loss | test loss "
        "(95%) | against full (95%) | stops |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    base = result["base"]
    lines.append(
        f"| base | {base['perplexity']:.2f} | | | | {base['test_loss']:.3f} | | "
        f"{base['stop_rate']:.0%} |"
    )
    return "\n".join([*lines, *map(_line, result["cells"])])


def _line(cell: Cell) -> str:
    general = cell["general"]
    (left, right), (low, high) = general["change_interval"], cell["test_loss_interval"]
    least, most = cell["test_loss_change_interval"]
    whole = cell["name"] == "full"
    against = "" if whole else f"{cell['test_loss_change']:+.1%} ({least:+.1%} to {most:+.1%})"
    return (
        f"| {_label(cell)} | {general['after']:.2f} | {general['change']:+.1%} ({left:+.1%} to "
        f"{right:+.1%}) | {'' if whole else format(cell['rise_left'], '.0%')} | "
        f"{cell['validation_loss']:.3f} | {cell['test_loss']:.3f} ({low:.3f}–{high:.3f}) | "
        f"{against} | {cell['stop_rate']:.0%} |"
    )


if __name__ == "__main__":
    main()
