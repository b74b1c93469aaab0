"""`ftcli generate RUN [PROMPT]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftcli.cli import options
from ftcli.console import (
    Terminal,
    print_json,
    print_message,
    print_result,
    print_text,
    shown_path,
    wrapped,
)
from ftcli.errors import UsageError

if TYPE_CHECKING:
    from ftcli.inference.generator import GenerateOptions

InputFile = Annotated[
    Path | None,
    typer.Option("--input", metavar="FILE", help="Prompts: jsonl, csv, txt (one per line)."),
]
OutputFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Rows of --input with their answers, jsonl or csv; settings go to FILE.meta.json.",
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME=RUN",
        help="Another adapter on the same base, or a sum: mix=shop:0.7+sql:0.3; repeatable.",
    ),
]


def generate(
    run: options.Run,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt (default: standard input).")
    ] = None,
    input_file: InputFile = None,
    output: OutputFile = None,
    adapters: Adapters = None,
    use: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Adapter that answers (default: RUN's). Rows may name an `adapter`.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="0: greedy.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", min=0.001, max=1, help="Nucleus sampling.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", min=0, help="0: all tokens.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Longest answer.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="X", min=0.001, help="Above 1: less repetition.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")
    ] = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Answer a prompt, or every row of a file.

    Uses the template, system prompt and stop tokens of the training. Several adapters share one
    base in memory.
    """
    from ftcli.inference.generator import GenerateOptions

    flags = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
        "repetition_penalty": repetition_penalty,
    }
    given = [f"generation.{name}={value}" for name, value in flags.items() if value is not None]
    changes = (*(overrides or ()), *given)
    asked = GenerateOptions(run, changes, tuple(adapters or ()), use, seed)
    if input_file is not None:
        _answer_file(asked, prompt, input_file, output, json)
    elif output is not None:
        raise UsageError("flag", "--output needs --input")
    else:
        _answer_one(asked, prompt if prompt is not None else _standard_input(), json)


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise UsageError("usage", "give a PROMPT, --input FILE, or a text on standard input")
    text = sys.stdin.read().strip("\n")
    if not text.strip():
        raise UsageError("usage", "the prompt on standard input is empty")
    return text


def _answer_one(asked: GenerateOptions, prompt: str, json: bool) -> None:
    from ftcli.inference.generator import open_generator

    answer = open_generator(asked).answer(prompt, asked.use, None if json else print_text)
    if json:
        print_json({"prompt": prompt, "answer": answer.text, "stopped": answer.stopped})
    else:
        print_text("\n")


def _answer_file(
    asked: GenerateOptions, prompt: str | None, source: Path, output: Path | None, json: bool
) -> None:
    from ftcli.inference.generator import answer_file

    if prompt is not None or output is None:
        raise UsageError("flag", "--input replaces PROMPT and needs --output FILE")
    found = answer_file(asked, source=source, output=output, reporter=Terminal())
    for reject in found.rejected:
        print_message(f"skipped {reject}")
    if json:
        print_json(found.as_json())
        return
    answers = "1 answer" if found.rows == 1 else f"{found.rows} answers"
    before = f", {found.answered_before} of them from before" if found.answered_before else ""
    print_result(wrapped(f"{answers} in {shown_path(found.output)}{before}"))
