"""The state of every random generator that a training draws from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ftcli.models.device import uses_gpu

# By the names under which Trainer reads them back (transformers 5.24, Trainer._load_rng_state).
RandomState = dict[str, Any]


def random_state() -> RandomState:
    """What the generators would draw next."""
    state: RandomState = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if uses_gpu():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def restore_random_state(state: RandomState) -> None:
    """Let the generators draw again what they drew from then on."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state and uses_gpu():
        torch.cuda.random.set_rng_state(state["cuda"])
