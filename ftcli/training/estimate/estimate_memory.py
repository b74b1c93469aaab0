"""`ftcli estimate-vram`: memory of a training, from a recipe or from flags alone.

The recipe's schema, which takes a third of the command's time, is imported only for a recipe: flags
alone are the estimator's own inputs (`Choices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.errors import MachineError, UsageError
from ftcli.memory import Choices, Estimate, TextbookFigure, textbook
from ftcli.memory.architecture import PACKED_TYPES, Architecture
from ftcli.memory.choices import why_no_checkpointing
from ftcli.memory.fit.fitting import Alternatives, FitResult, fit, instead
from ftcli.memory.fit.limits import Limit, Sweep, largest, size_named, sizes_of, sweep
from ftcli.memory.fit.request import FitRequest, sparing
from ftcli.memory.fit.search import estimate_on, fits
from ftcli.memory.hardware import Hardware, find_card
from ftcli.memory.known_models import from_here
from ftcli.memory.speed import RunTime, run_time
from ftcli.models.architectures.find import find_architecture
from ftcli.training.estimate.flags import require_consistent, require_size, require_trainable

if TYPE_CHECKING:
    from ftcli.training.estimate.overrides import RecipeWithFlags


@dataclass(frozen=True)
class EstimateOptions:
    """Arguments of the command."""

    recipe: Path | None
    overrides: tuple[str, ...]
    model: str | None
    flags: Mapping[str, Any]
    """Fields of `Choices` that flags set."""
    gpu: str | None = None
    fit: str | None = None
    """A GPU, a size, or `auto`: the GPU of this machine."""
    write: Path | None = None
    max: str | None = None
    sweep: str | None = None
    time: bool = False
    cost_per_hour: float | None = None

    def require_answerable(self) -> None:
        """Raise UsageError for flags that contradict each other."""
        if self.recipe is None and self.model is None:
            raise UsageError("usage", "give a RECIPE, or --model (7b, a hub id, a config.json)")
        for is_wrong, problem in self._problems():
            if is_wrong:
                raise UsageError("flag", problem)

    def _problems(self) -> Iterator[tuple[bool, str]]:
        """Whether flags contradict each other, each with the words for it."""
        has_gpu, has_recipe = self.gpu is not None or self.fit is not None, self.recipe is not None
        yield (
            not has_recipe and bool(self.overrides),
            "--set changes a recipe, and none is given",
        )
        yield (
            self.write is not None and self.fit is None,
            "--write writes what --fit finds: add --fit 24GB, 4090 or auto",
        )
        yield (
            self.write is not None and not has_recipe,
            "--write changes a recipe, and none is given: ftcli estimate-vram RECIPE --fit "
            f"{self.fit} --write {self.write} (keys of a recipe: ftcli schema --text)",
        )
        yield (
            self.max is not None and not has_gpu,
            f"--max {self.max} needs a GPU: add --gpu 4090 or 24GB",
        )
        yield self.time and not has_gpu, "--time needs a GPU: add --gpu 4090"
        yield (
            self.cost_per_hour is not None and not self.time,
            "--cost-per-hour is for the time of a training: add --time",
        )
        yield (
            self.flags.get("target_modules") == (),
            "--target-modules: no module named: all-linear, or names as q_proj,v_proj",
        )

    def find_hardware(self) -> Hardware | None:
        """The GPU of the flags; raises UsageError, and MachineError if `auto` finds none."""
        card = find_card(self.gpu) if self.gpu is not None else None
        fit_card = find_card(self.fit) if self.fit not in (None, "auto") else None
        if card is not None and self.fit is not None and fit_card != card:
            raise UsageError(
                "flag", f"--gpu {self.gpu} and --fit {self.fit} name two GPUs: leave --gpu out"
            )
        if self.fit != "auto":
            found = fit_card or card
            return found.hardware if found is not None else None
        from ftcli.models.device import find_hardware

        hardware = find_hardware("auto")
        if hardware.kind != "cuda":
            raise MachineError(
                "no_card",
                f"--fit auto: this machine has no CUDA GPU ({hardware.name}); name one, as "
                "--fit 4090 or --fit 24GB",
            )
        return hardware


@dataclass(frozen=True)
class EstimateResult:
    """An estimate with its inputs; `textbook` only for full fine-tuning."""

    architecture: Architecture
    choices: Choices
    estimate: Estimate
    hardware: Hardware | None
    textbook: tuple[TextbookFigure, ...] = ()
    fit: FitResult | None = None
    instead: Alternatives | None = None
    """If --fit finds nothing."""
    written: Path | None = None
    limit: Limit | None = None
    sweep: Sweep | None = None
    time: RunTime | None = None
    open_choices: tuple[str, ...] = ()
    """Keys that are `auto`, whose smallest values are estimated."""

    @property
    def fits_card(self) -> bool | None:
        """Whether the estimate itself fits the GPU."""
        if self.hardware is None:
            return None
        return self.estimate.device_bytes <= self.hardware.usable_bytes

    @property
    def fits_upper_bound(self) -> bool | None:
        """Whether the upper bound fits too, as `train` and --fit require."""
        return None if self.hardware is None else fits(self.estimate, self.hardware)

    def as_json(self) -> dict[str, Any]:
        """For --json; some keys exist only with their flag."""
        found, hardware = self.estimate, self.hardware
        own = {} if hardware is None else {hardware.name: self.fits_card}
        surely = {} if hardware is None else {hardware.name: self.fits_upper_bound}
        changes = self.fit.changes if self.fit is not None else ()
        fields: dict[str, Any] = {
            **_figures(found),
            "managed_bytes": found.managed_bytes,
            "based_on": found.based_on,
            "breakdown": found.breakdown,
            "peak_phase": found.peak_phase,
            "phases": found.phases,
            "timeline": found.timeline,
            "moments": found.moments,
            "trainable_parameters": found.trainable_parameters,
            "total_parameters": found.total_parameters,
            "fits": found.fits | own,
            "fits_upper_bound": found.fits_upper_bound | surely,
            "assumptions": found.assumptions | {"choices": _fields(self.choices)},
            "textbook": [figure._asdict() for figure in self.textbook],
            "suggestions": [asdict(change) for change in changes],
        }
        if hardware is not None and (self.fit is not None or self.instead is not None):
            fields["fit"] = {"card": hardware.name, "usable_bytes": hardware.usable_bytes}
            fields["fit"] |= (
                {"fits": False, "instead": asdict(self.instead)} if self.instead else {}
            )
            fields["fit"] |= _fit(self.fit) if self.fit is not None else {}
        if self.written is not None:
            fields["written"] = str(self.written)
        if self.limit is not None:
            figures = _figures(self.limit.estimate) if self.limit.estimate else {}
            fields["max"] = {"size": self.limit.size, "value": self.limit.value, **figures}
            taken = {
                "embedding_offload": self.limit.choices.embedding_offload,
                "activation_offload": self.limit.choices.offloading,
                "tiled_mlp": self.limit.choices.tiling,
            }
            fields["max"] |= {key: True for key, on in taken.items() if figures and on}
        if self.time is not None:
            fields["time"] = self.time.as_json()
        if self.sweep is not None:
            rows = [
                {"value": row.value, **_figures(row.estimate), "fits": row.fits}
                for row in self.sweep.rows
            ]
            fields["sweep"] = {"size": self.sweep.size, "rows": rows}
        return fields


def estimate_memory(options: EstimateOptions) -> EstimateResult:
    """Estimate a recipe, a model named by a flag, or a recipe changed by flags."""
    options.require_answerable()
    hardware = options.find_hardware()
    recipe = _recipe(options, hardware)
    request = recipe.request if recipe is not None else _of_flags(options, hardware)
    architecture, choices = request.architecture, request.choices
    require_consistent(options.flags, choices, architecture)
    open_choices = request.open_choices if recipe is not None else ()
    fitted, alternatives, limit, swept = None, None, None, None
    if options.fit is not None and hardware is not None:
        require_trainable(choices, f"--fit {options.fit}")
        fitted, open_choices = fit(request, hardware), ()
        alternatives = instead(request, hardware) if fitted is None else None
    elif recipe is not None and hardware is not None:
        planned = recipe.planned(hardware)
        if planned is not None:
            choices, open_choices = planned, ()
    if options.max is not None and hardware is not None:
        size = size_named(options.max, "--max")
        require_size(size, choices, "--max")
        limit = largest(architecture, sparing(request, hardware), size, hardware)
    if options.sweep is not None:
        size, values = sizes_of(options.sweep)
        require_size(size, choices, "--sweep")
        swept = sweep(architecture, request.choices, size, values, hardware)
    timed = None
    if options.time and hardware is not None:
        tokens = recipe.tokens_to_train if recipe is not None else None
        final = fitted.choices if fitted is not None else choices
        timed = run_time(architecture, final, hardware, tokens, options.cost_per_hour)
    return EstimateResult(
        architecture=architecture,
        choices=choices,
        estimate=estimate_on(architecture, choices, hardware),
        hardware=hardware,
        textbook=tuple(textbook(architecture)) if choices.mode == "full" else (),
        fit=fitted,
        instead=alternatives,
        open_choices=open_choices,
        limit=limit,
        sweep=swept,
        time=timed,
        # Last, so that nothing is written if something else fails.
        written=_write(options, recipe, fitted, alternatives),
    )


def _recipe(options: EstimateOptions, hardware: Hardware | None) -> RecipeWithFlags | None:
    if options.recipe is None:
        return None
    from ftcli.config.loader import load_recipe
    from ftcli.training.estimate.overrides import with_flags

    loaded = load_recipe(options.recipe, options.overrides)
    return with_flags(loaded, options.model, options.flags, hardware)


def _of_flags(options: EstimateOptions, hardware: Hardware | None) -> FitRequest:
    flags = {"seq_len" if name == "max_length" else name: v for name, v in options.flags.items()}
    architecture = find_architecture(from_here(options.model or ""))
    liger = architecture.model_type in PACKED_TYPES  # as ftcli.training.plan.optimizations
    shares_keys = hardware is None or hardware.shares_keys
    start = Choices(mode="lora", optimized=True, liger=liger, shares_keys=shares_keys)
    choices = replace(start, **flags)
    named = "gradient_checkpointing" in options.flags
    recomputes = why_no_checkpointing(choices.mode, architecture) is None
    if not named:
        choices = replace(choices, gradient_checkpointing=recomputes)
    return FitRequest(
        architecture,
        choices,
        batch_rows=choices.micro_batch,
        open_checkpointing=not named and recomputes,
        open_offload="activation_offload" not in options.flags,
        open_ends="embedding_offload" not in options.flags,
        open_tiles="tiled_mlp" not in options.flags,
    )


def _write(
    options: EstimateOptions,
    recipe: RecipeWithFlags | None,
    fitted: FitResult | None,
    alternatives: Alternatives | None,
) -> Path | None:
    """The recipe with `--set`, flags and the changes, as a file; raises FtcliError."""
    if options.write is None or recipe is None:
        return None
    if fitted is not None:
        changes = {change.key: change.value for change in fitted.changes}
        return recipe.write(changes, options.write)
    would = [alternatives.card] if alternatives is not None and alternatives.card else []
    if alternatives is not None and alternatives.model is not None:
        would.append(f"the model {alternatives.model}")
    hint = f" ({' or '.join(would)} would)" if would else ""
    message = f"no change makes it fit {options.fit}{hint}: nothing is written"
    raise MachineError("memory", message)


def _figures(found: Estimate) -> dict[str, int]:
    return {
        "peak_bytes": found.peak_bytes,
        "reserved_bytes": found.reserved_bytes,
        "device_bytes": found.device_bytes,
        "low_bytes": found.low_bytes,
        "high_bytes": found.high_bytes,
    }


def _fit(found: FitResult) -> dict[str, Any]:
    return {"fits": True, **_figures(found.estimate), "choices": _fields(found.choices)}


def _fields(choices: Choices) -> dict[str, Any]:
    fields = asdict(choices)
    fields.pop("stack")
    return fields
