"""A chart as SVG that stands in a page: the page's own colours, light and dark, and no style of its
own, which the page's Content-Security-Policy would not let through.

matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

from ftcli.stages.report.curves import Chart

# Readable on a telephone: at 335 px of width 9 pt of 281 pt are 10.7 px.
INCHES = (3.9, 2.4)
POINTS = 9
# Colours that stand for the page's own: class of the page's style sheet → sentinel.
SENTINELS = {
    "ink": "#010101",
    "grid": "#020202",
    "first": "#030303",
    "second": "#040404",
}
CLASSES = {colour: name for name, colour in SENTINELS.items()}
SERIES = ("first", "second")
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ftcli",  # the same run gives the same bytes
    "font.size": POINTS,
    "text.color": SENTINELS["ink"],
    "axes.labelcolor": SENTINELS["ink"],
    "axes.edgecolor": SENTINELS["grid"],
    "xtick.color": SENTINELS["grid"],
    "ytick.color": SENTINELS["grid"],
    "xtick.labelcolor": SENTINELS["ink"],
    "ytick.labelcolor": SENTINELS["ink"],
    "grid.color": SENTINELS["grid"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"
# Properties of a style that are attributes of SVG too (SVG 2, presentation attributes).
KEPT = {"fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "text-anchor"}
KEPT |= {"stroke-linejoin", "opacity", "stroke-opacity", "fill-opacity"}


def draw(chart: Chart) -> str:
    """An `svg` element, named by the ids `<key>-title` and `<key>-summary` of the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    written = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        _plot(figure.add_subplot(), chart)
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _for_a_page(written.getvalue(), chart.key)


def _plot(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

    for curve, series in zip(chart.curves, SERIES, strict=False):
        steps, values = zip(*curve.points, strict=True)
        dotted = curve.marked or len(steps) == 1
        axes.plot(
            steps,
            values,
            color=SENTINELS[series],
            # Told apart without colour as well.
            linestyle="-" if series == SERIES[0] else "--",
            linewidth=1.4,
            marker="o" if dotted else None,
            markersize=4,
            label=curve.label,
        )
    if chart.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel(chart.unit)
    axes.grid(axis="y", linewidth=0.6, alpha=0.6)
    if len(chart.curves) > 1:
        axes.legend(frameon=False)


def _for_a_page(written: str, key: str) -> str:
    root = ElementTree.fromstring(written)
    metadata = root.find(f"{{{SVG}}}metadata")
    if metadata is not None:
        root.remove(metadata)
    for element in list(root.iter()):
        _settle(element, key)
    for name in ("width", "height"):
        del root.attrib[name]
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-summary")
    root.set("class", "chart")
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _settle(element: ElementTree.Element, key: str) -> None:
    """Ids that are its own in the page, classes for colours, attributes for the rest of a style."""
    for child in [c for c in element if c.tag == f"{{{SVG}}}style"]:
        element.remove(child)
    _rename(element, key)
    classes = []
    for name, value in _style(element.attrib.pop("style", "")):
        if value in CLASSES:
            classes.append(f"{name}-{CLASSES[value]}")
        elif name in KEPT:
            element.set(name, value)
    if classes:
        element.set("class", " ".join(classes))


def _rename(element: ElementTree.Element, key: str) -> None:
    """Only what is pointed at keeps an id: groups are named alike in every picture."""
    if element.tag == f"{{{SVG}}}g":
        element.attrib.pop("id", None)
    elif "id" in element.attrib:
        element.set("id", f"{key}-{element.attrib['id']}")
    if XLINK in element.attrib:
        element.set("href", f"#{key}-{element.attrib.pop(XLINK).removeprefix('#')}")
    if "clip-path" in element.attrib:
        clip = element.attrib["clip-path"]
        element.set("clip-path", clip.replace("url(#", f"url(#{key}-"))


def _style(text: str) -> list[tuple[str, str]]:
    pairs = (part.partition(":") for part in text.split(";"))
    return [(name.strip(), value.strip()) for name, _, value in pairs if name.strip()]
