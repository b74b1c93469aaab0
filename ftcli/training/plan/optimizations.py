"""Optimisations of docs/performance.md that a training takes, or why not; none changes results."""

from __future__ import annotations

from ftcli.config.recipe import Lora, PrefixTuning, PromptTuning, Qlora, Recipe
from ftcli.errors import UsageError
from ftcli.memory import Choices
from ftcli.memory.hardware import ComputeCapability, Hardware
from ftcli.memory.shapes import Shape
from ftcli.memory.shapes.shape import PACKED_TYPES
from ftcli.shell import shown_size
from ftcli.training.plan.plan import Decided

# CUDA programming guide: bf16, and all that torch's flex attention is tried with, since Ampere.
FIRST_WITH_FLEX: ComputeCapability = (8, 0)


def why_not_optimized(recipe: Recipe, hardware: Hardware) -> str | None:
    """Why a training takes no optimisation at all here; None where it may."""
    wanted = recipe.training.optimizations
    if wanted == "off":
        return "training.optimizations: off"
    if hardware.kind == "cuda" and wanted != "all":
        return "not yet measured on a GPU, where only training.optimizations: all takes it"
    if hardware.kind == "mps":
        return "not proven on this kind of machine"
    return None


def why_not_packed(shape: Shape) -> str | None:
    """What in a model keeps its rows from standing in one sequence; None where nothing does."""
    if shape.model_type not in PACKED_TYPES:
        return f"not proven for {shape.model_type}"
    if shape.dropout:
        return "the model drops attention weights or hidden states, other ones in each row"
    if shape.stretched_positions:
        return "the model rotates positions by the longest row beside"
    return None


def require_packing(recipe: Recipe, padded: str | None) -> None:
    """Raise UsageError (`packing`) where a recipe insists on what cannot be."""
    asked = recipe.training.packing
    if padded is not None and asked not in ("auto", False):
        raise UsageError(
            "packing",
            f"training.packing: {str(asked).lower()} is not possible here ({padded}); leave it to "
            "auto",
        )


def why_padded(recipe: Recipe, shape: Shape, hardware: Hardware) -> str | None:
    """Why the rows of a step are padded; None where they are packed."""
    training = recipe.training
    if training.packing is False:
        return "set in the recipe"
    if (why := why_not_optimized(recipe, hardware) or why_no_flex(hardware)) is not None:
        return why
    if isinstance(recipe.method, PrefixTuning | PromptTuning):
        return "virtual tokens stand before each row by itself"
    if training.neftune_noise_alpha is not None:
        return "NEFTune measures its noise by the length of padded rows"
    if recipe.model.attention != "auto":
        return f"model.attention: {recipe.model.attention} is set in the recipe"
    return why_not_packed(shape)


def why_no_flex(hardware: Hardware) -> str | None:
    """Why a card cannot keep packed rows apart (ftcli.kernels.flex); None off a card."""
    if hardware.kind != "cuda":
        return None
    if "triton" not in hardware.kernels:
        return "torch's flex attention needs triton, which is not installed"
    capability = hardware.compute_capability
    if capability is not None and capability < FIRST_WITH_FLEX:
        return "torch's flex attention wants a card of the year 2020 or later"
    return None


def choose_packing(recipe: Recipe, padded: str | None, tokens: int) -> Decided[int]:
    """Tokens of a micro-batch of packed rows; 0 where rows are padded."""
    if padded is not None:
        return 0, padded
    asked = recipe.training.packing
    if isinstance(asked, int) and asked is not True:
        return tokens, _beside_asked(tokens, asked)
    return tokens, "rows of a step without padding, each blind to the others"


def _beside_asked(tokens: int, asked: int) -> str:
    if tokens == asked:
        return "set in the recipe"
    why = "the longest row has more" if tokens > asked else "a step, or memory, has no more"
    return f"{asked} set in the recipe; {why}"


def why_not_shared(recipe: Recipe) -> str | None:
    """Why what packed rows begin with is computed for each; None where it is computed once."""
    method = recipe.method
    if isinstance(method, Lora | Qlora) and method.dropout:
        return f"method.dropout {method.dropout:g} draws anew in each row"
    return None


def choose_shared_prefix(recipe: Recipe, packing: int, common_tokens: int) -> Decided[bool] | None:
    """Whether what rows begin with is computed once; None where rows are padded."""
    if not packing:
        return None
    if (why := why_not_shared(recipe)) is not None:
        return False, why
    what = "what rows of a micro-batch begin with is computed once, exactly"
    common = f"; all rows have {common_tokens:,} tokens in common" if common_tokens else ""
    return True, what + common


def why_not_fused(recipe: Recipe, hardware: Hardware, choices: Choices) -> str | None:
    """Why a frozen weight and its update are separate nodes; None where they are one, or could be
    if 4-bit weights stay dequantised."""
    method = recipe.method
    if (why := why_not_optimized(recipe, hardware)) is not None:
        return why
    if isinstance(method, Lora | Qlora) and method.dora:
        return "DoRA divides by the norm of base and update"
    if isinstance(method, Lora | Qlora) and method.dropout:
        return "dropout stands between a layer's input and its update"
    if not choices.autocast and choices.weight_bytes != choices.stack.adapter_bytes:
        return "without autocast PEFT casts between 16-bit weights and their update in fp32"
    return None


def choose_fused_lora(recipe: Recipe, hardware: Hardware, choices: Choices) -> Decided[bool] | None:
    """Whether a frozen weight and its update are one node; None where there is no update."""
    if not choices.has_lora:
        return None
    if choices.fused_lora:
        return True, "base and update add up in place: less is copied, less is kept"
    why = why_not_fused(recipe, hardware, choices)
    return False, why or "4-bit weights are dequantised in each product"


def choose_liger(recipe: Recipe, shape: Shape, hardware: Hardware) -> Decided[bool] | None:
    """Whether norms, rotary positions and the gate of the MLP are Liger's kernels; None off a
    card."""
    if hardware.kind != "cuda":
        return None
    if (why := why_not_optimized(recipe, hardware)) is not None:
        return False, why
    if "liger_kernel" not in hardware.kernels:
        return False, "not installed: pip install liger-kernel"
    if shape.model_type not in PACKED_TYPES:
        return False, f"not proven for {shape.model_type}"
    return True, "norms, rotary positions and the MLP's gate are one kernel each"


def may_cache_dequantised(recipe: Recipe, hardware: Hardware, choices: Choices) -> bool:
    """Whether 4-bit weights could stay dequantised, memory permitting."""
    on_cpu = hardware.kind == "cpu" and choices.quantization == "nf4"
    return on_cpu and why_not_optimized(recipe, hardware) is None


def choose_dequantised(
    recipe: Recipe, hardware: Hardware, choices: Choices, kept_bytes: int
) -> Decided[bool] | None:
    """Whether they do; None without 4-bit weights."""
    if choices.quantization != "nf4":
        return None
    if choices.keeps_dequantised:
        return True, f"memory has room for {shown_size(kept_bytes)}; the same numbers"
    if hardware.kind != "cpu":
        return False, "a card's kernels dequantise as they multiply"
    if (why := why_not_optimized(recipe, hardware)) is not None:
        return False, why
    return False, f"memory has no room for {shown_size(kept_bytes)}"
