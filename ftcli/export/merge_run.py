"""`ftcli merge`: one stand-alone model, proven equal to base + adapter before it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

from ftcli.config.recipe import Bottleneck, Full, Lora, PrefixTuning, PromptTuning, Qlora
from ftcli.console import Reporter
from ftcli.data.dataset import SPLITS
from ftcli.errors import FtcliError, MachineError, ModelError, UsageError
from ftcli.export.verdict import (
    ALLOWED,
    MAX_MISMATCH_KL,
    PASS,
    Exactness,
    Mismatch,
    RoundingCost,
    cost_of,
    dtype_reason,
    exactness_of,
    overflow_of,
)
from ftcli.memory.known_models import model_source
from ftcli.runs.atomic import atomic_directory, folder_bytes, write_json
from ftcli.runs.signals import StopSignals
from ftcli.shell import command
from ftcli.training.opening import OpenRun, open_run

if TYPE_CHECKING:
    from ftcli.export.merged_model import Merger
    from ftcli.export.parity import Prediction

REPORT = "merge_report.json"
DTYPES = ("auto", "bf16", "fp16", "fp32")
# Types in which an update would be rounded away.
TOO_COARSE = ("nf4", "fp4", "int4", "4bit", "int8", "8bit", "fp8")
ROWS_COMPARED = 16
# Logits stay in memory: 1,024 × 152,000 in fp32 are 0.6 GB.
TOKENS_COMPARED = 1024


@dataclass(frozen=True)
class MergeOptions:
    """Flags of `ftcli merge`; raises UsageError for wrong or contradicting ones."""

    base: Literal["dequantized", "original"] = "dequantized"
    dtype: str = "auto"
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.dtype in TOO_COARSE:
            raise UsageError(
                "flag",
                f"--dtype {self.dtype}: a merge cannot be quantised: the update is smaller than "
                "the steps between such weights and is rounded away (in 4 bits: KL 2.45, without "
                "any adapter 2.14); merge into 16 bits, or use the adapter with the 4-bit base "
                "(ftcli generate)",
            )
        if self.dtype not in DTYPES:
            raise UsageError("flag", f"--dtype {self.dtype}: takes {', '.join(DTYPES)}")
        if self.allow_mismatch and self.base != "original":
            raise UsageError("flag", "--allow-mismatch needs --base original")


@dataclass(frozen=True)
class MergeResult:
    """The folder of the stand-alone model; not `merged` if the run is one already."""

    folder: Path
    report: dict[str, Any]
    merged: bool

    def as_json(self) -> dict[str, Any]:
        return {"output": str(self.folder), **self.report}


def merge_run(
    path: Path,
    overrides: Sequence[str],
    *,
    output: Path | None,
    options: MergeOptions,
    reporter: Reporter,
) -> MergeResult:
    """Merge a finished LoRA or QLoRA run.

    Raises ModelError, and writes nothing, if the merged model is not base + adapter.
    """
    opened = open_run(path, overrides)
    if isinstance(opened.recipe.method, Full):
        report = {"verdict": "nothing to merge", "bytes": folder_bytes(opened.run.model)}
        return MergeResult(opened.run.model, report, merged=False)
    _require_linear(opened, options)
    folder = (output or opened.run.path / "merged").absolute()
    _check_output(folder, opened)
    with _remove_on_failure(folder, reporter), atomic_directory(folder) as temporary:
        report = _merge_where_it_fits(opened, temporary, options, reporter)
        write_json(temporary / REPORT, report)
        _require_free(folder)  # a merge takes minutes, and atomic_directory replaces what is there
    return MergeResult(folder, report, merged=True)


def _use_adapter(opened: OpenRun) -> str:
    """The command that uses the adapter unmerged."""
    return command("generate", opened.run.path, "…")


def _require_linear(opened: OpenRun, options: MergeOptions) -> None:
    """Raise UsageError for methods whose effect cannot be added to weights."""
    method = opened.recipe.method
    match method:
        case Full() | Qlora():
            return
        case Lora():
            if options.base == "original":
                raise UsageError(
                    "flag", "--base original: only a QLoRA run was trained on a quantised base"
                )
        case Bottleneck():
            raise UsageError(
                "method",
                "method.mode: bottleneck cannot be merged: its network is not linear; use the "
                f"adapter with the base ({_use_adapter(opened)}, or plain PEFT after `import "
                "ftcli.models.bottleneck`), or train lora",
            )
        case PrefixTuning() | PromptTuning():
            raise UsageError(
                "method",
                f"method.mode: {method.mode} cannot be merged: its virtual tokens precede the "
                f"input; use the adapter with the base ({_use_adapter(opened)}, or plain PEFT), or "
                "train lora",
            )
        case _:
            assert_never(method)


def _check_output(folder: Path, opened: OpenRun) -> None:
    """Raise FtcliError for an output that exists, or in the base or the run's own folders."""
    model, run = opened.recipe.model, opened.run
    base = Path(model_source(model.id))
    inside = {"the base": base} if base.is_dir() else {}
    inside |= {"the run's adapter": run.adapter, "the run's checkpoints": run.checkpoints}
    inside |= {"the run's data": run.data}
    target = folder.resolve()
    for whose, path in inside.items():
        if target.is_relative_to(path.resolve()):
            raise _output_taken(f"{folder} is in {whose} ({path}), which a merge never changes")
    if target == run.path.resolve():
        raise _output_taken(f"{folder} is the run itself, which a merge never changes")
    _require_free(folder)


