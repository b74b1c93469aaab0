"""`ftcli merge RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ftcli.cli import options
from ftcli.console import Terminal, megabytes, result, result_json, shown_path

if TYPE_CHECKING:
    from ftcli.stages.merge import MergeResult


def merge(
    run: options.Run,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to; none: RUN/merged.")
    ] = None,
    onto: Annotated[
        Literal["dequantized", "original"],
        typer.Option(help="QLoRA: the base as it was trained on, or the original one."),
    ] = "dequantized",
    # A plain text: the stage says why a merge is not quantised again.
    dtype: Annotated[
        str, typer.Option(metavar="<auto|bf16|fp16|fp32>", help="auto: as the base's files.")
    ] = "auto",
    accept_drift: Annotated[
        bool,
        typer.Option("--accept-drift", help="Keep a merge onto the original base that differs."),
    ] = False,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make one stand-alone model, and prove it.

    Base and adapter are compared with the merged model as it is read back from disk, on held-out
    rows. Where they differ, nothing is written.
    """
    from ftcli.stages.merge import MergeWish, merge_run

    wish = MergeWish(onto, dtype, accept_drift)
    found = merge_run(run, overrides or (), output=output, wish=wish, reporter=Terminal())
    if json:
        result_json(found.as_json())
    else:
        _show(found)


def _show(found: MergeResult) -> None:
    path, report = shown_path(found.folder), found.report
    if not found.merged:
        result(f"nothing to merge: {path} is a stand-alone model already")
        return
    result(f"merged {path} ({report['dtype']}, {megabytes(report['bytes'])})")
    same, kept = ("the same", "") if report["verdict"] == "pass" else ("not the same", "; accepted")
    result(f"       {same} as base + adapter: {_figures(report)}")
    result(f"       limits: {_limits(report['limits'])}{kept}")


def _figures(report: dict[str, Any]) -> str:
    ties = f" (and {report['near_ties']} near ties)" if report["near_ties"] else ""
    return (
        f"KL {report['kl']:.1e}, top-1 agreement {report['top1_agreement']:.2%}{ties}, largest "
        f"logit difference {report['max_logit_difference']:.1e} ({report['tokens']} tokens of "
        f"{report['rows']} rows, in {report['compared_in']})"
    )


def _limits(limits: dict[str, float]) -> str:
    words = {
        "kl": "KL at most {:g}",
        "agreement_with_ties": "agreement, near ties included, at least {:.0%}",
        "max_logit_difference": "logit difference at most {:g}",
    }
    return ", ".join(words[name].format(value) for name, value in limits.items())
