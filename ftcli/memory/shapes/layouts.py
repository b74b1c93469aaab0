"""Names of the linear modules of a layer, as transformers 5.24 gives them (models/*/modeling_*)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """What a layer calls its linear modules, by what they do."""

    queries: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Of q, k and v; a single name where they are one matrix."""
    output: str = "o_proj"
    """What follows the attention."""
    inner: tuple[str, ...] = ("gate_proj", "up_proj")
    """From hidden width to the MLP's; a single name where gate and up are one matrix."""
    down: str = "down_proj"
    """Back to hidden width."""


LLAMA = Layout()
UNGATED = Layout(inner=("up_proj",))
PHI3 = Layout(queries=("qkv_proj",), inner=("gate_up_proj",))
GLM = Layout(inner=("gate_up_proj",))
PHI = Layout(output="dense", inner=("fc1",), down="fc2")
STARCODER2 = Layout(inner=("c_fc",), down="c_proj")
NEOX = Layout(
    queries=("query_key_value",), output="dense", inner=("dense_h_to_4h",), down="dense_4h_to_h"
)
