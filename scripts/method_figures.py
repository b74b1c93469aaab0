"""One figure for each method, all on one grid: where it stands in a model, close up, in figures.

Sizes are those of Llama 2 7B. The model runs from left to right; positions of a text stand one
below the other, so that what comes before the text stands above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10

from method_closeups import CLOSEUPS
from svg_drawing import Box, Drawing
from vram_figures import gb, on_card, shape_of

from ftcli.memory import Choices
from ftcli.memory.choices import MODE_NAMES, Mode
from ftcli.memory.trained import trainable_parameters

MODEL, MODEL_NAME = "7b", "Llama 2 7B"
WIDTH, HEIGHT = 880, 470
MODES: tuple[Mode, ...] = ("full", "lora", "qlora", "adapter", "prefix", "prompt")
ADAPTER_BYTES = 4  # a weight of an adapter is trained in fp32 (engine.methods), and saved so
# A full run is saved in the type of its base's files (engine.building): 16 bits in those of the
# hub, fp32 in those that scripts/small_model.py writes.
HUB_BYTES, SMALL_BYTES = 2, 4
SMALL = "smollm2-135m"

SUBTITLES: dict[Mode, str] = {
    "full": "every weight is trained",
    "lora": "a small update beside each frozen matrix",
    "qlora": "LoRA beside matrices held in 4 bits",
    "adapter": "a small network behind attention and behind the MLP",
    "prefix": "keys and values before those of the text, in each layer",
    "prompt": "vectors before those of the text, in front of the first layer",
}
# Formula, where training begins, and whether it merges: the last lines of the right-hand side.
FORMULAS: dict[Mode, str] = {
    "full": "h = W x",
    "lora": "h = W₀ x + (α/r) B A x",
    "qlora": "h = W₀ x + (α/r) B A x, W₀ in 4 bits",
    "adapter": "y = h + W_up f(W_down h)",
    "prefix": "attention over [P_k; K] and [P_v; V]",
    "prompt": "layers over [P; embedded text]",
}
BEGINS: dict[Mode, str] = {
    "full": "at the base itself",
    "lora": "at the base: B = 0",
    "qlora": "at the 4-bit base: B = 0",
    "adapter": "at the base: W_up = 0",
    "prefix": "not at the base: words",
    "prompt": "not at the base: words",
}
MERGES: dict[Mode, str] = {
    "full": "is a whole model already",
    "lora": "yes: W₀ + (α/r) B A",
    "qlora": "yes, onto the dequantised base",
    "adapter": "no: f is not linear",
    "prefix": "no: no weight can hold it",
    "prompt": "no: no weight can hold it",
}

# Row 1, the model.
TOP, CELL, PITCH = 84, 13, 15
VIRTUAL, TEXT = 3, 5
MIDDLE = TOP + (VIRTUAL + TEXT) * PITCH / 2 - 1
RESIDUAL = 213.0
CARD = Box(150, 54, 580, 188)
MATRICES = {
    "q": Box(180, 84, 38, 34),
    "k": Box(180, 126, 38, 34),
    "v": Box(180, 168, 38, 34),
    "o": Box(340, 126, 38, 34),
    "gate": Box(484, 96, 46, 42),
    "up": Box(484, 148, 46, 42),
    "down": Box(580, 122, 46, 42),
}
EMBEDDING, OUTPUT = Box(64, 129, 26, 73), Box(772, 106, 26, 73)
SLOTS = {"attention": Box(396, 124, 30, 38), "mlp": Box(646, 124, 30, 38)}
SUMS = {"attention": (446.0, MIDDLE), "mlp": (698.0, MIDDLE)}
VECTORS_X, KEYS_X, VALUES_X, LAST_X = 114.0, 266.0, 286.0, 828.0
# Row 2, right: the figures.
LEFT, RIGHT, VALUE_X = 572.0, 852.0, 652.0


@dataclass(frozen=True)
class Figures:
    """What is compared between methods, for one model."""

    parameters: int
    stored_bytes: int
    """Of one weight in the base's files."""
    trained: Mapping[Mode, int]
    card_bytes: Mapping[Mode, float]

    def share(self, mode: Mode) -> str:
        return share(self.trained[mode], self.parameters)

    def saved(self, mode: Mode) -> str:
        weight_bytes = self.stored_bytes if mode == "full" else ADAPTER_BYTES
        return in_words(self.trained[mode] * weight_bytes)


def figures_of(model: str) -> Figures:
    """Every method with its default keys; on the card: a row of 1,024 tokens at a time."""
    shape = shape_of(model)
    return Figures(
        parameters=shape.parameters,
        stored_bytes=SMALL_BYTES if model == SMALL else HUB_BYTES,
        trained={mode: trainable_parameters(shape, Choices(mode=mode)) for mode in MODES},
        card_bytes={mode: on_card(model, Choices(mode=mode)) for mode in MODES},
    )