def _require_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _output_taken(f"{folder} exists and is not overwritten")


def _output_taken(what: str) -> FtcliError:
    return FtcliError("output_taken", f"{what}; name another folder with --output")


@contextmanager
def _remove_on_failure(folder: Path, reporter: Reporter) -> Iterator[None]:
    """Remove new parent folders if the block fails or is stopped by a signal."""
    new = [parent for parent in folder.parents if not parent.exists()]
    try:
        with StopSignals(reporter.note).ending_with("stopped; nothing was written"):
            yield
    except BaseException:
        for parent in new:  # the nearest first
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def _merge_where_it_fits(
    opened: OpenRun, folder: Path, options: MergeOptions, reporter: Reporter
) -> dict[str, Any]:
    """On the run's device; on the CPU if a GPU has no room, which a merge needs more of than the
    training did."""
    from ftcli.models.device import free_memory, hardware_for

    on_gpu = hardware_for(opened.recipe).kind == "cuda"
    try:
        return _merge(opened, folder, options, reporter)
    except MachineError as error:
        cause = error.__cause__
        of_ram = isinstance(cause, MemoryError) or "DefaultCPUAllocator" in str(cause)
        if error.code != "memory" or not on_gpu or of_ram:
            raise
    free_memory()
    reporter.note("the GPU has no room for this merge: it begins again on the CPU")
    return _merge(opened.on_cpu(), folder, options, reporter)


