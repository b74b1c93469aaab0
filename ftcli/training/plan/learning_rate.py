"""The learning rate, and how far L2-SP pulls with it."""

from __future__ import annotations

from typing import assert_never

from ftcli.config.recipe import (
    Bottleneck,
    Full,
    Lora,
    Method,
    PrefixTuning,
    PromptTuning,
    Qlora,
    Recipe,
    l2_sp_fault,
)
from ftcli.errors import UsageError
from ftcli.memory.choices import Precision
from ftcli.shell import shown_size
from ftcli.training.plan.plan import AS_SET, Decided

# bf16 has 8 bits: a relative change of a weight below half a step is rounded away.
BF16_ROUNDS_BELOW = 2**-9


def choose_learning_rate(recipe: Recipe) -> Decided[float]:
    """The recipe's learning rate, or the method's own default."""
    asked = recipe.training.learning_rate
    return (asked, AS_SET) if asked != "auto" else default_learning_rate(recipe.method)


def default_learning_rate(method: Method) -> Decided[float]:
    match method:
        case Full():
            return 2e-5, "usual for full fine-tuning (1e-5 to 5e-5)"
        case Lora() | Qlora():
            return 2e-4, "usual for low-rank updates (QLoRA, Dettmers et al. 2023, table 9)"
        case Bottleneck():
            return 1e-3, "in the range of the authors (Houlsby et al. 2019, section 3.2)"
        case PrefixTuning(projection=True):
            return 1e-3, "an MLP makes the prefix; measured, see docs/methods.md"
        case PrefixTuning():
            return 3e-2, "keys and values are large numbers; measured, see docs/methods.md"
        case PromptTuning():
            return 3e-2, "few weights far from the output; measured, at 2e-4 they learn nothing"
        case _:
            assert_never(method)


def require_l2_sp(recipe: Recipe) -> None:
    """Raise UsageError (`l2_sp`) if a step would pull weights to their start, or beyond it."""
    rate, _ = choose_learning_rate(recipe)
    wrong = l2_sp_fault(rate, recipe.training.l2_sp)
    if wrong is not None:
        raise UsageError("l2_sp", wrong)


def why_l2_sp(recipe: Recipe, precision: Precision, starts_bytes: int) -> str:
    """Its effect in a step; raises as `require_l2_sp`."""
    require_l2_sp(recipe)
    rate, _ = choose_learning_rate(recipe)
    pull = rate * recipe.training.l2_sp
    lost = f"; {lost_pulls(pull)}" if precision == "pure-bf16" else ""
    return (
        f"a step pulls weights up to {pull:.2%} of the way back to their start; starting weights "
        f"take {shown_size(starts_bytes)}{lost}"
    )


def lost_pulls(pull: float) -> str:
    """Effect of pure-bf16's rounding on pulls by this share of the way, in words."""
    least = BF16_ROUNDS_BELOW / pull
    return (
        f"in pure-bf16 pulls this small round to zero until a weight is {least:.2g} of its own "
        "size away from its start"
    )
