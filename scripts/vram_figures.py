"""Tables of docs/vram.md that come from the estimate alone: an example, textbook claims, cards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ftcli.memory import Choices, Estimate, estimate
from ftcli.memory.hardware import GIB, Card, find_card
from ftcli.memory.shapes import Shape, find_shape

Rows = list[list[str]]

PURE = Choices(mode="full", precision="pure-bf16")
METHODS: dict[str, Choices] = {
    "fp32": Choices(mode="full", precision="fp32"),
    "bf16 mixed": Choices(mode="full"),
    "all bf16": PURE,
    "LoRA": Choices(mode="lora"),
    "QLoRA": Choices(mode="qlora"),
}
# From the strongest to the cheapest.
FITTED: dict[str, Choices] = {
    "full": METHODS["bf16 mixed"],
    "full-16": replace(PURE, optimizer="adamw-8bit"),
    "LoRA": METHODS["LoRA"],
    "QLoRA": METHODS["QLoRA"],
}
FITTED_MODELS = (
    "qwen2.5-0.5b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "qwen3-4b",
    "llama-2-7b",
    "qwen2.5-7b",
    "llama-3.1-8b",
    "gemma-2-9b",
    "llama-2-13b",
    "qwen2.5-14b",
    "qwen2.5-32b",
    "llama-3.1-70b",
)
FITTED_CARDS = {
    "12 GB (3060)": "RTX 3060 12GB",
    "16 GB (4080)": "RTX 4080",
    "24 GB (4090)": "RTX 4090",
    "32 GB (5090)": "RTX 5090",
    "40 GB (A100)": "A100 40GB",
    "80 GB (H100)": "H100",
}
LONGEST_MODELS = ("llama-2-7b", "qwen2.5-7b", "llama-3.1-8b", "llama-2-13b", "qwen2.5-14b")
STEP_TOKENS = 256
MOST_TOKENS = 32_768

ITEMS = {
    "weights": "4-bit layers; embedding, head, norms and biases in 16 bits",
    "quantization": "scales of the 4-bit blocks, themselves in 8 bits",
    "adapter": "A and B of every linear layer, in fp32",
    "gradients": "none yet at this moment",
    "optimizer": "AdamW's two states for each adapter weight",
    "activations": "the input of each layer, kept; and of one layer all that it makes again",
    "logits": "gone by then: at the head, a tile at a time in fp32 and 16 bits",
    "workspace": "16-bit copies of the adapters, and cuBLAS",
    "context": "CUDA itself, before the first tensor",
}


def shape_of(model: str) -> Shape:
    return find_shape(model, Path())


def gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def markdown(head: list[str], rows: Rows) -> str:
    """A table whose first column is text and whose others are figures, aligned to the right."""
    align = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, align, *rows])


def example_values() -> dict[str, str]:
    """The worked example: Qwen2.5-7B, QLoRA, one row of 2,048 tokens."""
    shape, choices = shape_of("qwen2.5-7b"), Choices(mode="qlora", seq_len=2048)
    capability = find_card("RTX 4090").compute_capability
    found = estimate(shape, choices, capability)

    def full_logits(micro_batch: int) -> str:
        other = replace(choices, loss="full", micro_batch=micro_batch)
        return gb(estimate(shape, other, capability).device_bytes)

    return {
        "example_items": _items(found),
        "example_moments": _moments(found),
        "example_weights": gb(found.breakdown["weights"] + found.breakdown["quantization"]),
        "example_allocated": gb(found.peak_bytes),
        "example_reserved": gb(found.reserved_bytes),
        "example_card": gb(found.device_bytes),
        "example_low": gb(found.low_bytes),
        "example_high": gb(found.high_bytes),
        "example_full_1": full_logits(1),
        "example_full_2": full_logits(2),
    }


def _items(found: Estimate) -> str:
    rows = [[name, f"{size / 1e9:.2f}", ITEMS[name]] for name, size in found.breakdown.items()]
    lines = markdown([f"item, at the {found.peak_phase}", "GB", "what it is"], rows)
    return lines.replace("---: | ---: |", "---: | --- |", 1)


def _moments(found: Estimate) -> str:
    moments = [f"{name} {gb(size)}" for name, size in found.phases.items()]
    return f"Allocated at each moment: {', '.join(moments)}."


def on_card(model: str, choices: Choices) -> float:
    """Bytes on an 80 GB data-centre card; the context is the only thing that depends on it."""
    return estimate(shape_of(model), choices, find_card("H100").compute_capability).device_bytes


def textbook_values() -> dict[str, str]:
    return {
        "textbook": _textbook_table(),
        "sizes": ", ".join(f"{shape_of(m).parameters / 1e9:.2f}" for m in ("7b", "13b", "70b")),
        "claim_fp32": _claim_fp32(),
        "claim_mixed": f"on the card 7B takes {gb(on_card('7b', METHODS['fp32']))} in fp32 and "
        f"{gb(on_card('7b', METHODS['bf16 mixed']))} in bf16 mixed",
        "claim_pure": "on the card "
        + ", ".join(gb(on_card(m, PURE)) for m in ("7b", "13b", "70b")),
        "claim_60_to_6": f"7B all in 16 bits {gb(on_card('7b', PURE))}, "
        f"LoRA {gb(on_card('7b', METHODS['LoRA']))}, QLoRA {gb(on_card('7b', METHODS['QLoRA']))}",
        "longest": _longest_table(),
        "fits": _fits_table(),
    }


def _claim_fp32() -> str:
    weights = 4 * shape_of("7b").parameters / 1e9
    parts = f"{weights:.1f} + {weights:.1f} + {2 * weights:.1f} = {4 * weights:.1f} GB"
    return f"{parts}; on the card {gb(on_card('7b', METHODS['fp32']))}"


def _textbook_table() -> str:
    head = ["GB", "weights", "gradients", "states", "sum", "on the card", "upper end", "peak at"]
    rows = []
    for model in ("7b", "13b", "70b"):
        for name, choices in METHODS.items():
            found = estimate(shape_of(model), choices, find_card("H100").compute_capability)
            step = found.timeline["optimizer step"]
            parts = [
                step["weights"] + step["quantization"] + step["adapter"],
                step["gradients"],
                step["optimizer"],
            ]
            sizes = [*parts, sum(parts), found.device_bytes, found.high_bytes]
            figures = [f"{size / 1e9:,.1f}" for size in sizes]
            rows.append([f"{model.upper()} {name}", *figures, found.peak_phase])
    return markdown(head, rows)


def fits(model: str, choices: Choices, card: Card) -> bool:
    """By the upper end of the interval."""
    found = estimate(shape_of(model), choices, card.compute_capability)
    return found.high_bytes <= card.usable_bytes


def longest_tokens(model: str, choices: Choices, card: Card) -> int:
    """The longest row that fits, in steps; 0 where none does."""
    longest = 0
    for tokens in range(STEP_TOKENS, MOST_TOKENS + 1, STEP_TOKENS):
        if not fits(model, replace(choices, seq_len=tokens), card):
            return longest
        longest = tokens
    return longest


def _longest_table() -> str:
    card = find_card("RTX 4090")
    head = [f"{card.name}, {card.usable_bytes / GIB:.1f} GiB usable", *FITTED]
    rows = []
    for model in LONGEST_MODELS:
        lengths = [longest_tokens(model, choices, card) for choices in FITTED.values()]
        rows.append([model, *(_length(tokens) for tokens in lengths)])
    return markdown(head, rows)


def _length(tokens: int) -> str:
    if tokens == 0:
        return "–"
    return f"over {tokens:,}" if tokens == MOST_TOKENS else f"{tokens:,}"


def strongest(model: str, tokens: int, card: Card) -> str:
    for name, choices in FITTED.items():
        if fits(model, replace(choices, seq_len=tokens), card):
            return name
    return "–"


def _fits_table() -> str:
    rows = []
    for model in FITTED_MODELS:
        cells = []
        for card in map(find_card, FITTED_CARDS.values()):
            short, long = strongest(model, 1024, card), strongest(model, 4096, card)
            cells.append(short if short == long else f"{short} → {long}")
        rows.append([model, *cells])
    return markdown(["", *FITTED_CARDS], rows)
