"""When Python looks for objects that hold each other and that nothing else holds.

Importing torch, transformers, trl and peft makes a million objects, none of them garbage. To look
through them takes a quarter of the imports, and a third of a second now and then later on; to take
them apart at the end takes a second and a half (two cores, Python 3.11).
"""

from __future__ import annotations

import gc

# With a tenth of that the imports are looked through eight times, which takes 0.2 s. What commands
# make behind them seldom holds itself: preparing 20,000 rows takes 10 MB more than with a tenth.
SELDOM = 1_000_000
"""New objects between two looks."""
USUAL = gc.get_threshold()


def collect_seldom() -> None:
    """While a command starts."""
    gc.set_threshold(SELDOM, *USUAL[1:])


def collect_as_usual() -> None:
    """Where a command has begun so, from here on; what is there by now is left alone."""
    if gc.get_threshold()[0] == SELDOM:
        gc.freeze()
        gc.set_threshold(*USUAL)


def leave_it_to_the_system() -> None:
    """At the end, which takes all back at once."""
    gc.freeze()
