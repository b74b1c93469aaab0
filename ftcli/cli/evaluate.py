"""`ftcli eval RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftcli.cli import options
from ftcli.console import Terminal, result_json, say


def evaluate(
    run: options.Run,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows to use instead of the held-out ones.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Use the first N rows.")
    ] = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Measure the base too.")] = True,
    baseline_prompt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask the base with this instruction and examples from the training rows too.",
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(metavar="K", min=0, help="Examples for --baseline-prompt (5).")
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.py",
            help="Your own scores: functions (prompt, answer, reference, facts) -> float.",
        ),
    ] = None,
    forgetting: Annotated[
        bool,
        typer.Option("--forgetting/--no-forgetting", help="Measure general ability too."),
    ] = True,
    general_text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plain text to measure forgetting by, not the built-in."),
    ] = None,
    general_instructions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instructions to measure forgetting by."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCORE",
            help="Exit with 1 unless this holds, as format>=0.9 or loss:better; repeatable.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Rows answered at once (64).")
    ] = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Is the tuned model better than the base, and what did it forget?

    Loss, EOS rate, format and text overlap on held-out rows, each with a 95% interval and a verdict
    that holds together with all others (Holm).
    """
    from ftcli.cli.evaluate_view import show
    from ftcli.errors import UsageError
    from ftcli.evaluation.eval_rows import SHOTS, EvalOptions
    from ftcli.evaluation.run_evaluation import evaluate_run
    from ftcli.evaluation.verdicts import failures, requirements
    from ftcli.report.page import report_or_say

    if scores is not None and len(scores) > 1:
        raise UsageError(
            "flag", f"--scores was given {len(scores)} times; put all functions into one file"
        )
    if shots is not None and baseline_prompt is None:
        raise UsageError("flag", "--shots needs --baseline-prompt FILE, the instruction")
    if baseline_prompt is not None and not base:
        raise UsageError("flag", "--baseline-prompt asks the base, which --no-base leaves out")
    if not forgetting and (general_text is not None or general_instructions is not None):
        raise UsageError(
            "flag", "--no-forgetting leaves out what the other flag measures; give one"
        )
    required = requirements(require or ())
    wanted = EvalOptions(
        data=data,
        limit=limit,
        with_base=base,
        baseline_prompt=baseline_prompt,
        shots=SHOTS if shots is None else shots,
        scores=scores[0] if scores else None,
        forgetting=forgetting,
        general_text=general_text,
        general_instructions=general_instructions,
        batch_size=batch_size,
    )
    found = evaluate_run(run, overrides or (), wanted, Terminal())
    report_or_say(found.run, Terminal())
    if json:
        result_json({"run_dir": str(found.run.path), **found.result.as_json()})
    else:
        show(found)
    failed = list(failures(required, found.result))
    for line in failed:
        say(line)
    if failed:
        raise typer.Exit(1)
