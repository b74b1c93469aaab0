"""What was decided, each choice with its reason: (recipe, shape, profile, hardware) → Plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar, assert_never

from ftcli.errors import MachineError, ModelError, UsageError
from ftcli.hardware import Hardware, context_bytes
from ftcli.prepared import Prepared
from ftcli.recipe import Full, Lora, Method, Qlora, Recipe
from ftcli.shapes import Shape
from ftcli.vram import Choices, Estimate, estimate
from ftcli.vram.choices import Attention, Optimizer, Precision, WeightsDtype

T = TypeVar("T")

# On a CPU four rows already keep the matrix units busy; more rows only add padding.
CPU_MICRO_BATCH = 4
# On a card beyond this many tokens at once the products are as fast as they get.
CARD_TOKENS = 16_384
# Share of free memory that a plan may fill: the allocator's fragments take the rest.
MEMORY_SHARE = 0.92
# Validations may take this share of the time that training takes.
VALIDATION_SHARE = 0.1
# A forward pass costs a third of a training step (Kaplan et al. 2020, section 2.1: 2N of 6N).
FORWARD_SHARE = 1 / 3
MOST_VALIDATIONS = 10


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A decision and why it was taken."""

    value: T
    reason: str


@dataclass(frozen=True)
class Profile:
    """What the plan has to know of the data."""

    rows: int
    tokens: int
    longest_tokens: int
    labelled_share: float
    validation_tokens: int

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.rows


