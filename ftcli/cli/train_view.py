"""What `ftcli train` prints: the result, and the plan of a dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcli.console import about, duration, gigabytes, megabytes, result, shown_path, wrapped
from ftcli.shell import command
from ftcli.training.plan.plan import short_key

if TYPE_CHECKING:
    from ftcli.cli.train import DryRun, Trained


def show_result(found: Trained) -> None:
    report, path = found.report, shown_path(found.run.path)
    if found.again is not None:
        result(f"{path} is finished; nothing is left to do (again, beside it: {found.again})")
    loss, stops = "not measured", ""
    if report["eval_loss"] is not None:
        first = report["first_eval_loss"]
        before = f"{first:.2f} → " if first is not None else ""
        loss = f"{before}{report['eval_loss']:.2f} (best: step {report['best_step']})"
    if report.get("stop_rate") is not None:
        rows = report["stop_rate_rows"]
        stops = f" · stops {round(report['stop_rate'] * rows)} of {rows}"
    result(
        f"done   {duration(report['seconds'])} · validation loss {loss}{stops} · "
        f"peak {gigabytes(report['peak_memory_bytes'])} · {megabytes(report['saved_bytes'])}"
    )
    result(f"       {path}")
    result(f"next   {command('eval', found.run.path)}")


def show_plan(plan: DryRun) -> None:
    found = plan.plan
    result(f"plan for {found.hardware.name} ({gigabytes(found.hardware.free_bytes)} free)")
    values = {key: _in_words(key, value) for key, value, _ in found.decisions()}
    name_width = max(len(short_key(key)) for key in values)
    value_width = max(map(len, values.values()))
    indent = " " * (name_width + value_width + 6)
    for key, value in values.items():
        start = f"  {short_key(key):<{name_width}}  {value:<{value_width}}  "
        result(wrapped(start + found.reasons[key], indent))
        result(wrapped(f"{indent}→ {plan.library_names[key]}", f"{indent}  "))
    for key, value in plan.recipe.method:
        if key in plan.library_names:
            result(f"  method.{key} {value} → {plan.library_names[key]}")
    result(f"  {found.step_in_words()}")
    items = dict(found.estimate.breakdown)
    context = items.pop("context")
    parts = " · ".join(f"{name} {gigabytes(size)}" for name, size in items.items() if size >= 5e7)
    on_card = f"; CUDA context {gigabytes(context)}" if found.hardware.kind == "cuda" else ""
    peak = gigabytes(found.estimate.peak_bytes)
    result(wrapped(f"memory {peak} at the peak: {parts}{on_card}"))
    unknown = "not measured yet: no run of this recipe has finished here"
    result(f"time   {about(plan.seconds) if plan.seconds is not None else unknown}")
    if plan.price is not None:
        for sentence in plan.price.sentences():
            result(wrapped(sentence))


def _in_words(key: str, value: object) -> str:
    """What was decided, as it is shown."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "training.packing":
        return f"{value:,} tokens"
    return str(value)
