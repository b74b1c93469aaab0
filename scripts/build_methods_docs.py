"""Write docs/methods.md from its template, and the figures that it shows.

python scripts/build_methods_docs.py [--check]    # --check: exit 1 where a file is not current
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from build_vram_docs import filled
from method_figures import (
    ADAPTER_BYTES,
    MODEL,
    MODEL_NAME,
    MODES,
    SMALL,
    all_figures,
    figures_of,
    in_words,
    share,
)
from vram_figures import gb, markdown, on_card, shape_of

from ftcli.config.recipe import Recipe
from ftcli.evaluation.compare.cells import short_rate
from ftcli.memory import Choices
from ftcli.memory.choices import FROZEN_MODES, Mode
from ftcli.memory.trained import trainable_parameters
from ftcli.training.plan.arithmetic import choose_learning_rate

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEMPLATE = DOCS / "methods.template.md"
NOTE = "<!-- written by scripts/build_methods_docs.py from methods.template.md -->"

QWEN = "qwen2.5-7b"
MODEL_NAMES = {SMALL: "SmolLM2-135M", MODEL: MODEL_NAME, QWEN: "Qwen2.5-7B"}
# Rows of the tables: QLoRA trains what LoRA does, and is its column of 4-bit bases.
ROWS: dict[Mode, str] = {
    "full": "full",
    "lora": "LoRA, QLoRA",
    "adapter": "adapter",
    "prefix": "prefix",
    "prompt": "prompt",
}
LORA = Choices(mode="lora")


def main(check: bool) -> int:
    texts = files()
    stale = [path for path, text in texts.items() if not _current(path, text)]
    for path in stale:
        name = path.relative_to(DOCS.parent)
        if check:
            print(f"{name} is not current: make docs", file=sys.stderr)
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
        print(f"wrote {name}")
    return 1 if check and stale else 0


def files() -> dict[Path, str]:
    """Every file that this script writes → its text."""
    page = filled(TEMPLATE.read_text(encoding="utf-8"), values())
    figures = {DOCS / "figures" / name: text for name, text in all_figures().items()}
    return {DOCS / "methods.md": page, **figures}


def _current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def values() -> dict[str, str]:
    found, qwen = figures_of(MODEL), figures_of(QWEN)
    shape = shape_of(QWEN)
    rates = {f"rate_{mode}": short_rate(default_rate(mode)) for mode in MODES}
    cards = {f"card_{mode}": gb(found.card_bytes[mode]) for mode in MODES}
    saved = {f"saved_{mode}": found.saved(mode) for mode in MODES}
    unused = ("card_adapter", "card_prompt", "saved_qlora", "saved_adapter")
    named = {name: text for name, text in (rates | cards | saved).items() if name not in unused}
    return {
        "note": NOTE,
        "trained": trained_table(),
        "cards": cards_table(),
        "layers": layers_table(),
        **arithmetic(),
        **named,
        "card_dora": gb(on_card(MODEL, replace(LORA, dora=True))),
        "module": in_words(shape.vocab * shape.hidden * ADAPTER_BYTES),
        "trained_prefix": f"{found.trained['prefix']:,}",
        "trained_prefix_qwen": f"{qwen.trained['prefix']:,}",
        "projection": f"{_trained(MODEL, Choices(mode='prefix', projection=True)):,}",
    }


def default_rate(mode: Mode) -> float:
    """The learning rate of a recipe that names none."""
    values = {"name": "x", "model": {"id": MODEL}, "data": {"train": "x"}, "method": {"mode": mode}}
    return choose_learning_rate(Recipe.model_validate(values)).value


def _trained(model: str, choices: Choices) -> int:
    return trainable_parameters(shape_of(model), choices)


def trained_table() -> str:
    counted = [figures_of(model) for model in MODEL_NAMES]
    rows = []
    for mode, name in ROWS.items():
        cells = [f"{n.trained[mode]:,} ({n.share(mode)}), {n.saved(mode)}" for n in counted]
        rows.append([name, *cells])
    return markdown(["", *MODEL_NAMES.values()], rows)


def cards_table() -> str:
    models = (MODEL, QWEN)
    names = [MODEL_NAMES[model] for model in models]
    rows = []
    for mode, name in ROWS.items():
        cards = [gb(on_card(model, Choices(mode=mode))) for model in models]
        rows.append([name, *cards, *(on_four_bits(model, mode) for model in models)])
    return markdown(["", *names, *(f"{name} on 4 bits" for name in names)], rows)


def on_four_bits(model: str, mode: Mode) -> str:
    if mode in FROZEN_MODES:
        return gb(on_card(model, Choices(mode=mode, four_bit_base=True)))
    return gb(on_card(model, Choices(mode="qlora"))) if mode == "lora" else "–"


def arithmetic() -> dict[str, str]:
    """LoRA beside one square matrix of the attention."""
    width, rank = shape_of(MODEL).hidden, LORA.rank
    update = 2 * rank * width
    return {
        "width": f"{width:,}",
        "square": f"{width**2:,}",
        "half": f"{rank * width:,}",
        "update": f"{update:,}",
        "update_share": share(update, width**2),
    }


def layers_table() -> str:
    """LoRA beside each matrix of a layer, the layers, and the whole model."""
    shape, rank = shape_of(MODEL), LORA.rank
    kinds: dict[tuple[int, int], list[str]] = {}
    for name, sizes in shape.linear_modules().items():
        kinds.setdefault((min(sizes), max(sizes)), []).append(name)
    rows = []
    for (short, long), names in kinds.items():
        update = rank * (short + long)
        rows.append(
            [f"each of {', '.join(names)}", *_row(f"{short:,} × {long:,}", short * long, update)]
        )
    both = (shape.linear_parameters, _trained(MODEL, LORA))
    one = [number // shape.layers for number in both]
    rows.append(["one layer", *_row(f"{len(shape.linear_modules())} matrices", *one)])
    rows.append(["all layers", *_row(f"{shape.layers} layers", *both)])
    rows.append(
        [f"**{MODEL_NAME}**", *_row("with embedding, head, norms", shape.parameters, both[1])]
    )
    return markdown(["", "size", "weights", "r · (in + out)", "share"], rows)


def _row(size: str, weights: int, update: int) -> list[str]:
    return [size, f"{weights:,}", f"{update:,}", share(update, weights)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    sys.exit(main(parser.parse_args().check))