def _merge(
    opened: OpenRun, folder: Path, options: MergeOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write the merged model; return its report. Raises ModelError if the merge is not exact."""
    from ftcli.export.merged_model import Merger, dtype_name
    from ftcli.export.parity import parity
    from ftcli.models.device import explain_out_of_memory

    rows = _rows_to_compare(opened)
    original = options.base == "original"
    with explain_out_of_memory("stop what else runs on it"):
        merger = Merger(opened, rows, reporter)
        trained = merger.measure_trained()
        compared_in = dtype_name(merger.compared_in)
        merger.open_base(original=original)
        unrounded = merger.merged(None)
        reference = merger.unmerged() if original else trained
        exact = exactness_of(parity(reference, unrounded), compared_in)
        _require_exact(exact, "base + adapter", opened)
        mismatch = None
        if original:
            found = parity(trained, unrounded)
            mismatch = Mismatch(found.kl, found.top1_agreement)
            reporter.note(mismatch.in_words())
            _require_no_mismatch(mismatch, options, opened)
        chosen = _choose_type(merger, merger.types_to_try(options.dtype), unrounded)
        if overflow := overflow_of(chosen.dtype, merger.largest_activation):
            reporter.note(f"{overflow}; serve the merged model in bf16 or fp32 arithmetic")
        merger.write(chosen.dtype, folder)
        written = merger.read_back(folder)
    read_back = exactness_of(parity(chosen.predictions, written), compared_in)
    _require_exact(read_back, "what was measured before it was written", opened)
    found = parity(trained, written)
    asked = options.dtype != "auto"
    return {
        "verdict": PASS if mismatch is None or mismatch.passes else ALLOWED,
        "kl": found.kl,
        "top1_agreement": found.top1_agreement,
        "max_logit_difference": found.max_logit_difference,
        "tokens": found.tokens,
        "exact": asdict(exact),
        "rounding": chosen.costs[-1].as_json(),
        "other_types": [cost.as_json() for cost in chosen.costs[:-1]],
        "largest_activation": merger.largest_activation,
        "mismatch": asdict(mismatch) if mismatch is not None else None,
        "base": options.base if isinstance(opened.recipe.method, Qlora) else "base",
        "rows": len(rows),
        "dtype": chosen.dtype,
        "dtype_reason": "as asked" if asked else dtype_reason(chosen.costs, chosen.passed_over),
        "bytes": folder_bytes(folder),
    }


@dataclass(frozen=True)
class _StoredType:
    """The type to store, and the model's predictions in it."""

    dtype: str
    predictions: list[Prediction]
    costs: list[RoundingCost]
    """Of each type tried; the last is `dtype`."""
    passed_over: list[str]
    """Why other types were not tried."""


def _choose_type(merger: Merger, types: Sequence[str], unrounded: list[Prediction]) -> _StoredType:
    """The first type without a measurable cost, else the last."""
    from ftcli.export.parity import parity

    costs: list[RoundingCost] = []
    passed_over: list[str] = []
    for stored in types:
        # The base is used in the type of its files even if its activations overflow.
        overflow = overflow_of(stored, merger.largest_activation) if stored != types[0] else None
        if overflow is not None:
            passed_over.append(overflow)
            continue
        last = stored == types[-1]
        try:
            found = unrounded if stored == "float32" else merger.merged(stored)
        except ModelError as error:
            if error.code == "merge_range" and not last:
                passed_over.append(f"a weight is too large for {stored}")
                continue
            raise
        costs.append(cost_of(parity(unrounded, found), stored))
        if last or not costs[-1].is_measurable:
            break
    return _StoredType(stored, found, costs, passed_over)


def _require_exact(found: Exactness, of_what: str, opened: OpenRun) -> None:
    if not found.passes:
        raise ModelError(
            "merge_differs",
            f"{opened.run.path}: not merged, because the merged model is not {of_what}: largest "
            f"logit difference {found.max_logit_difference:.2g} (at most {found.limit:g}), KL "
            f"{found.kl:.2g}; use the adapter with the base: {_use_adapter(opened)}",
        )


def _require_no_mismatch(found: Mismatch, options: MergeOptions, opened: OpenRun) -> None:
    if not found.passes and not (options.allow_mismatch and isfinite(found.kl)):
        raise ModelError(
            "merge_differs",
            f"{opened.run.path}: not merged, because the model on the original base is not the "
            f"one that was trained: KL {found.kl:.2g} (at most {MAX_MISMATCH_KL:g}); take --base "
            "dequantized, or keep this one with --allow-mismatch",
        )


def _rows_to_compare(opened: OpenRun) -> list[dict[str, Any]]:
    """Held-out rows if there are any."""
    from ftcli.data.tokenizing.arrow_rows import read_split

    split = next(s for s in reversed(SPLITS) if opened.prepared.counts(s).rows)
    rows: list[dict[str, Any]] = []
    tokens = 0
    for row in read_split(opened.run.data, split).slice(0, ROWS_COMPARED).to_pylist():
        tokens += sum(label >= 0 for label in row["labels"])
        if rows and tokens > TOKENS_COMPARED:
            break
        rows.append(row)
    return rows
