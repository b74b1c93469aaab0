"""What a training costs, and after how many calls its short prompt has paid for it: arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Call:
    """One call of a model by itself, answered on the machine that was timed."""

    prompt_tokens: float
    prompt_tokens_per_second: float
    answer_tokens: float
    answer_tokens_per_second: float

    @property
    def seconds(self) -> float:
        """The prompt is read at once, the answer is written token by token."""
        reading = self.prompt_tokens / self.prompt_tokens_per_second
        return reading + self.answer_tokens / self.answer_tokens_per_second


def training_seconds(tokens: float, tokens_per_second: float) -> float:
    """Of the optimizer steps alone; validations, loading and saving come on top."""
    return tokens / tokens_per_second


def cost(seconds: float, price_per_hour: float) -> float:
    """In the currency of the price."""
    return seconds / SECONDS_PER_HOUR * price_per_hour


def calls_to_pay_back(training_seconds: float, long: Call, short: Call) -> int | None:
    """Calls after which the time saved is that of the training; none: a call saves nothing.

    The price of an hour plays no part, as long as both run on one machine.
    """
    saved_seconds = long.seconds - short.seconds
    return math.ceil(training_seconds / saved_seconds) if saved_seconds > 0 else None
