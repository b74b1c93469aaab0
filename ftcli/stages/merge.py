"""`ftcli merge`: one stand-alone model, proven equal to base and adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ftcli.artifacts import folder_bytes, whole_folder, write_json
from ftcli.console import Reporter
from ftcli.errors import FtcliError, ModelError, UsageError
from ftcli.prepared import SPLITS
from ftcli.recipe import Full, Qlora
from ftcli.stages.opening import OpenRun, open_run

Onto = Literal["dequantized", "original"]
Dtype = Literal["auto", "bf16", "fp16", "fp32"]
REPORT = "merge_report.json"
ROWS_COMPARED = 16
# Their logits are held in memory: 1,024 × 152,000 fp32 logits are 0.6 GB.
TOKENS_COMPARED = 1024


@dataclass(frozen=True)
class MergeResult:
    """Where the stand-alone model is; `merged` is false where the run is one already."""

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
    onto: Onto,
    dtype: Dtype,
    reporter: Reporter,
) -> MergeResult:
    """Merge a finished LoRA or QLoRA run; raises ModelError when the proof fails."""
    opened = open_run(path, overrides)
    if isinstance(opened.loaded.recipe.method, Full):
        report = {"verdict": "nothing to merge", "bytes": folder_bytes(opened.run.model)}
        return MergeResult(opened.run.model, report, merged=False)
    if onto == "original" and not isinstance(opened.loaded.recipe.method, Qlora):
        raise UsageError("flag", "--onto original: only a QLoRA run has a quantised base beside it")
    folder = (output or opened.run.path / "merged").absolute()
    _require_free(folder)
    report = _merge(opened, folder, onto, dtype, reporter)
    if report["verdict"] != "pass":
        raise ModelError(
            "merge_differs",
            f"{folder}: the merged model is not the one that was evaluated: KL {report['kl']:.2g}, "
            f"top-1 agreement {report['top1_agreement']:.3f}; see {REPORT} there",
        )
    return MergeResult(folder, report, merged=True)


def _require_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FtcliError(
            "output_taken", f"{folder} exists and is not overwritten; name another with --output"
        )


def _merge(
    opened: OpenRun, folder: Path, onto: Onto, dtype: Dtype, reporter: Reporter
) -> dict[str, Any]:
    from ftcli.engine.device import memory_in_words
    from ftcli.engine.merge import fold, logits_of, parity, save_model
    from ftcli.engine.trained import load_to_merge, load_tuned_model, merge_dtype, open_merged

    rows = _rows(opened)
    with memory_in_words("stop what else runs on it"), reporter.meter("merge", 3) as meter:
        # Compared in the type of the merged model: what is proven is the merge, not the rounding.
        wanted = merge_dtype(opened.loaded, dtype)
        reference = load_tuned_model(opened.loaded, opened.run, opened.prepared, wanted)
        expected = list(logits_of(reference, rows))
        contract = reference.contract
        meter.update(1)
        del reference
        adapted = load_to_merge(opened.loaded, opened.run, wanted, original=onto == "original")
        with whole_folder(folder) as temporary:
            save_model(fold(adapted), contract, temporary)
        meter.update(2)
        del adapted
        found = parity(expected, logits_of(open_merged(folder, contract), rows))
        meter.update(3)
    report = {
        **asdict(found),
        "verdict": "pass" if found.passes else "fail",
        "onto": onto if isinstance(opened.loaded.recipe.method, Qlora) else "base",
        "rows": len(rows),
        "dtype": _stored_dtype(folder),
        "bytes": folder_bytes(folder),
    }
    write_json(folder / REPORT, report)
    return report


def _rows(opened: OpenRun) -> list[dict[str, Any]]:
    """Held-out rows where there are any: the adapter matters most on what it was made for."""
    from ftcli.engine.rows import read_split

    splits = [s for s in reversed(SPLITS) if opened.prepared.counts(s).rows]
    table = read_split(opened.run.data, splits[0])
    rows: list[dict[str, Any]] = []
    tokens = 0
    for row in table.slice(0, ROWS_COMPARED).to_pylist():
        tokens += sum(label >= 0 for label in row["labels"])
        if rows and tokens > TOKENS_COMPARED:
            break
        rows.append(row)
    return rows


def _stored_dtype(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype"))
