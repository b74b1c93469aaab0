"""The left half of each figure's second row: one trained part, close up, with its sizes.

Between two columns of numbers stands what turns one into the other; the height of an edge is the
width of the vector that passes there. Small widths are drawn wider than they are.
"""

from __future__ import annotations

from collections.abc import Callable

from svg_drawing import Box, Drawing

from ftcli.config.recipe import Adapter, Lora, Prefix, Prompt
from ftcli.memory.choices import Mode
from ftcli.memory.shapes import Shape

SIDE, NECK = 80.0, 12.0  # a vector of the model's width, and one of a small width
UPPER, LOWER = 318.0, 408.0
MIDDLE = (UPPER + LOWER) / 2
INPUT_X, SUM_X, OUTPUT_X = 40.0, 488.0, 520.0
BAR = 9.0
POSITION_HEIGHT = 13.0
POSITIONS = [294 + 18 * number for number in range(8)]
VIRTUAL = 3  # positions that a method adds, of those drawn


def vector(drawing: Drawing, x: float, name: str) -> None:
    drawing.box("passing", Box(x, MIDDLE - SIDE / 2, BAR, SIDE), 1)
    drawing.text(name, (x + BAR / 2, MIDDLE + SIDE / 2 + 16), to="middle")


def funnel(drawing: Drawing, name: str, left: float, heights: tuple[float, float]) -> None:
    """A matrix 64 px long on the lower line, from one width to another."""
    wide, narrow = heights
    edge = [(left, LOWER - wide / 2), (left + 64, LOWER - narrow / 2)]
    drawing.shape("trained", [*edge, (left + 64, LOWER + narrow / 2), (left, LOWER + wide / 2)])
    x = left + (24 if wide > narrow else 40)
    drawing.text(name, (x, LOWER + 4), "on-trained", 12, "middle")


def full(drawing: Drawing, shape: Shape) -> None:
    width = f"{shape.hidden:,}"
    square = Box(104, MIDDLE - SIDE / 2, SIDE, SIDE)
    vector(drawing, INPUT_X, "x")
    drawing.arrow((INPUT_X + BAR, MIDDLE), (square.x - 2, MIDDLE))
    drawing.box("trained", square)
    drawing.label("W", square, "on-trained", 15)
    drawing.arrow((square.right, MIDDLE), (236, MIDDLE))
    vector(drawing, 238, "h")
    drawing.text(f"{width} × {width}", (square.middle[0], 296), to="middle")
    drawing.text(f"{shape.hidden**2:,}", (square.middle[0], 420), to="middle")
    drawing.text("held for each weight, 4 bytes each:", (286, 310))
    for number, name in enumerate(("weight", "gradient", "AdamW m", "AdamW v")):
        held = Box(296 + 62 * number, 334, 34, 34)
        drawing.box("trained" if number == 0 else "trained-outline", held)
        drawing.text(name, (held.middle[0], 388), "muted", 11, "middle")
    drawing.text("16 bytes a weight", (286, 420))


def lora(drawing: Drawing, shape: Shape) -> None:
    _update(drawing, shape, ("frozen", ""))


def qlora(drawing: Drawing, shape: Shape) -> None:
    _update(drawing, shape, ("in 4.13 bits each", "dequantised when used"))


def _update(drawing: Drawing, shape: Shape, held: tuple[str, str]) -> None:
    """W₀ above, B A below, and their sum."""
    keys = Lora(mode="lora")
    width, rank = shape.hidden, keys.rank
    square = Box(104, UPPER - SIDE / 2, SIDE, SIDE)
    vector(drawing, INPUT_X, "x")
    for line in (UPPER, LOWER):
        turn = INPUT_X + BAR + 14
        drawing.arrow((INPUT_X + BAR, MIDDLE), (turn, MIDDLE), (turn, line), (102, line))
    drawing.box("frozen", square)
    if held[1]:
        for y in range(int(square.y) + 5, int(square.bottom), 5):
            drawing.line((square.x, y), (square.right, y), kind="bits")
        drawing.box("tag", Box(square.middle[0] - 16, UPPER - 12, 32, 24))
    drawing.label("W₀", square, "on-frozen", 15)
    drawing.line((square.right, UPPER), (SUM_X, UPPER), (SUM_X, MIDDLE - 9))
    drawing.text(f"{width:,} × {width:,}", (252, UPPER - 8))
    drawing.text(f"{width**2:,} {held[0]}", (252, UPPER + 18))
    drawing.text(held[1], (252, UPPER + 34), "muted", 11)
    funnel(drawing, "A", 104, (SIDE, NECK))
    funnel(drawing, "B", 172, (NECK, SIDE))
    drawing.text(f"r = {rank}", (170, LOWER - 24), "muted", 11, "middle")
    drawing.line((236, LOWER), (SUM_X, LOWER), (SUM_X, MIDDLE + 9))
    both = 2 * rank * width
    drawing.text(f"{rank} × {width:,} and {width:,} × {rank}", (252, LOWER - 8))
    drawing.text(f"{both:,} trained: {both / width**2:.2%}", (252, LOWER + 18))
    times = Box(SUM_X - 17, LOWER - 22, 34, 18)
    drawing.box("passing", times)
    drawing.label("× α/r", times, "ink", 11)
    drawing.plus((SUM_X, MIDDLE), 9)
    drawing.arrow((SUM_X + 9, MIDDLE), (OUTPUT_X - 2, MIDDLE))
    vector(drawing, OUTPUT_X, "h")


