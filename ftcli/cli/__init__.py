"""The command line: a file per command, and the one place that catches errors.

A command imports what it needs when it is called, so that `ftcli --help` is fast.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ParamSpec

import typer

from ftcli import __version__
from ftcli.cli import compare, estimate_vram, evaluate, generate, merge, prepare, report, schema
from ftcli.cli.train.command import train
from ftcli.console import print_json, print_message, print_result
from ftcli.errors import FtcliError, MachineError
from ftcli.kernels.cpu import end_process, start_gc_tuning
from ftcli.redact import redact
from ftcli.runs.atomic import is_full
from ftcli.shell import shown_source

P = ParamSpec("P")

app = typer.Typer(
    name="ftcli",
    help="From a general open model to a specialist, on one consumer GPU, from one recipe.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_result(__version__)
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


def _not_on_windows(command: Callable[P, None]) -> Callable[P, None]:
    """Make the command an error on Windows, before it does anything."""

    @functools.wraps(command)
    def checked(*arguments: P.args, **flags: P.kwargs) -> None:
        if sys.platform == "win32":
            raise MachineError(
                "windows",
                "this command needs Linux; on Windows, run it in WSL2 (wsl --install)",
            )
        command(*arguments, **flags)

    return checked


def _examples(*lines: str) -> str:
    """An epilog of a command's help; click keeps the lines after the backspace as they are."""
    return "\n".join(("\b", "Examples:", *(f"  ftcli {line}" for line in lines)))


app.command(
    "prepare",
    epilog=_examples("prepare shop.yaml --preview 3", "prepare shop.yaml --try-prompting"),
)(_not_on_windows(prepare.prepare))
app.command(
    "estimate-vram",
    epilog=_examples(
        "estimate-vram --model qwen2.5-7b --mode qlora --gpu 4090",
        "estimate-vram shop.yaml --fit 24GB --write fits.yaml",
    ),
)(estimate_vram.estimate_vram)
app.command(
    "train",
    epilog=_examples(
        "train shop.yaml --dry-run", "train shop.yaml --set training.epochs=2 --fresh"
    ),
)(_not_on_windows(train))
app.command(
    "eval",
    epilog=_examples(
        "eval runs/shop --require 'format>=0.9'", "eval runs/shop --baseline-prompt prompt.txt"
    ),
)(_not_on_windows(evaluate.evaluate))
app.command("report", epilog=_examples("report runs/shop --open"))(report.report)
app.command(
    "compare",
    epilog=_examples(
        "compare shop.yaml --methods lora,qlora --steps 100",
        "compare shop.yaml --methods lora --learning-rates 1e-4,3e-4",
    ),
)(_not_on_windows(compare.compare))
app.command(
    "merge", epilog=_examples("merge runs/shop", "merge runs/shop --dtype bf16 --output shop-model")
)(_not_on_windows(merge.merge))
app.command(
    "generate",
    epilog=_examples(
        'generate runs/shop "Write a listing: steel kettle, 1.5 litres"',
        "generate runs/shop --input prompts.csv --output answers.csv",
    ),
)(_not_on_windows(generate.generate))
app.command("schema", epilog=_examples("schema > recipe.schema.json", "schema method --text"))(
    schema.schema
)

# typer vendors click; the base of all usage errors is reached through its public BadParameter.
ShellError: Any = typer.BadParameter.__mro__[2]

EXIT_MACHINE = 1
EXIT_USAGE = 2
EXIT_BUG = 70  # sysexits.h, EX_SOFTWARE
EXIT_INTERRUPTED = 130


def main() -> None:
    """Entry point of the `ftcli` command."""
    start_gc_tuning()
    end_process(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        # typer turns Ctrl-C into this code without a message.
        code = _command()(args=list(arguments), standalone_mode=False) or 0
        if code == EXIT_INTERRUPTED:
            return _failed("interrupted", "interrupted", EXIT_INTERRUPTED, as_json)
        return code
    except FtcliError as error:
        if debug:
            print_message(traceback.format_exc(), verbatim=True)
        return _failed(error.code, str(error), error.exit_code, as_json, error.file, error.line)
    except ShellError as error:
        message = error.format_message()  # names the option, which str(error) does not
        hint = "" if message.startswith("Usage") else f"\nTry: {_command_of(error)} --help"
        return _failed("usage", f"{message}{hint}", EXIT_USAGE, as_json)
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the one place that catches everything
        return _unforeseen(error, as_json)


@functools.cache
def _command() -> Any:
    """The command that typer makes of the functions above: a program may run many."""
    return typer.main.get_command(app)


def _command_of(error: Any) -> str:
    """`ftcli eval` if the error is in that command's flags, else `ftcli`."""
    context = error.ctx
    return f"ftcli {context.info_name}" if context is not None and context.parent else "ftcli"


def _unforeseen(error: Exception, as_json: bool) -> int:
    """Report errors of the machine in words, and all others as bugs."""
    if isinstance(error, typer.Abort):
        return _failed("interrupted", "interrupted", EXIT_INTERRUPTED, as_json)
    if is_full(error):
        return _failed("disk_full", _full(error), EXIT_MACHINE, as_json)
    if isinstance(error, OSError):
        message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        return _failed("disk", message, EXIT_MACHINE, as_json)
    print_message("".join(traceback.format_exception(error)), verbatim=True)
    message = (
        f"this is a bug of ftcli ({error!r}): report it to whoever gave you ftcli, with the lines "
        "above, the recipe and the output of `pip list`"
    )
    return _failed("bug", message, EXIT_BUG, as_json)


def _full(error: Exception) -> str:
    """Name the full disk if the error has a file name; most writes have none."""
    named = getattr(error, "filename", None)
    which = f"the disk of {named}" if named else "the disk of the output"
    return f"{which} is full: make room, or name a folder on another disk in output"


def _failed(
    code: str,
    message: str,
    exit_code: int,
    as_json: bool,
    file: str | None = None,
    line: int | None = None,
) -> int:
    print_message(message)
    if as_json:
        place = {"file": file and redact(shown_source(file)), "line": line}
        print_json({"error": {"code": code, "message": redact(message), **place}})
    return exit_code
