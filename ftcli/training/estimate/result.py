"""What `ftcli estimate-vram` answers, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcli.memory import Choices, Estimate, TextbookFigure
from ftcli.memory.fit.fitting import Alternatives, FitResult
from ftcli.memory.fit.limits import Limit, Sweep
from ftcli.memory.fit.search import fits
from ftcli.memory.hardware import Hardware
from ftcli.memory.shapes import Shape


@dataclass(frozen=True)
class FitAnswer:
    """The cheapest changes that fit, or what would do instead."""

    found: FitResult | None
    instead: Alternatives | None


@dataclass(frozen=True)
class EstimateResult:
    """An estimate with what it was asked for; `textbook` only for full fine-tuning."""

    shape: Shape
    choices: Choices
    estimate: Estimate
    hardware: Hardware | None
    textbook: tuple[TextbookFigure, ...] = ()
    fit: FitAnswer | None = None
    written: Path | None = None
    limit: Limit | None = None
    sweep: Sweep | None = None
    open_choices: tuple[str, ...] = ()
    """What the recipe leaves to the plan, and stands here at its smallest."""

    @property
    def fits_card(self) -> bool | None:
        """Whether it fits the card asked about, if the estimate is right."""
        if self.hardware is None:
            return None
        return self.estimate.device_bytes <= self.hardware.usable_bytes

    @property
    def surely_fits(self) -> bool | None:
        """Whether the upper end of the interval fits too, by which `train` and --fit decide."""
        return None if self.hardware is None else fits(self.estimate, self.hardware)

    def as_json(self) -> dict[str, Any]:
        """Fields of COMMANDS: names that scripts rely on."""
        found = self.estimate
        fits_cards = dict(found.fits)
        if self.hardware is not None and self.fits_card is not None:
            fits_cards[self.hardware.name] = self.fits_card
        plain = {
            **_figures(found),
            "managed_bytes": found.managed_bytes,
            "rests_on": found.rests_on,
            "breakdown": found.breakdown,
            "peak_phase": found.peak_phase,
            "phases": found.phases,
            "timeline": found.timeline,
            "moments": found.moments,
            "trainable_parameters": found.trainable_parameters,
            "total_parameters": found.total_parameters,
            "fits": fits_cards,
            "surely_fits": self._surely_fits(),
            "assumptions": found.assumptions | {"choices": _plain(self.choices)},
            "textbook": [figure._asdict() for figure in self.textbook],
            "suggestions": self._suggestions(),
        }
        return plain | self._asked_for()

    def _surely_fits(self) -> dict[str, bool]:
        surely = dict(self.estimate.surely_fits)
        if self.hardware is not None and self.surely_fits is not None:
            surely[self.hardware.name] = self.surely_fits
        return surely

    def _suggestions(self) -> list[dict[str, Any]]:
        if self.fit is None or self.fit.found is None:
            return []
        return [asdict(change) for change in self.fit.found.changes]

    def _asked_for(self) -> dict[str, Any]:
        """Fields that stand only where a flag asks for them."""
        asked: dict[str, Any] = {}
        if self.fit is not None and self.hardware is not None:
            asked["fit"] = _fit(self.fit, self.hardware)
        if self.written is not None:
            asked["written"] = str(self.written)
        if self.limit is not None:
            limit = self.limit
            figures = _figures(limit.estimate) if limit.estimate else {}
            asked["max"] = {"size": limit.size, "value": limit.value, **figures}
        if self.sweep is not None:
            asked["sweep"] = {
                "size": self.sweep.size,
                "rows": [
                    {"value": row.value, **_figures(row.estimate), "fits": row.fits}
                    for row in self.sweep.rows
                ],
            }
        return asked


def _figures(found: Estimate) -> dict[str, int]:
    return {
        "peak_bytes": found.peak_bytes,
        "reserved_bytes": found.reserved_bytes,
        "device_bytes": found.device_bytes,
        "low_bytes": found.low_bytes,
        "high_bytes": found.high_bytes,
    }


def _fit(found: FitAnswer, hardware: Hardware) -> dict[str, Any]:
    """Which card, and the training that fits it; `instead` where none does."""
    card = {"card": hardware.name, "usable_bytes": hardware.usable_bytes}
    if found.found is None:
        return {**card, "fits": False, "instead": asdict(found.instead) if found.instead else None}
    return {
        **card,
        "fits": True,
        **_figures(found.found.estimate),
        "choices": _plain(found.found.choices),
    }


def _plain(choices: Choices) -> dict[str, Any]:
    words = asdict(choices)
    words.pop("stack")
    return words