def adapter(drawing: Drawing, shape: Shape) -> None:
    keys = Adapter(mode="adapter")
    width, inner = shape.hidden, keys.bottleneck
    vector(drawing, INPUT_X, "h")
    turn = INPUT_X + BAR + 14
    drawing.line((INPUT_X + BAR, MIDDLE), (turn, MIDDLE), (turn, UPPER), (SUM_X, UPPER))
    drawing.line((SUM_X, UPPER), (SUM_X, MIDDLE - 9))
    drawing.arrow((turn, MIDDLE), (turn, LOWER), (102, LOWER))
    drawing.text("h goes on as it is", (270, UPPER - 8), "muted", 11, "middle")
    funnel(drawing, "W_down", 104, (SIDE, NECK))
    drawing.line((168, LOWER), (204, LOWER))
    drawing.disc("passing", (186, LOWER), 12)
    drawing.text("f", (186, LOWER + 4), to="middle")
    funnel(drawing, "W_up", 204, (NECK, SIDE))
    drawing.text(f"{inner} wide", (186, LOWER - 26), "muted", 11, "middle")
    drawing.line((268, LOWER), (SUM_X, LOWER), (SUM_X, MIDDLE + 9))
    count = 2 * inner * width + inner + width
    drawing.text(f"{inner} × {width:,} and {width:,} × {inner}", (284, LOWER - 8))
    drawing.text(f"with biases {count:,}", (284, LOWER + 18))
    drawing.plus((SUM_X, MIDDLE), 9)
    drawing.arrow((SUM_X + 9, MIDDLE), (OUTPUT_X - 2, MIDDLE))
    vector(drawing, OUTPUT_X, "y")


def prefix(drawing: Drawing, shape: Shape) -> None:
    tokens, width = Prefix(mode="prefix").virtual_tokens, shape.kv_width
    drawing.text("keys", (155, 286), "muted", 11, "middle")
    drawing.text("values", (225, 286), "muted", 11, "middle")
    for y in POSITIONS:
        drawing.line((70, 384), (124, y + POSITION_HEIGHT / 2))
    positions(drawing, 125, 60)
    positions(drawing, 195, 60)
    drawing.box("passing", Box(28, 378, 42, POSITION_HEIGHT))
    drawing.text("query", (49, 408), "muted", 11, "middle")
    brackets(drawing, 262, 5)
    drawing.text(f"{tokens} trained, of {width:,} numbers each", (280, 316))
    drawing.text(f"2 × {tokens} × {width:,} = {2 * tokens * width:,} a layer", (280, 334))
    drawing.text("those of the text, computed by", (280, 388), "muted")
    drawing.text("frozen matrices as ever", (280, 406), "muted")


def prompt(drawing: Drawing, shape: Shape) -> None:
    tokens, width = Prompt(mode="prompt").virtual_tokens, shape.hidden
    drawing.text(f"{tokens} trained vectors of {width:,}", (206, 316), to="end")
    drawing.text(f"{tokens} × {width:,} = {tokens * width:,}", (206, 334), to="end")
    drawing.text("vectors of the text,", (206, 388), "muted", to="end")
    drawing.text("from the frozen embedding", (206, 406), "muted", to="end")
    brackets(drawing, 224, -5)
    positions(drawing, 232, 104)
    top, bottom = POSITIONS[0], POSITIONS[-1] + POSITION_HEIGHT
    stack = Box(390, top, 116, bottom - top)
    drawing.arrow((342, MIDDLE), (388, MIDDLE))
    drawing.box("frozen", stack)
    x, y = stack.middle
    drawing.text(f"{shape.layers} layers", (x, y - 4), "on-frozen", to="middle")
    drawing.text("as they were", (x, y + 14), "on-frozen", to="middle")


def positions(drawing: Drawing, x: float, width: float) -> None:
    """A column of vectors, one a position: those that a method adds, then those of the text."""
    for number, y in enumerate(POSITIONS):
        kind = "trained" if number < VIRTUAL else "passing"
        drawing.box(kind, Box(x, y, width, POSITION_HEIGHT))


def brackets(drawing: Drawing, x: float, reach: float) -> None:
    """Around the positions that a method adds, and around the others; with a tick outwards."""
    for first, last in ((0, VIRTUAL - 1), (VIRTUAL, len(POSITIONS) - 1)):
        top, bottom = POSITIONS[first], POSITIONS[last] + POSITION_HEIGHT
        middle = (top + bottom) / 2
        drawing.line((x, top), (x + reach, top), (x + reach, bottom), (x, bottom))
        drawing.line((x + reach, middle), (x + 2 * reach, middle))


CLOSEUPS: dict[Mode, Callable[[Drawing, Shape], None]] = {
    "full": full,
    "lora": lora,
    "qlora": qlora,
    "adapter": adapter,
    "prefix": prefix,
    "prompt": prompt,
}
