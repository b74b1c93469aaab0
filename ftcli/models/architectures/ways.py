"""What the layers of a model save for backward in one way of computing: passes of several lengths,
and the terms that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ftcli.compat import fake_tensors
from ftcli.errors import ModelError
from ftcli.memory.architecture import Bytes, Measured, Saved, Shared, Way
from ftcli.models.architectures.cut_model import (
    CUT_ERRORS,
    TOKENS,
    CutModel,
    alike_layers,
    as_measured,
    build_model,
    stack_of,
)
from ftcli.models.architectures.model_class import model_class
from ftcli.models.architectures.saved_bytes import LayerRun, Recorder
from ftcli.models.files.untrusted import opening

# (rows, multiple of TOKENS): as many as the terms of the fit.
POINTS = ((1, 1), (1, 2), (2, 1), (2, 2))
# A third length: what layers without attention save has a part that is the same for any length.
THIRD = (1, 4)
# Multiples of TOKENS, long enough that the scores of written-out attention outweigh all else in a
# layer's backward pass.
LONG = (8, 16)


class Measurer:
    """Measures ways of computing; keeps the models that it builds."""

    def __init__(self, config: PreTrainedConfig) -> None:
        """Raises ModelError."""
        self._config, self._kind = config, model_class(as_measured(config))
        self._cuts: dict[tuple[int, bool], tuple[AbstractContextManager[object], CutModel]] = {}
        self._runs: dict[tuple[Way, tuple[int, int]], Recorder] = {}
        self._whole = False

    def way(self, way: Way) -> Measured:
        """What the layers of each kind save in one way."""
        runs = [self._run(way, point) for point in POINTS]
        places, called = self._cut(way)[1].places, runs[-1].layers
        third: list[Recorder] = []
        if not way.eager and not all(called[place].attention_calls for place in places):
            third = [self._run(way, THIRD)]
        passing = replace(way, trained=False)
        long: tuple[int, ...] = ()
        alone = [self._run(passing, POINTS[0])]
        if way.eager or way.masked:
            long, more = self._long(passing)
            alone += more
        return Measured(
            way=way,
            kinds=tuple(
                _saved(
                    [run.layers[place] for run in runs],
                    [] if called[place].attention_calls else [run.layers[place] for run in third],
                    runs[-1].saved,
                    [run.layers[place].temporaries for run in alone],
                    long,
                )
                for place in places
            ),
            shared_saved=_shared([run.shared_saved for run in runs]),
            shared_passed=_shared([run.shared_passed for run in runs]),
            last_norm=_fit([run.last_norm for run in runs]),
        )

    def _long(self, way: Way, fewer: int = 1) -> tuple[tuple[int, ...], list[Recorder]]:
        """Passes of LONG; of a class with a table of fewer positions, of as many as it has."""
        long = tuple(each // fewer for each in LONG)
        try:
            return long, [self._run(way, (1, each)) for each in long]
        except ModelError:
            if fewer == LONG[0]:
                raise
            return self._long(way, 2 * fewer)

    def _run(self, way: Way, point: tuple[int, int]) -> Recorder:
        if (way, point) not in self._runs:
            with opening(self._config.model_type, "architecture"):
                try:
                    found = self._run_once(way, point)
                except CUT_ERRORS:  # as in `measure`: at the first pass, if at all
                    if self._whole or self._runs:
                        raise
                    self._whole = True
                    self._cuts.clear()
                    found = self._run_once(way, point)
            self._runs[way, point] = found
        return self._runs[way, point]

    def _run_once(self, way: Way, point: tuple[int, int]) -> Recorder:
        mode, cut = self._cut(way)
        with mode:
            return cut.run(way, point)

    def _cut(self, way: Way) -> tuple[AbstractContextManager[object], CutModel]:
        key = (way.weight_bytes, way.eager)
        if key not in self._cuts:
            mode = fake_tensors()
            with mode:
                model = build_model(self._kind, self._config, way)
                stack = stack_of(model)
                cut = CutModel(model, stack, alike_layers(model, stack), whole=self._whole)
            self._cuts[key] = mode, cut
        return self._cuts[key]


def _saved(
    runs: Sequence[LayerRun],
    third: Sequence[LayerRun],
    saved: set[int],
    temporaries: Sequence[int],
    long: Sequence[int],
) -> Saved:
    last, lengths = runs[-1], [*runs, *third]
    order = {storage: number for number, storage in enumerate(dict.fromkeys(last.linear.values()))}
    return Saved(
        kept=_fit([run.kept for run in lengths]),
        norms=_fit([run.norms for run in lengths]),
        before=tuple((name, _fit([run.before[name] for run in lengths])) for name in last.before),
        inputs=tuple(number for storage, number in order.items() if storage in saved),
        temporaries=_largest(temporaries, long),
    )


def _largest(peaks: Sequence[int], long: Sequence[int]) -> tuple[Bytes, ...]:
    """Of a short row, and the line through two long ones: the scores outweigh the rest there."""
    found = Bytes(_short(peaks[0] / TOKENS), 0)
    if not long:
        return (found,)
    tokens = [multiple * TOKENS for multiple in long]
    near, far = (peak / each for peak, each in zip(peaks[1:], tokens, strict=True))
    per_pair = (far - near) / (tokens[1] - tokens[0])
    return found, Bytes(_short(near - per_pair * tokens[0]), _short(per_pair))


def _terms(found: Sequence[int]) -> list[float]:
    """Coefficients of 1, s, b·s and b·s²."""
    rows = [[1.0, s * TOKENS, b * s * TOKENS, b * (s * TOKENS) ** 2] for b, s in POINTS]
    solved: Tensor = torch.linalg.solve(
        torch.tensor(rows, dtype=torch.float64), torch.tensor(found, dtype=torch.float64)
    )
    return [_short(each) for each in solved.tolist()]


def _short(number: float) -> float:
    """Rounded, and whole where it is: 12 instead of 12.0 in a file."""
    found = round(number, 3)
    return int(found) if found == int(found) else found


def _fit(found: Sequence[int]) -> Bytes:
    """The larger of one row's terms and several rows': heads of one row may be views of a fused
    tensor, which is kept whole, and those of several are copies (Phi-3's values).

    With THIRD, one row's terms without what is the same for any length."""
    one, two, *several = found
    if len(found) > len(POINTS):
        per_pair = (several[-1] - 3 * two + 2 * one) / (6 * TOKENS**2)
        return Bytes(_short((two - one) / TOKENS - 3 * TOKENS * per_pair), _short(per_pair))
    fits = []
    for rows, (near, far) in ((1, (one, two)), (2, several)):
        short, long = near / (rows * TOKENS), far / (2 * rows * TOKENS)
        fits.append(Bytes(_short(2 * short - long), _short((long - short) / TOKENS)))
    return max(fits, key=lambda fit: fit.of(1, 2 * TOKENS))


def _shared(found: Sequence[int]) -> Shared:
    return Shared(*_terms(found)[1:])
