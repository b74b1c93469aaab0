"""`ftcli report RUN`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.cli import options
from ftcli.console import print_json, print_message, print_result, shown_path, wrapped

if TYPE_CHECKING:
    from ftcli.evaluation.verdicts import RunVerdict
    from ftcli.runs.folder import RunFolder


def report(
    run: options.Run,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the report in a browser.")
    ] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write the report and model card of a run again.

    report.html has verdict, scores, samples, curves, data, memory and recipe in one file that needs
    no network. train and eval write both files automatically.
    """
    from ftcli.report.page import write_report
    from ftcli.training.opening import run_at

    found = write_report(run_at(run))
    verdict = found.verdict(shlex.quote(shown_path(found.run.path)))
    for problem in found.problems:
        print_message(f"warning: {problem}", style="yellow")
    if json:
        print_json(
            {
                "run_dir": str(found.run.path),
                "report": str(found.run.report),
                "card": str(found.run.card),
                "verdict": verdict.kind,
                "headline": verdict.headline,
                "words": verdict.sentence,
                "reasons": list(verdict.reasons),
            }
        )
    else:
        _show(found.run, verdict)
    if open_page:
        _open(found.run.report)


def _show(run: RunFolder, verdict: RunVerdict) -> None:
    words, mark, command = verdict.sentence.partition(": ftcli ")
    print_result(verdict.headline)
    print_result(wrapped(words + (":" if mark else ""), further=""))
    if mark:
        print_result(f"  ftcli {command}")
    for reason in verdict.reasons:
        print_result(wrapped(f"  - {reason}", further="    "))
    print_result(f"report  {shown_path(run.report)}")


def _open(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.as_uri()):
        print_message(f"no browser was found; open {shown_path(page)} yourself")
