"""In which types a training computes, and at which learning rate."""

from __future__ import annotations

from typing import assert_never

from ftcli.config.recipe import Adapter, Full, Lora, Method, Prefix, Prompt, Qlora, Recipe
from ftcli.config.training import goes_all_the_way_back
from ftcli.console import megabytes
from ftcli.errors import MachineError, UsageError
from ftcli.memory.choices import Attention, Precision, WeightsDtype
from ftcli.memory.fit.asked import require_mode
from ftcli.memory.hardware import Hardware
from ftcli.memory.shapes import Shape
from ftcli.training.plan.choice import Choice

# A change below half a step of the 8 bits that bf16 keeps is rounded away, whatever the weight.
BF16_ROUNDS_BELOW = 2**-9


def require_method(method: Method, shape: Shape) -> None:
    """Raise ModelError where the method would leave part of the model out in silence."""
    require_mode(method.mode, shape)


def choose_precision(recipe: Recipe, hardware: Hardware) -> Choice[Precision]:
    """bf16 where the hardware has it, else fp16 on a card and fp32 on a CPU."""
    asked = recipe.training.precision
    if asked != "auto":
        _require_precision(asked, hardware)
        return Choice(asked, "set in the recipe")
    if hardware.kind == "cpu" and not hardware.fast_bf16:
        return Choice("fp32", f"{hardware.name} has no bf16 matrix units and emulates it slowly")
    if hardware.fast_bf16:
        capability = hardware.compute_capability
        known = f"compute capability {capability[0]}.{capability[1]}" if capability else None
        proof = known or ("this CPU" if hardware.kind == "cpu" else hardware.name)
        return Choice("bf16", f"{proof} supports it: fast, with the range of fp32")
    return Choice("fp16", f"{hardware.name} has no bf16; fp16 with loss scaling")


def _require_precision(asked: str, hardware: Hardware) -> None:
    if asked == "fp16" and hardware.kind == "cpu":
        raise MachineError(
            "precision", "training.precision: fp16 needs a CUDA card; here: bf16, fp32"
        )


def choose_weights_dtype(recipe: Recipe, precision: Precision) -> Choice[WeightsDtype]:
    """Type in which the weights are held; raises UsageError."""
    asked = recipe.model.dtype
    match recipe.method:
        case Full():
            if asked != "auto":
                raise UsageError(
                    "recipe",
                    "model.dtype: full training decides the type of its weights by "
                    "training.precision (pure-bf16: 16-bit weights); remove it",
                )
            if precision == "pure-bf16":
                return Choice("bf16", "pure-bf16 asked for: small updates round to nothing")
            return Choice("fp32", "trained weights stay in fp32, so that small updates count")
        case Lora() | Qlora() | Adapter() | Prefix() | Prompt():
            if asked != "auto":
                return Choice(asked, "set in the recipe")
            if precision == "fp32":
                return Choice("fp32", "follows the arithmetic")
            kind: WeightsDtype = "fp16" if precision == "fp16" else "bf16"
            return Choice(kind, "frozen weights need no more than the arithmetic")
        case _:
            assert_never(recipe.method)


def choose_attention(recipe: Recipe, shape: Shape, hardware: Hardware) -> Choice[Attention]:
    """The attention kernel; raises MachineError."""
    asked = recipe.model.attention
    if asked == "flash" and hardware.kind != "cuda":
        raise MachineError("attention", "model.attention: flash needs a CUDA card; take sdpa")
    if asked == "sdpa" and shape.capped_scores:
        raise MachineError(
            "attention",
            "model.attention: sdpa cannot pass attention scores through a tanh as this model "
            "does; take eager",
        )
    if asked != "auto":
        return Choice(asked, "set in the recipe")
    if shape.capped_scores:
        return Choice("eager", "attention scores pass through a tanh, which sdpa cannot do")
    return Choice("sdpa", "torch's own fused kernels, no further package")


def choose_learning_rate(recipe: Recipe) -> Choice[float]:
    """The recipe's learning rate, or the method's own default."""
    asked = recipe.training.learning_rate
    if asked != "auto":
        return Choice(asked, "set in the recipe")
    match recipe.method:
        case Full():
            return Choice(2e-5, "usual for full fine-tuning (1e-5 to 5e-5)")
        case Lora() | Qlora():
            return Choice(2e-4, "usual for low-rank updates (QLoRA, Dettmers et al. 2023, table 9)")
        case Adapter():
            return Choice(1e-3, "within what the authors tried (Houlsby et al. 2019, section 3.2)")
        case Prefix(projection=True):
            return Choice(1e-3, "a small network makes the prefix; measured, see docs/methods.md")
        case Prefix():
            return Choice(3e-2, "keys and values are large numbers; measured, see docs/methods.md")
        case Prompt():
            return Choice(
                3e-2, "few weights far from the answer; measured, at 2e-4 they learn nothing"
            )
        case _:
            assert_never(recipe.method)


def require_hold(recipe: Recipe) -> None:
    """Raise UsageError (`hold`) where a step would go all the way back, or beyond."""
    rate = choose_learning_rate(recipe).value
    wrong = goes_all_the_way_back(rate, recipe.training.hold_strength)
    if wrong is not None:
        raise UsageError("hold", wrong)


def choose_hold(recipe: Recipe, precision: Precision, held_bytes: int) -> Choice[float] | None:
    """How strongly weights are held; raises as `require_hold`."""
    require_hold(recipe)
    strength = recipe.training.hold_strength
    if not strength:
        return None
    pull = choose_learning_rate(recipe).value * strength
    lost = f"; {lost_pulls(pull)}" if precision == "pure-bf16" else ""
    return Choice(
        strength,
        f"a step takes up to {pull:.2%} of the way back to the start, which is held in "
        f"{megabytes(held_bytes)}{lost}",
    )


def lost_pulls(pull: float) -> str:
    """What pure-bf16 leaves of pulls by this share of the way, in words."""
    least = BF16_ROUNDS_BELOW / pull
    return (
        f"in pure-bf16 pulls this small round to nothing until a weight is {least:.2g} of its own "
        "size away from its start"
    )
