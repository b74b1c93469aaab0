"""`ftcli eval RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.cli import options
from ftcli.console import Terminal, print_json, print_message
from ftcli.errors import UsageError

if TYPE_CHECKING:
    from ftcli.evaluation.eval_rows import EvalOptions


Data = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Rows to use instead of the held-out ones.")
]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="Use the first N rows.")]
Base = Annotated[bool, typer.Option("--base/--no-base", help="Measure the base too.")]
BaselinePrompt = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Score the base with this instruction and examples from the training rows too.",
    ),
]
Shots = Annotated[
    int | None, typer.Option(metavar="K", min=0, help="Examples for --baseline-prompt (5).")
]
Scores = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE.py",
        help="Your own scores: functions (prompt, answer, reference, facts) -> float.",
    ),
]
Forgetting = Annotated[
    bool, typer.Option("--forgetting/--no-forgetting", help="Measure general ability too.")
]
GeneralText = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Plain text to measure forgetting with, instead of the built-in one."
    ),
]
GeneralInstructions = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Instructions to measure forgetting with.")
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SCORE",
        help="Exit with 1 if this fails, e.g. format>=0.9 or loss:better; repeatable.",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Rows answered in one batch (64).")
]


def evaluate(
    run: options.Run,
    data: Data = None,
    limit: Limit = None,
    base: Base = True,
    baseline_prompt: BaselinePrompt = None,
    shots: Shots = None,
    scores: Scores = None,
    forgetting: Forgetting = True,
    general_text: GeneralText = None,
    general_instructions: GeneralInstructions = None,
    require: Require = None,
    batch_size: BatchSize = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare the tuned model with its base.

    Loss, EOS rate, format, text overlap and general ability on held-out rows, each with a 95%
    interval. The verdicts are corrected for the number of scores (Holm).
    """
    from ftcli.cli.evaluate_view import show
    from ftcli.evaluation.eval_rows import SHOTS, EvalOptions
    from ftcli.evaluation.run_evaluation import evaluate_run
    from ftcli.evaluation.verdicts import failures, requirements
    from ftcli.report.page import report_or_warn

    required = requirements(require or ())
    asked = EvalOptions(
        data=data,
        limit=limit,
        with_base=base,
        baseline_prompt=baseline_prompt,
        shots=SHOTS if shots is None else shots,
        scores=_one_file(scores),
        forgetting=forgetting,
        general_text=general_text,
        general_instructions=general_instructions,
        batch_size=batch_size,
    )
    _require_consistent(asked, shots)
    found = evaluate_run(run, overrides or (), asked, Terminal())
    report_or_warn(found.run, Terminal())
    if json:
        print_json({"run_dir": str(found.run.path), **found.result.as_json()})
    else:
        show(found)
    failed = list(failures(required, found.result))
    for line in failed:
        print_message(line)
    if failed:
        raise typer.Exit(1)


def _one_file(scores: list[Path] | None) -> Path | None:
    if scores is not None and len(scores) > 1:
        raise UsageError(
            "flag", f"--scores was given {len(scores)} times; put all functions into one file"
        )
    return scores[0] if scores else None


def _require_consistent(asked: EvalOptions, shots: int | None) -> None:
    """Raise UsageError for flags that contradict."""
    if shots is not None and asked.baseline_prompt is None:
        raise UsageError("flag", "--shots needs --baseline-prompt FILE, the instruction")
    if asked.baseline_prompt is not None and not asked.with_base:
        raise UsageError("flag", "--baseline-prompt scores the base, which --no-base leaves out")
    if not asked.forgetting and (asked.general_text or asked.general_instructions):
        raise UsageError(
            "flag", "--no-forgetting leaves out what the other flag measures; give one"
        )
