"""`ftcli merge RUN`."""

from __future__ import annotations

import shlex
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ftcli.cli import options
from ftcli.console import Terminal, print_result, shown_path, wrapped
from ftcli.shell import shown_size

if TYPE_CHECKING:
    from ftcli.export.merge_run import MergeResult


def merge(
    run: options.Run,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Output folder (default: RUN/merged).")
    ] = None,
    base: Annotated[
        Literal["dequantized", "original"],
        typer.Option(help="QLoRA: the dequantised base of the training, or the original one."),
    ] = "dequantized",
    # Not a Literal: MergeOptions explains why a merge is not quantised again.
    dtype: Annotated[
        str,
        typer.Option(
            metavar="<auto|bf16|fp16|fp32>",
            help="auto: the smallest type without a significant loss.",
        ),
    ] = "auto",
    allow_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-mismatch", help="Keep a merge into the original base although it differs."
        ),
    ] = False,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Merge the adapter into the base.

    Compares the merged model with base + adapter on held-out rows before its weights are rounded,
    and writes nothing if they differ. Shows the loss due to the stored type.
    """
    from ftcli.export.merge_run import MergeOptions, merge_run

    asked = MergeOptions(base, dtype, allow_mismatch)
    found = merge_run(run, overrides or (), output=output, options=asked, reporter=Terminal())
    options.print_found(found, _show, json=json)


def _show(found: MergeResult) -> None:
    path, report = shown_path(found.folder), found.report
    if found.merged:
        print_result(f"merged {path} ({report['dtype']}, {shown_size(report['bytes'])})")
        for line in _lines(report):
            print_result(wrapped(f"       {line}", " " * 7))
    else:
        print_result(wrapped(f"nothing to merge: {path} is already a stand-alone model"))
    print_result(f"next   vllm serve {shlex.quote(path)}")
    config = loads((found.folder / "config.json").read_text(encoding="utf-8"))
    kind = "AutoModelForMultimodalLM" if "text_config" in config else "AutoModelForCausalLM"
    print_result(f'       or {kind}.from_pretrained("{path}")')


def _lines(report: dict[str, Any]) -> list[str]:
    exact, mismatch, dtype = report["exact"], report["mismatch"], report["dtype"]
    rows = "1 row" if report["rows"] == 1 else f"{report['rows']} rows"
    first = (
        f"exact before rounding (KL {exact['kl']:.1e}, largest logit difference "
        f"{exact['max_logit_difference']:.1e}, in {exact['compared_in']}; {report['tokens']} "
        f"tokens of {rows})"
    )
    if dtype != "float32":
        cost = report["rounding"]
        low, high = cost["loss_difference_interval"]
        first += (
            f"; stored as {dtype}: loss {cost['loss_before']:.4f} → {cost['loss']:.4f} (95% "
            f"interval of the difference {low:+.4f} to {high:+.4f}), KL {cost['kl']:.1e}, same "
            f"first token {cost['top1_agreement']:.1%}"
        )
    lines = [first, f"{dtype}: {report['dtype_reason']}"]
    if mismatch is not None:
        kept = "" if report["verdict"] == "pass" else "; accepted"
        lines.append(
            f"not the model that was trained on the 4-bit base: KL {mismatch['kl']:.2g}{kept}"
        )
    return lines
