"""`ftcli train RECIPE`: flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.cli import options
from ftcli.console import (
    Terminal,
    about,
    duration,
    on_terminal,
    print_message,
    print_result,
    shown_path,
    width,
    wrapped,
)
from ftcli.errors import UsageError
from ftcli.shell import command, gib, shown_size, shown_source

if TYPE_CHECKING:
    from ftcli.cli.train.train_recipe import DryRun, Trained


# Columns of the narrowest column of reasons.
MIN_REASON = 20

Resume = Annotated[bool, typer.Option("--resume", help="Resume an unfinished run (the default).")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over in a new run folder.")]
From = Annotated[
    Path | None,
    typer.Option("--from", metavar="RUN", help="Start from another run's adapter or model."),
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan with its reasons, and stop.")
]
SmokeTestFlag = Annotated[
    bool,
    typer.Option(
        "--smoke-test", help="Run every stage with a tiny random model, to find errors early."
    ),
]


def train(
    recipe: options.Recipe,
    resume: Resume = False,
    fresh: Fresh = False,
    from_run: From = None,
    dry_run: DryRunFlag = False,
    smoke_test: SmokeTestFlag = False,
    cost_per_hour: options.CostPerHour = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train, or resume a stopped run.

    Prepares the data if needed, plans, trains, and keeps the best and the last weights. Ctrl-C
    stops the run after its step; the same command resumes it.
    """
    from ftcli.cli.train.train_recipe import plan_recipe, train_recipe

    if resume and (fresh or from_run):
        raise UsageError("flag", "--resume goes with neither --fresh nor --from")
    if cost_per_hour is not None and not dry_run:
        raise UsageError("flag", "--cost-per-hour goes with --dry-run")
    changes, reporter = tuple(overrides or ()), Terminal()
    if smoke_test:
        _require_smoke_testable(resume=resume, fresh=fresh, from_run=from_run, dry_run=dry_run)
    if not json and on_terminal():
        print_message(_reading(recipe, changes))
    if smoke_test:
        from ftcli.cli.train.smoke_test import run_smoke_test, show_smoke_test

        passed = run_smoke_test(recipe, changes, reporter)
        options.print_found(passed, show_smoke_test, json=json)
    elif dry_run:
        plan = plan_recipe(
            recipe,
            changes,
            init_from=from_run,
            reporter=reporter,
            fresh=fresh,
            cost_per_hour=cost_per_hour,
        )
        options.print_found(plan, _show_plan, json=json)
    else:
        found = train_recipe(recipe, changes, fresh=fresh, init_from=from_run, reporter=reporter)
        options.print_found(found, _show_result, json=json)


def _reading(recipe: Path, overrides: tuple[str, ...]) -> str:
    """The first line: what is trained. Libraries take seconds to import after it."""
    from ftcli.config.loader import load_recipe

    found = load_recipe(recipe, overrides).recipe
    model, data = shown_source(found.model.id), shown_source(found.data.train)
    return f"reading {shown_path(recipe)}: {found.method.mode} on {model}, data {data}"


def _require_smoke_testable(
    *, resume: bool, fresh: bool, from_run: Path | None, dry_run: bool
) -> None:
    """Raise UsageError for flags that --smoke-test does not take."""
    if dry_run:
        raise UsageError("flag", "--smoke-test shows the plan too: leave --dry-run out")
    if resume or fresh:
        flag = "--resume" if resume else "--fresh"
        raise UsageError("flag", f"--smoke-test touches no run: leave {flag} out")
    if from_run is not None:
        raise UsageError(
            "flag",
            f"--smoke-test trains a tiny random model, which the weights of {from_run} do not fit: "
            "leave --from out; for a full training's model: --set model.id=RUN/model",
        )


def _show_result(found: Trained) -> None:
    report, path = found.report, shown_path(found.run.path)
    if found.again is not None:
        again = f"{path} is already finished; to train it again in a new folder: {found.again}"
        print_result(wrapped(again))
    loss, finished = "not measured", ""
    if report["eval_loss"] is not None:
        first = report["first_eval_loss"]
        before = f"{first:.2f} → " if first is not None else ""
        loss = f"{before}{report['eval_loss']:.2f} (best: step {report['best_step']})"
    if report.get("stop_rate") is not None:
        rows = report["stop_rate_rows"]
        finished = f" · finished (EOS) {round(report['stop_rate'] * rows)} of {rows}"
    size = shown_size(report["saved_bytes"])
    if report.get("checkpoint_bytes"):
        size += f", and {shown_size(report['checkpoint_bytes'])} of checkpoints"
    done = (
        f"done   {duration(report['seconds'])} · validation loss {loss}{finished} · "
        f"peak {gib(report['peak_memory_bytes'])} · {size}"
    )
    print_result(wrapped(done, " " * 7))
    print_result(f"       {path}")
    print_result(f"next   {command('eval', found.run.path)}")


def _show_plan(plan: DryRun) -> None:
    from ftcli.training.plan.plan import short_key

    found = plan.plan
    free = gib(found.hardware.free_bytes)
    print_result(wrapped(f"plan for {found.hardware.title} ({free} free)"))
    values = {key: _in_words(key, value) for key, value, _ in found.decisions()}
    name_width = max(len(short_key(key)) for key in values)
    value_width = max(map(len, values.values()))
    reasons_at = name_width + value_width + 6
    indent = " " * (reasons_at if reasons_at < width() - MIN_REASON else 4)
    for key, value in values.items():
        start = f"  {short_key(key):<{name_width}}  {value:<{value_width}}  "
        print_result(wrapped(start + found.reasons[key], indent))
        print_result(wrapped(f"{indent}→ {plan.library_names[key]}", f"{indent}  "))
    for key, value in plan.recipe.method:
        if key in plan.library_names:
            print_result(wrapped(f"  method.{key} {value} → {plan.library_names[key]}", "    "))
    print_result(wrapped(f"  {found.step_text()}", "    "))
    items = dict(found.estimate.breakdown)
    context = items.pop("context")
    peak = found.estimate.peak_bytes
    parts = " · ".join(f"{n} {shown_size(size)}" for n, size in items.items() if 100 * size >= peak)
    on_gpu = f"; CUDA context {shown_size(context)}" if found.hardware.kind == "cuda" else ""
    print_result(wrapped(f"memory {shown_size(peak)} at the peak: {parts}{on_gpu}"))
    unknown = "not known: no run of this recipe has finished on this machine"
    if plan.time is not None:
        for line in plan.time.lines():
            print_result(wrapped(line, " " * 7))
    else:
        time = about(plan.seconds) if plan.seconds is not None else unknown
        print_result(wrapped(f"time   {time}", " " * 7))
    if plan.cost is not None:
        for sentence in plan.cost.sentences():
            print_result(wrapped(sentence))


def _in_words(key: str, value: object) -> str:
    """A decided value as it is printed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "training.packing":
        return f"{value:,} tokens"
    return str(value)
