"""Optimisations of docs/performance.md: on or off, and why; none changes results."""

from __future__ import annotations

from ftcli.config.recipe import Lora, PrefixTuning, PromptTuning, Qlora, Recipe
from ftcli.errors import UsageError
from ftcli.memory import Choices
from ftcli.memory.architecture import PACKED_TYPES, Architecture
from ftcli.memory.hardware import ComputeCapability, Hardware
from ftcli.shell import shown_size
from ftcli.training.plan.plan import AS_SET, Decided, why_not_optimized

# torch's flash kernel (2.13: ATen/native/transformers/cuda, flash_attn/flash_api.cpp): from Ampere
# on, in 16 bits, for heads of up to 256; its backward pass has no kernel for some widths on GPUs
# with little shared memory.
FIRST_WITH_FLASH: ComputeCapability = (8, 0)
FLASH_WIDTHS = range(8, 257, 8)
NOT_BACKWARD, LITTLE_SHARED_MEMORY = range(193, 225), ((8, 6), (8, 9), (12, 0), (12, 1))


def why_not_packed(architecture: Architecture) -> str | None:
    """Why a model's rows cannot be packed; None if they can."""
    if architecture.model_type not in PACKED_TYPES:
        return f"not tested for {architecture.model_type}"
    if architecture.dropout:
        return "the model has dropout, which differs in each row"
    if architecture.stretched_positions:
        return "the model's rotary positions depend on the longest row of the batch"
    return None


def require_packing(recipe: Recipe, padded: str | None) -> None:
    """Raise UsageError (`packing`) if the recipe sets packing and rows cannot be packed."""
    asked = recipe.training.packing
    if padded is not None and asked not in ("auto", False):
        raise UsageError(
            "packing",
            f"training.packing: {str(asked).lower()} is not possible here ({padded}); leave it to "
            "auto",
        )


def why_padded(recipe: Recipe, architecture: Architecture, hardware: Hardware) -> str | None:
    """Why the rows of a step are padded; None if they are packed."""
    training = recipe.training
    if training.packing is False:
        return AS_SET
    if (why := why_not_optimized(recipe.training, hardware)) is not None:
        return why
    if isinstance(recipe.method, PrefixTuning | PromptTuning):
        return "each row has its own virtual tokens"
    if training.neftune_noise_alpha is not None:
        return "NEFTune scales its noise by the length of padded rows"
    if recipe.model.attention != "auto":
        return f"model.attention: {recipe.model.attention} is set in the recipe"
    return why_not_packed(architecture) or why_no_varlen(recipe, architecture, hardware)


def why_no_varlen(recipe: Recipe, architecture: Architecture, hardware: Hardware) -> str | None:
    """Why a GPU has no attention for packed rows (ftcli.kernels.varlen); None if it has, and on a
    CPU."""
    if hardware.kind != "cuda":
        return None
    capability = hardware.compute_capability
    if capability is not None and capability < FIRST_WITH_FLASH:
        return "torch's attention over packed rows needs a GPU of 2020 or later"
    if recipe.training.precision == "fp32":
        return "torch's attention over packed rows needs 16 bits"
    calls = [call for kind in architecture.kinds for call in kind.attention]
    if any(call.capped for call in calls):
        return "torch's attention over packed rows caps no scores"
    for call in calls:
        width = call.key_width
        missing = width in NOT_BACKWARD and capability in LITTLE_SHARED_MEMORY
        if width != call.value_width or width not in FLASH_WIDTHS or missing:
            return f"torch's attention over packed rows takes no heads of {width} here"
    return None


def choose_packing(recipe: Recipe, padded: str | None, tokens: int) -> Decided[int]:
    """Tokens of a micro-batch of packed rows; 0 if rows are padded."""
    if padded is not None:
        return 0, padded
    asked = recipe.training.packing
    if isinstance(asked, bool | str):
        return tokens, "rows of a step without padding; none sees another"
    if tokens == asked:
        return tokens, AS_SET
    why = "the longest row has more" if tokens > asked else "a step, or memory, has no more"
    return tokens, f"{asked} set in the recipe; {why}"


def why_not_shared(recipe: Recipe) -> str | None:
    """Why common prefixes of packed rows are not shared; None if they are."""
    method = recipe.method
    if isinstance(method, Lora | Qlora) and method.dropout:
        return f"method.dropout {method.dropout:g} differs in each row"
    return None


def choose_shared_prefix(recipe: Recipe, packing: int, common_tokens: int) -> Decided[bool] | None:
    """Whether common prefixes are computed once; None if rows are padded."""
    if not packing:
        return None
    if (why := why_not_shared(recipe)) is not None:
        return False, why
    what = "common prefixes of a micro-batch's rows are computed once, exactly"
    common = f"; all rows have {common_tokens:,} tokens in common" if common_tokens else ""
    return True, what + common


def choose_fused_lora(recipe: Recipe, hardware: Hardware, choices: Choices) -> Decided[bool] | None:
    """Whether LoRA is fused; None without LoRA."""
    if not choices.has_lora:
        return None
    if (why := why_not_optimized(recipe.training, hardware) or choices.why_not_fused) is not None:
        return False, why
    return True, "base and update are summed in place: less is copied and saved"


def choose_liger(
    recipe: Recipe, architecture: Architecture, hardware: Hardware
) -> Decided[bool] | None:
    """Whether norms, rotary positions and the MLP's gate are Liger's kernels; None without a
    GPU."""
    if hardware.kind != "cuda":
        return None
    if (why := why_not_optimized(recipe.training, hardware)) is not None:
        return False, why
    if "liger_kernel" not in hardware.kernels:
        return False, "not installed: pip install liger-kernel"
    if architecture.model_type not in PACKED_TYPES:
        return False, f"not tested for {architecture.model_type}"
    return True, "norms, rotary positions and the MLP's gate are one kernel each"


def may_cache_dequantised(recipe: Recipe, hardware: Hardware, choices: Choices) -> bool:
    """Whether dequantised 4-bit weights could be cached if memory has space."""
    on_cpu = hardware.kind == "cpu" and choices.quantization == "nf4"
    return on_cpu and why_not_optimized(recipe.training, hardware) is None


def choose_dequantised(
    recipe: Recipe, hardware: Hardware, choices: Choices, kept_bytes: int
) -> Decided[bool] | None:
    """Whether dequantised weights are cached; None without 4-bit weights."""
    if choices.quantization != "nf4":
        return None
    if choices.keeps_dequantised:
        return True, f"memory has room for {shown_size(kept_bytes)}; the same numbers"
    if hardware.kind != "cpu":
        return False, "a GPU's kernels dequantise as they multiply"
    if (why := why_not_optimized(recipe.training, hardware)) is not None:
        return False, why
    return False, f"memory has no room for {shown_size(kept_bytes)}"