def share(part: int, whole: int) -> str:
    """In per cent, with two figures where it is small."""
    per_cent = 100 * part / whole
    if per_cent >= 99.95:
        return "100%"
    return f"{per_cent:.2f}%" if per_cent >= 0.1 else f"{per_cent:.2g}%"


def in_words(bytes_: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if bytes_ >= unit:
            found = bytes_ / unit
            return f"{found:.0f} {name}" if found >= 99.5 else f"{found:.1f} {name}"
    return f"{bytes_ / 1e3:.0f} KB"


def all_figures() -> dict[str, str]:
    """File name → SVG."""
    found = figures_of(MODEL)
    return {f"{mode}.svg": figure(mode, found).svg() for mode in MODES}


def figure(mode: Mode, found: Figures) -> Drawing:
    name = MODE_NAMES[mode]
    name = name[0].upper() + name[1:]
    drawing = Drawing(WIDTH, HEIGHT, f"{name}: {SUBTITLES[mode]}")
    drawing.box("paper", Box(0.5, 0.5, WIDTH - 1, HEIGHT - 1), 8)
    drawing.text(name, (28, 34), "title", 18)
    drawing.text(SUBTITLES[mode], (250, 34), "muted", 13)
    legend(drawing)
    model(drawing, mode)
    drawing.line((28, 258), (WIDTH - 28, 258), kind="paper")
    CLOSEUPS[mode](drawing, shape_of(MODEL))
    numbers(drawing, mode, found)
    return drawing


def legend(drawing: Drawing) -> None:
    drawing.box("frozen", Box(700, 23, 13, 13))
    drawing.text("frozen", (719, 34), "muted")
    drawing.box("trained", Box(784, 23, 13, 13))
    drawing.text("trained", (803, 34), "muted")


def model(drawing: Drawing, mode: Mode) -> None:
    for back in (8, 4):
        drawing.box("card", Box(CARD.x + back, CARD.y - back, CARD.width, CARD.height), 6)
    drawing.box("card", CARD, 6)
    wires(drawing)
    everywhere = "trained" if mode == "full" else "frozen"
    for box in (EMBEDDING, OUTPUT):
        drawing.box(everywhere, box)
    for name, box in MATRICES.items():
        matrix(drawing, name, box, mode)
    for slot in SLOTS.values():
        if mode == "adapter":
            hourglass(drawing, slot)
    columns(drawing, mode)
    words(drawing, mode)


def wires(drawing: Drawing) -> None:
    """Where the text goes, left to right; the residual stream runs below."""
    low = EMBEDDING.middle[1]
    drawing.arrow((46, low), (EMBEDDING.x - 2, low))
    drawing.arrow((EMBEDDING.right, low), (VECTORS_X - 3, low))
    straight = [
        (VECTORS_X + CELL + 3, MATRICES["k"].x),
        (MATRICES["k"].right, KEYS_X - 3),
        (VALUES_X + CELL + 3, MATRICES["o"].x),
        (MATRICES["o"].right, SUMS["attention"][0] - 8),
        (MATRICES["down"].right, SUMS["mlp"][0] - 8),
        (SUMS["mlp"][0] + 8, OUTPUT.x),
        (OUTPUT.right, LAST_X),
    ]
    for start, stop in straight:
        drawing.arrow((start, MIDDLE), (stop - 2, MIDDLE))
    fork(drawing, 168, ("q", "v"))
    join(drawing, 242, ("q", "v"), KEYS_X - 3)
    drawing.line((SUMS["attention"][0] + 8, MIDDLE), (474, MIDDLE))
    fork(drawing, 474, ("gate", "up"))
    join(drawing, 554, ("gate", "up"), MATRICES["down"].x)
    for start, centre in ((158.0, SUMS["attention"]), (464.0, SUMS["mlp"])):
        x, y = centre
        drawing.arrow((start, MIDDLE), (start, RESIDUAL), (x, RESIDUAL), (x, y + 9))
        drawing.plus(centre)


def fork(drawing: Drawing, x: float, names: tuple[str, str]) -> None:
    for name in names:
        y = MATRICES[name].middle[1]
        drawing.arrow((x, MIDDLE), (x, y), (MATRICES[name].x - 2, y))


def join(drawing: Drawing, x: float, names: tuple[str, str], stop: float) -> None:
    for name in names:
        box = MATRICES[name]
        drawing.line((box.right, box.middle[1]), (x, box.middle[1]), (x, MIDDLE))
    drawing.arrow((x, MIDDLE), (stop - 2, MIDDLE))


def matrix(drawing: Drawing, name: str, box: Box, mode: Mode) -> None:
    drawing.box("trained" if mode == "full" else "frozen", box)
    if mode == "qlora":
        for y in range(int(box.y) + 4, int(box.bottom), 4):
            drawing.line((box.x, y), (box.right, y), kind="bits")
        tag = Box(box.middle[0] - 4 * len(name) - 1, box.middle[1] - 8, 8 * len(name) + 2, 16)
        drawing.box("tag", tag)
    drawing.label(name, box, "on-trained" if mode == "full" else "on-frozen")
    if mode in ("lora", "qlora"):
        for left in (3, 9):
            drawing.box("trained", Box(box.right + left, box.y, 4, box.height), 1)


def hourglass(drawing: Drawing, slot: Box) -> None:
    """Down to a narrow width and up again: the two matrices of a bottleneck adapter."""
    middle, half, neck = slot.middle[1], slot.height / 2, 4
    centre = slot.middle[0]
    for wide, narrow in ((slot.x, centre - 1), (slot.right, centre + 1)):
        edge = [(wide, middle - half), (narrow, middle - neck)]
        drawing.shape("trained", [*edge, (narrow, middle + neck), (wide, middle + half)])


def columns(drawing: Drawing, mode: Mode) -> None:
    """Positions: those of the text, and above them those that a method adds."""
    before: dict[float, str] = {}
    if mode == "prefix":
        before = {KEYS_X: "trained", VALUES_X: "trained"}
    if mode == "prompt":
        before = {VECTORS_X: "trained", KEYS_X: "passing", VALUES_X: "passing"}
    for x in (30.0, VECTORS_X, KEYS_X, VALUES_X):
        kinds = [before.get(x, "")] * VIRTUAL + ["passing"] * TEXT
        for number, kind in enumerate(kinds):
            if kind:
                drawing.box(kind, Box(x, TOP + number * PITCH, CELL, CELL))
    drawing.box("passing", Box(LAST_X, MIDDLE - CELL / 2, CELL, CELL))


def words(drawing: Drawing, mode: Mode) -> None:
    over_text = TOP + VIRTUAL * PITCH - 8
    over_keys = TOP - 8 if mode in ("prefix", "prompt") else over_text
    layers = f"one of the {shape_of(MODEL).layers} layers of {MODEL_NAME}"
    drawing.text(layers, (CARD.right - 12, 72), "muted", 11, "end")
    places = {
        "text": (36.5, over_text),
        "embedding": (EMBEDDING.middle[0], 218),
        "head": (OUTPUT.middle[0], 196),
        "next": (LAST_X + CELL / 2, 168),
        "token": (LAST_X + CELL / 2, 182),
        "keys, values": ((KEYS_X + VALUES_X + CELL) / 2, over_keys),
        "attention": (302, 231),
        "MLP": (581, 231),
    }
    for name, at in places.items():
        drawing.text(name, at, "muted", 11, "middle")


def numbers(drawing: Drawing, mode: Mode, found: Figures) -> None:
    drawing.text(FORMULAS[mode], (LEFT, 286), size=13)
    lines = {
        312: ("trained", f"{found.trained[mode]:,} ({found.share(mode)})"),
        360: ("on the card", gb(found.card_bytes[mode])),
        410: ("saved", f"{found.saved(mode)} in {'16 bits' if mode == 'full' else 'fp32'}"),
        430: ("begins", BEGINS[mode]),
        450: ("merges", MERGES[mode]),
    }
    for y, (name, value) in lines.items():
        drawing.text(name, (LEFT, y), "muted", 11)
        drawing.text(value, (VALUE_X, y), size=12)
    scale(drawing, 324, mode, {m: (log10(n) - 4) / 6 for m, n in found.trained.items()})
    ends(drawing, 338, ("10 thousand", "log scale", "10 billion"))
    scale(drawing, 372, mode, {m: n / 120e9 for m, n in found.card_bytes.items()})
    ends(drawing, 386, ("0", "1,024 tokens at a time", "120 GB"))


def scale(drawing: Drawing, y: float, mode: Mode, places: Mapping[Mode, float]) -> None:
    """This method among the others, from 0 at the left to 1 at the right."""
    if not all(0 <= place <= 1 for place in places.values()):
        raise ValueError(f"beyond the scale: {places}")
    drawing.line((LEFT, y), (RIGHT, y))
    for other in (*(m for m in places if m != mode), mode):
        x = LEFT + places[other] * (RIGHT - LEFT)
        drawing.disc("trained" if other == mode else "dot", (x, y), 5 if other == mode else 3)


def ends(drawing: Drawing, y: float, names: tuple[str, str, str]) -> None:
    left, between, right = names
    drawing.text(left, (LEFT, y), "muted", 10)
    drawing.text(between, ((LEFT + RIGHT) / 2, y), "muted", 10, "middle")
    drawing.text(right, (RIGHT, y), "muted", 10, "end")
