"""`ftcli prepare`: data in → cleaned, split, tokenised, with every fault named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcli.artifacts import RunFolder, free_folder, runs_at
from ftcli.console import Reporter, shown_path
from ftcli.hub import require_reachable
from ftcli.loading import Loaded, load_recipe
from ftcli.prepared import (
    IDEAL_ROWS,
    TOO_FEW_ROWS,
    Prepared,
    load_prepared,
    problems_file,
    read_problems,
)
from ftcli.shapes import model_source
from ftcli.stages.own_place import require_own_place

Piece = tuple[str, bool]


@dataclass(frozen=True)
class PrepareResult:
    """The preparation, and the previewed rows as (text, trained on) pieces."""

    loaded: Loaded
    prepared: Prepared
    folder: Path
    preview: tuple[tuple[Piece, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """Fields of COMMANDS: names that scripts rely on."""
        p = self.prepared
        return {
            "rows_read": p.rows_read,
            "rows_accepted": p.rows_accepted,
            "rows_rejected": p.rows_rejected,
            "duplicates": p.duplicates,
            "leaks": p.leaks,
            "train_rows": p.train.rows,
            "validation_rows": p.validation.rows,
            "test_rows": p.test.rows,
            "train_tokens": p.train.tokens,
            "trained_tokens": p.train.trained_tokens,
            "answer_tokens_lost": p.answer_tokens_lost,
            "longest_row": asdict(p.longest),
            "fingerprint": p.fingerprint,
            "problems": [asdict(fault) for fault in read_problems(p, self.folder)],
            "folder": str(self.folder),
        }


def prepare_recipe(
    recipe: Path, overrides: Sequence[str], preview_rows: int, reporter: Reporter
) -> PrepareResult:
    """Prepare a recipe's data into its run folder."""
    loaded = load_recipe(recipe, overrides)

    from ftcli.engine.encode import fingerprint, prepare, preview
    from ftcli.engine.model import load_renderer

    with loaded.blame():
        source = model_source(loaded.recipe.model.id, loaded.base)
        require_reachable(source, loaded.recipe.model.revision)
        renderer = load_renderer(loaded, source)
    run = data_folder(loaded.output, fingerprint(loaded, renderer))
    with loaded.blame():
        require_own_place(run, loaded)
    with run.lock(), loaded.blame():
        prepared = prepare(loaded, renderer, run.data, reporter)
        shown = tuple(tuple(pieces) for pieces in preview(run.data, renderer, preview_rows))
    return PrepareResult(loaded, prepared, run.data, shown)


def data_folder(output: Path, fingerprint: str) -> RunFolder:
    """Where to prepare: never over the data of a training that has begun."""
    for run in runs_at(output):
        earlier = load_prepared(run.data)
        if earlier is not None and earlier.fingerprint == fingerprint:
            return run
    return free_folder(output)


def summary(result: PrepareResult) -> list[str]:
    """What a person reads, line by line."""
    p = result.prepared
    held = "".join(
        f", {counts.rows} {name}"
        for name, counts in (("validation", p.validation), ("test", p.test))
        if counts.rows
    )
    lines = [f"{result.loaded.recipe.data.train}: {p.rows_read} rows → {p.train.rows} train{held}"]
    if p.problems:
        named = " · ".join(str(fault) for fault in p.problems[:3])
        others = p.rows_rejected - 3
        more = f" · {others} more: {shown_path(problems_file(result.folder))}" if others > 0 else ""
        lines.append(f"  rejected    {p.rows_rejected}   {named}{more}")
    if p.duplicates:
        lines.append(f"  duplicates  {p.duplicates}   kept the first of each")
    if p.leaks:
        lines.append(
            f"  leaks       {p.leaks}   held-out prompts that stand elsewhere too (allowed)"
        )
    mean, trained = p.train.tokens / p.train.rows, p.train.trained_tokens / p.train.rows
    lines.append(
        f"  tokens      {mean:.0f} a row (longest {p.longest.tokens}, {p.longest.file}:"
        f"{p.longest.line}), {trained:.0f} trained on; {p.answer_tokens_lost} answer tokens lost"
    )
    lines.append(advice(p.rows_accepted))
    return lines


def advice(rows: int) -> str:
    """Whether this many examples are worth a fine-tuning (MISSION: when to fine-tune)."""
    low, high = IDEAL_ROWS
    if rows < TOO_FEW_ROWS:
        return f"{rows} rows are few: under {TOO_FEW_ROWS}, a good prompt usually does better."
    if rows < low:
        return f"{rows} rows are enough for a fixed format; {low}–{high:,} is the good range."
    if rows <= high:
        return f"Good size for fine-tuning ({low}–{high:,} rows is the good range)."
    return f"{rows:,} rows are plenty; beyond {high:,}, cleaner rows help more than further ones."
