"""How likely texts are to a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scored:
    """Summed negative log-likelihood (nats) and counted tokens of each text, in one order."""

    losses: tuple[float, ...]
    tokens: tuple[int, ...]