@dataclass(frozen=True)
class Plan:
    """One training, decided. `accumulation` × `micro_batch` is the recipe's batch size."""

    hardware_kind: str
    precision: Choice[Precision]
    weights_dtype: Choice[WeightsDtype]
    attention: Choice[Attention]
    optimizer: Choice[Optimizer]
    learning_rate: Choice[float]
    micro_batch: Choice[int]
    accumulation: int
    gradient_checkpointing: Choice[bool]
    steps: Choice[int]
    epochs: float
    warmup_steps: int
    eval_every: Choice[int]
    save_every: Choice[int]
    estimate: Estimate
    free_bytes: int

    def choices(self) -> Mapping[str, Choice[Any]]:
        """The decisions by name, in the order in which they are shown."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in found.items() if isinstance(value, Choice)}

    def headline(self) -> str:
        """The plan in one line."""
        rows = self.micro_batch.value * self.accumulation
        checkpointing = "" if self.gradient_checkpointing.value else "no "
        return (
            f"{self.precision.value} · micro-batch {self.micro_batch.value} × {self.accumulation} "
            f"= {rows} rows a step · {checkpointing}checkpointing "
            f"({self.estimate.peak_bytes / 1e9:.1f} of {self.free_bytes / 1e9:.1f} GB) · "
            f"{self.steps.value} steps"
        )

    def as_json(self) -> dict[str, Any]:
        """plan.json: decisions with reasons, and the estimate."""
        plain = {"accumulation": self.accumulation, "warmup_steps": self.warmup_steps}
        decided = {name: asdict(choice) for name, choice in self.choices().items()}
        return decided | plain | {"estimate": asdict(self.estimate)}


def profile_of(prepared: Prepared) -> Profile:
    """The profile of prepared data."""
    train = prepared.train
    return Profile(
        rows=train.rows,
        tokens=train.tokens,
        longest_tokens=prepared.longest.tokens,
        labelled_share=train.trained_tokens / train.tokens,
        validation_tokens=prepared.validation.tokens,
    )


def make_plan(recipe: Recipe, shape: Shape, profile: Profile, hardware: Hardware) -> Plan:
    """Decide everything the recipe leaves open.

    Raises ModelError (a method the model cannot take), MachineError (no memory, no such
    arithmetic here) and UsageError.
    """
    _require_method(recipe.method, shape)
    precision = _precision(recipe, hardware)
    weights = _weights_dtype(recipe, precision.value)
    attention = _attention(recipe, shape, hardware)
    base = _vram_choices(recipe, profile, precision.value, weights.value, attention.value)
    optimizer = _optimizer(recipe, hardware, shape, base)
    fit = _fit(recipe, shape, profile, hardware, replace(base, optimizer=optimizer.value))
    steps, epochs = _steps(recipe, profile)
    eval_every = _eval_every(recipe, profile, steps.value)
    return Plan(
        hardware_kind=hardware.kind,
        precision=precision,
        weights_dtype=weights,
        attention=attention,
        optimizer=optimizer,
        learning_rate=_learning_rate(recipe),
        micro_batch=fit.micro_batch,
        accumulation=recipe.training.batch_size // fit.micro_batch.value,
        gradient_checkpointing=fit.checkpointing,
        steps=steps,
        epochs=epochs,
        warmup_steps=math.ceil(recipe.training.warmup_ratio * steps.value),
        eval_every=eval_every,
        save_every=_save_every(recipe, eval_every.value),
        estimate=fit.estimate,
        free_bytes=hardware.free_bytes,
    )


def vram_method(method: Method) -> dict[str, Any]:
    """The method in the words of `vram.Choices`."""
    match method:
        case Full():
            return {"mode": "full"}
        case Lora() | Qlora():
            targets = method.target_modules
            words = {
                "mode": method.mode,
                "rank": method.rank,
                "dropout": method.dropout,
                "targets": targets if isinstance(targets, str) else tuple(targets),
            }
            if isinstance(method, Qlora):
                words["double_quantization"] = method.double_quantization
            return words
        case _:
            assert_never(method)


def _require_method(method: Method, shape: Shape) -> None:
    if shape.experts > 1 and not isinstance(method, Full):
        raise ModelError(
            "method_refused",
            f"{shape.name} is a mixture of experts; its experts are 3-D tensors that "
            f"{method.mode} would pass over in silence; take method.mode: full, or a dense model",
        )


def _precision(recipe: Recipe, hardware: Hardware) -> Choice[Precision]:
    asked = recipe.training.precision
    if asked != "auto":
        _require_precision(asked, hardware)
        return Choice(asked, "set in the recipe")
    if hardware.kind == "cpu" and not hardware.fast_bf16:
        return Choice("fp32", f"{hardware.name} has no bf16 matrix units and emulates it slowly")
    if hardware.fast_bf16:
        capability = hardware.compute_capability
        proof = f"compute capability {capability[0]}.{capability[1]}" if capability else "this CPU"
        return Choice("bf16", f"{proof} supports it: fast, with the range of fp32")
    return Choice("fp16", f"{hardware.name} has no bf16; fp16 with loss scaling")


def _require_precision(asked: str, hardware: Hardware) -> None:
    if asked == "fp16" and hardware.kind == "cpu":
        raise MachineError(
            "precision", "training.precision: fp16 needs a CUDA card; here: bf16, fp32"
        )


def _weights_dtype(recipe: Recipe, precision: Precision) -> Choice[WeightsDtype]:
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
        case Lora() | Qlora():
            if asked != "auto":
                return Choice(asked, "set in the recipe")
            if precision == "fp32":
                return Choice("fp32", "follows the arithmetic")
            kind: WeightsDtype = "fp16" if precision == "fp16" else "bf16"
            return Choice(kind, "frozen weights need no more than the arithmetic")
        case _:
            assert_never(recipe.method)


def _attention(recipe: Recipe, shape: Shape, hardware: Hardware) -> Choice[Attention]:
    asked = recipe.model.attention
    if asked == "flash" and hardware.kind != "cuda":
        raise MachineError("attention", "model.attention: flash needs a CUDA card; take sdpa")
    if asked != "auto":
        return Choice(asked, "set in the recipe")
    if shape.capped_scores:
        return Choice("eager", "attention scores pass through a tanh, which sdpa cannot do")
    return Choice("sdpa", "torch's own fused kernels, no further package")


def _optimizer(
    recipe: Recipe, hardware: Hardware, shape: Shape, base: Choices
) -> Choice[Optimizer]:
    asked = recipe.training.optimizer
    if asked != "auto":
        if hardware.kind != "cuda" and asked in ("adamw-8bit", "paged-adamw-8bit"):
            raise MachineError(
                "optimizer", f"training.optimizer: {asked} needs a CUDA card; take adamw"
            )
        return Choice(asked, "set in the recipe")
    if hardware.kind != "cuda" or not isinstance(recipe.method, Full):
        return Choice("adamw", "few trained weights" if base.mode != "full" else "exact states")
    if needed_bytes(estimate(shape, base), hardware) <= _budget(hardware):
        return Choice("adamw", "its fp32 states fit")
    return Choice("paged-adamw-8bit", "fp32 states do not fit on this card")


def _learning_rate(recipe: Recipe) -> Choice[float]:
    asked = recipe.training.learning_rate
    if asked != "auto":
        return Choice(asked, "set in the recipe")
    match recipe.method:
        case Full():
            return Choice(2e-5, "usual for full fine-tuning (1e-5 to 5e-5)")
        case Lora() | Qlora():
            return Choice(2e-4, "usual for low-rank updates (QLoRA, Dettmers et al. 2023, table 9)")
        case _:
            assert_never(recipe.method)


def _vram_choices(
    recipe: Recipe,
    profile: Profile,
    precision: Precision,
    weights: WeightsDtype,
    attention: Attention,
) -> Choices:
    training = recipe.training
    micro_batch = 1 if training.micro_batch_size == "auto" else training.micro_batch_size
    checkpointing = training.gradient_checkpointing
    return Choices(
        **vram_method(recipe.method),
        precision=precision,
        weights_dtype=weights,
        attention=attention,
        seq_len=profile.longest_tokens,
        micro_batch=micro_batch,
        gradient_accumulation=training.batch_size // micro_batch,
        gradient_checkpointing=True if checkpointing == "auto" else checkpointing,
        labelled_share=profile.labelled_share,
    )


@dataclass(frozen=True)
class _Fit:
    micro_batch: Choice[int]
    checkpointing: Choice[bool]
    estimate: Estimate


def _budget(hardware: Hardware) -> int:
    return int(hardware.free_bytes * MEMORY_SHARE)


def needed_bytes(found: Estimate, hardware: Hardware) -> int:
    """What a step takes of the memory that `hardware` calls free."""
    if hardware.kind != "cuda":
        return found.peak_bytes
    # The context of this very process is not part of what CUDA calls free.
    return found.device_bytes - context_bytes(None)


def _fit(recipe: Recipe, shape: Shape, profile: Profile, hardware: Hardware, base: Choices) -> _Fit:
    """The largest useful micro-batch that fits, without checkpointing where there is room."""
    training, budget = recipe.training, _budget(hardware)
    asked = training.gradient_checkpointing
    for checkpointing in [False, True] if asked == "auto" else [asked]:
        for micro_batch in _micro_batches(recipe, profile, hardware):
            choices = replace(
                base,
                micro_batch=micro_batch,
                gradient_accumulation=training.batch_size // micro_batch,
                gradient_checkpointing=checkpointing,
            )
            found = estimate(shape, choices)
            if needed_bytes(found, hardware) <= budget:
                return _Fit(
                    _micro_batch_choice(recipe, micro_batch, hardware),
                    _checkpointing_choice(asked, checkpointing),
                    found,
                )
    needed = needed_bytes(found, hardware) / 1e9
    rows = "one row" if micro_batch == 1 else f"{micro_batch} rows"
    verb = "needs" if micro_batch == 1 else "need"
    raise MachineError(
        "memory",
        f"{rows} of {profile.longest_tokens} tokens {verb} {needed:.1f} GB, and "
        f"{hardware.name} has {hardware.free_bytes / 1e9:.1f} GB free; "
        f"{_cheaper(recipe)}, lower data.max_length, or take a smaller model",
    )


def _cheaper(recipe: Recipe) -> str:
    """The change that costs least: first what the recipe forbids the plan to choose."""
    if recipe.training.gradient_checkpointing is False:
        return "leave training.gradient_checkpointing to auto"
    if recipe.training.micro_batch_size not in ("auto", 1):
        return "leave training.micro_batch_size to auto"
    method = recipe.method
    match method:
        case Full():
            return "take method.mode: lora"
        case Lora():
            return "take method.mode: qlora"
        case Qlora():
            return "lower method.rank"
        case _:
            assert_never(method)


def _micro_batches(recipe: Recipe, profile: Profile, hardware: Hardware) -> list[int]:
    """Divisors of the batch size worth trying, the largest first."""
    training = recipe.training
    if training.micro_batch_size != "auto":
        return [training.micro_batch_size]
    most = CPU_MICRO_BATCH
    if hardware.kind == "cuda":
        most = max(1, CARD_TOKENS // profile.longest_tokens)
    size = training.batch_size
    return [n for n in range(min(size, most), 0, -1) if size % n == 0]


def _micro_batch_choice(recipe: Recipe, micro_batch: int, hardware: Hardware) -> Choice[int]:
    if recipe.training.micro_batch_size != "auto":
        return Choice(micro_batch, "set in the recipe")
    if hardware.kind == "cpu":
        return Choice(micro_batch, "keeps the cores busy; more rows would only add padding")
    return Choice(micro_batch, "the largest that fits and divides the batch")


def _checkpointing_choice(asked: bool | str, checkpointing: bool) -> Choice[bool]:
    if asked != "auto":
        return Choice(checkpointing, "set in the recipe")
    if checkpointing:
        return Choice(True, "activations do not fit without it; costs about a third more time")
    return Choice(False, "activations fit; computing them again would cost a third more time")


def _steps(recipe: Recipe, profile: Profile) -> tuple[Choice[int], float]:
    training = recipe.training
    if training.max_steps is not None:
        epochs = training.max_steps * training.batch_size / profile.rows
        return Choice(training.max_steps, "training.max_steps"), epochs
    steps = max(1, math.ceil(round(profile.rows * training.epochs) / training.batch_size))
    reason = f"{profile.rows} rows × {training.epochs:g} epochs / {training.batch_size} a step"
    return Choice(steps, reason), training.epochs


def _eval_every(recipe: Recipe, profile: Profile, steps: int) -> Choice[int]:
    asked = recipe.training.eval_steps
    if asked != "auto":
        return Choice(asked, "set in the recipe")
    if not profile.validation_tokens:
        tenth = math.ceil(steps / MOST_VALIDATIONS)
        return Choice(tenth, "there are no validation rows; a checkpoint each tenth of the run")
    trained = steps * recipe.training.batch_size * profile.mean_tokens
    one = profile.validation_tokens * FORWARD_SHARE
    affordable = int(trained * VALIDATION_SHARE / one)
    count = min(max(affordable, 2), MOST_VALIDATIONS, steps)
    return Choice(
        math.ceil(steps / count),
        f"{count} validations, so that they take about {count * one / trained:.0%} of the time",
    )


def _save_every(recipe: Recipe, eval_every: int) -> Choice[int]:
    asked = recipe.training.save_steps
    if asked != "auto":
        return Choice(asked, "set in the recipe")
    return Choice(eval_every, "with every validation, so that the best weights are on disk")
