"""A drawing as SVG: frozen things grey, trained things in one colour, light and dark.

Each drawing brings its own ground and both sets of colours, so that it can be read whichever of
them a viewer takes. Nothing in it depends on the time, on chance or on the machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

Point = tuple[float, float]

# GitHub's own greys (primer/primitives) with one warm colour; all texts keep a contrast of 4.5
# with what they stand on (WCAG 2.2, success criterion 1.4.3).
LIGHT = {
    "paper": "#ffffff",
    "edge": "#d1d9e0",
    "card": "#f6f8fa",
    "ink": "#1f2328",
    "muted": "#59636e",
    "frozen": "#d8dee4",
    "frozen-edge": "#8c959f",
    "trained": "#c2410c",
    "on-trained": "#ffffff",
}
DARK = {
    "paper": "#0d1117",
    "edge": "#3d444d",
    "card": "#151b23",
    "ink": "#f0f6fc",
    "muted": "#9198a1",
    "frozen": "#3d444d",
    "frozen-edge": "#7d8590",
    "trained": "#fb923c",
    "on-trained": "#0d1117",
}
# Class → the colours that it takes; texts and arrow heads are filled, lines are stroked.
RULES = {
    "paper": "fill:{paper};stroke:{edge}",
    "card": "fill:{card};stroke:{edge}",
    "frozen": "fill:{frozen};stroke:{frozen-edge}",
    "trained": "fill:{trained};stroke:{trained}",
    "trained-outline": "fill:{paper};stroke:{trained}",
    "passing": "fill:{paper};stroke:{frozen-edge}",
    "line": "fill:none;stroke:{muted}",
    "bits": "fill:none;stroke:{frozen-edge}",
    "head": "fill:{muted}",
    "dot": "fill:{frozen-edge}",
    "tag": "fill:{frozen}",
    "title": "fill:{ink};font-weight:600",
    "ink": "fill:{ink}",
    "muted": "fill:{muted}",
    "on-trained": "fill:{on-trained}",
    "on-frozen": "fill:{ink}",
}
FONT = "system-ui,-apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif"
SUBSCRIPT = re.compile(r"_(\w+)")
HEAD = 5.0  # half the height, and the length, of an arrow's head


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, width, height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> Point:
        return self.x + self.width / 2, self.y + self.height / 2

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass(frozen=True)
class Drawing:
    """Parts are added in the order in which they cover one another."""

    width: int
    height: int
    title: str
    parts: list[ElementTree.Element] = field(default_factory=list)

    def box(self, kind: str, box: Box, rounding: float = 2) -> None:
        self._add("rect", kind, _sizes(box) | {"rx": _number(rounding)})

    def shape(self, kind: str, points: Sequence[Point]) -> None:
        """A closed shape with straight edges."""
        words = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._add("polygon", kind, {"points": words})

    def disc(self, kind: str, centre: Point, radius: float) -> None:
        x, y = centre
        self._add("circle", kind, {"cx": _number(x), "cy": _number(y), "r": _number(radius)})

    def line(self, *points: Point, kind: str = "line") -> None:
        words = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._add("polyline", kind, {"points": words})

    def arrow(self, *points: Point) -> None:
        """A line with a head at its end; its last stretch runs to the right or upwards."""
        (x, y), before = points[-1], points[-2]
        if before[0] < x:
            self.line(*points[:-1], (x - HEAD, y))
            self.shape("head", [(x, y), (x - HEAD - 1, y - HEAD + 1), (x - HEAD - 1, y + HEAD - 1)])
        else:
            self.line(*points[:-1], (x, y + HEAD))
            self.shape("head", [(x, y), (x - HEAD + 1, y + HEAD + 1), (x + HEAD - 1, y + HEAD + 1)])

    def plus(self, centre: Point, radius: float = 8) -> None:
        """Where two vectors are added."""
        (x, y), arm = centre, radius / 2
        self.disc("passing", centre, radius)
        self.line((x - arm, y), (x + arm, y))
        self.line((x, y - arm), (x, y + arm))

    def text(self, words: str, at: Point, kind: str = "ink", size: int = 12, to: str = "") -> None:
        """Words on a line that begins at a point; `to`: "middle" or "end" of them is there.

        `W_up` is W with a subscript.
        """
        x, y = at
        wanted = {"x": _number(x), "y": _number(y), "font-size": str(size)}
        if to:
            wanted["text-anchor"] = to
        element = self._add("text", kind, wanted)
        first, *rest = SUBSCRIPT.split(words)
        element.text = first
        for below, after in zip(rest[::2], rest[1::2], strict=True):
            low = {"dy": _number(size / 4), "font-size": str(size - 3)}
            ElementTree.SubElement(element, "tspan", low).text = below
            if after:
                back = {"dy": _number(-size / 4)}
                if after.startswith(" "):  # which some viewers drop here
                    back["dx"] = _number(0.3 * size)
                ElementTree.SubElement(element, "tspan", back).text = after.lstrip()

    def label(self, words: str, box: Box, kind: str, size: int = 12) -> None:
        """Words in the middle of a box."""
        x, y = box.middle
        self.text(words, (x, y + 0.36 * size), kind, size, "middle")

    def svg(self) -> str:
        root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {self.width} {self.height}",
                "width": str(self.width),
                "height": str(self.height),
                "role": "img",
                "font-family": FONT,
                "stroke-width": "1",
            },
        )
        ElementTree.SubElement(root, "title").text = self.title
        ElementTree.SubElement(root, "style").text = style()
        root.extend(self.parts)
        for part in root:
            part.tail = "\n"  # a part a line; inside a text a space would be seen
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    def _add(self, tag: str, kind: str, values: dict[str, str]) -> ElementTree.Element:
        if kind not in RULES:
            raise ValueError(f"no such class: {kind}")
        self.parts.append(ElementTree.Element(tag, {"class": kind, **values}))
        return self.parts[-1]


def style() -> str:
    """Rules for light; those for dark where the viewer asks for them."""
    return f"{_rules(LIGHT)} @media (prefers-color-scheme:dark) {{{_rules(DARK)}}}"


def _rules(colours: dict[str, str]) -> str:
    rules = []
    for kind, rule in RULES.items():
        for name, colour in colours.items():
            rule = rule.replace(f"{{{name}}}", colour)
        rules.append(f".{kind}{{{rule}}}")
    return "".join(rules)


def _sizes(box: Box) -> dict[str, str]:
    named = {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
    return {name: _number(size) for name, size in named.items()}


def _number(value: float) -> str:
    return f"{round(value, 2):g}"
