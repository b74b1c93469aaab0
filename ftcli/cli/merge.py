"""`ftcli merge RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    dtype: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"], typer.Option(help="auto: as the base's files.")
    ] = "auto",
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make one stand-alone model, and prove it.

    Fails when the merged model is not the one that was evaluated.
    """
    from ftcli.stages.merge import merge_run

    found = merge_run(
        run, overrides or (), output=output, onto=onto, dtype=dtype, reporter=Terminal()
    )
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
    result(
        f"       the same as base + adapter on {report['tokens']} tokens: KL {report['kl']:.1e}, "
        f"top-1 agreement {report['top1_agreement']:.2%}, "
        f"largest logit difference {report['max_logit_difference']:.1e}"
    )
