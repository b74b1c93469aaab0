"""How long prompts and answers are."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from ftcli.metrics.dataset.row import DataRow

MOST_BINS = 12


@dataclass(frozen=True)
class Spread:
    """Tokens: half of the rows have no more than the median, nine of ten no more than p90."""

    median: int
    p90: int
    max: int
    total: int


@dataclass(frozen=True)
class Histogram:
    """Rows from each edge up to the next; the last edge is above every row."""

    edges: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class LengthProfile:
    """Lengths of all rows, in tokens."""

    prompt: Spread
    answer: Spread
    histogram: Histogram


class Lengths:
    """Gathers them: 8 bytes a row."""

    def __init__(self) -> None:
        self._prompts, self._answers = array("i"), array("i")

    def add(self, row: DataRow) -> None:
        self._prompts.append(row.prompt_tokens)
        self._answers.append(row.answer_tokens)

    def found(self) -> LengthProfile | None:
        """None: no rows."""
        if not self._prompts:
            return None
        import numpy

        prompts, answers = (numpy.asarray(each) for each in (self._prompts, self._answers))
        edges = bin_edges(int(max(prompts.max(), answers.max())))
        counts = (numpy.histogram(each, edges)[0].tolist() for each in (prompts, answers))
        prompt, answer = (tuple(each) for each in counts)
        histogram = Histogram(edges, prompt, answer)
        return LengthProfile(_spread(prompts), _spread(answers), histogram)


def bin_edges(longest: int) -> tuple[int, ...]:
    """From 0 to above `longest`, in at most MOST_BINS steps of 1, 2 or 5 times a power of ten."""
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            bins = longest // step + 1
            if bins <= MOST_BINS:
                return tuple(range(0, bins * step + 1, step))
        power *= 10


def _spread(values: Any) -> Spread:
    import numpy

    median, p90 = numpy.percentile(values, [50, 90], method="inverted_cdf")
    return Spread(int(median), int(p90), int(values.max()), int(values.sum()))
