"""The only module that prints: results to stdout, messages to stderr.

Without a terminal there are no colours and no bars, and progress is a plain line every 10 seconds.
rich is imported in functions: `ftcli --help` does not pay for it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ftcli.redact import redact
from ftcli.shell import shown_path as shown_path

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_PLAIN_LINES = 10.0


class Meter(Protocol):
    """A progress count that the engine updates and the console shows."""

    def update(self, done: int, figures: str = "") -> None:
        """`done` of the meter's total are finished; `figures` is a short text next to it."""


class Reporter(Protocol):
    """How the engine reports without printing."""

    def note(self, text: str) -> None:
        """Report something unusual that the user should know."""

    def warn(self, text: str) -> None:
        """Report something that is likely wrong, and how to stop it."""

    def meter(self, label: str, total: int) -> Any:
        """A context manager that gives a Meter; a total of 0 means unknown."""


class Terminal:
    """Reporter of the command line."""

    def note(self, text: str) -> None:
        print_message(text)

    def warn(self, text: str) -> None:
        print_message(f"warning: {text}", style="yellow")

    @contextmanager
    def meter(self, label: str, total: int) -> Iterator[Meter]:
        if on_terminal():
            with _bar(known=total > 0) as progress:
                yield _Bar(progress, progress.add_task(label, total=total or None, figures=""))
        else:
            yield _PlainLines(label, total)


@dataclass
class _Bar:
    progress: Progress
    task: TaskID

    def update(self, done: int, figures: str = "") -> None:
        self.progress.update(self.task, completed=done, figures=figures)


@dataclass
class _PlainLines:
    label: str
    total: int
    last: float = field(default_factory=time.monotonic)

    def update(self, done: int, figures: str = "") -> None:
        now = time.monotonic()
        finished = 0 < self.total <= done
        if finished or now - self.last >= SECONDS_BETWEEN_PLAIN_LINES:
            self.last = now
            total = f"/{self.total}" if self.total else ""
            print_message(f"{self.label} {done}{total}  {figures}".rstrip())


def _bar(*, known: bool) -> Progress:
    """A bar with percentage and time left if the total is `known`."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    columns: list[ProgressColumn] = [
        TextColumn("{task.description} {task.completed}" + ("/{task.total}" if known else "")),
        BarColumn(bar_width=None),
        TextColumn(("{task.percentage:.0f}%  " if known else "") + "{task.fields[figures]}"),
    ]
    if known:
        columns += [TimeRemainingColumn(compact=True), TextColumn("left")]
    return Progress(*columns, console=_rich(stderr=True), transient=True, expand=True)


def _rich(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_message(text: str, *, style: str | None = None, verbatim: bool = False) -> None:
    """Print lines to stderr, without the secrets that a message may contain.

    On a terminal they are wrapped between words, unless `verbatim`.
    """
    text = redact(text)
    if on_terminal() and not verbatim:
        text = "\n".join(wrapped(line) for line in text.split("\n"))
    if on_terminal() and style:
        _rich(stderr=True).print(text, style=style, markup=False)
    else:
        print(text, file=sys.stderr, flush=True)


def print_result(text: str) -> None:
    """Print a line of the result to stdout."""
    print(text, flush=True)


def print_text(text: str) -> None:
    """Print a piece of generated text to stdout immediately."""
    print(text, end="", flush=True)


def print_json(value: object) -> None:
    """Print the one JSON object of `--json`."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a file name may have bytes that are not UTF-8
        text = json.dumps(value)
    print(text, flush=True)


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    gap: int = 3,
) -> None:
    """Print aligned columns without rules to stdout; the columns of `numbers` to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), collapse_padding=True)
    for index, header in enumerate(headers):
        found.add_column(
            Text(header), justify="right" if index in numbers else "left", no_wrap=True
        )
    for row in rows:
        found.add_row(*map(Text, row))
    console = Console(width=10_000, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(found)
    for line in captured.get().splitlines():
        print(f"  {line}".rstrip(), flush=True)


def width() -> int:
    """Columns of the terminal; 80 without one."""
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


def wrapped(sentence: str, further: str = "  ") -> str:
    """A sentence wrapped to the terminal's width; `further` begins all lines but the first.

    A command at its end, after a colon, is kept on one line, to be pasted.
    """
    import textwrap

    if len(sentence) <= width() or sentence.lstrip().startswith("ftcli "):
        return sentence
    words, colon, command = sentence.partition(": ftcli ")
    filled = textwrap.fill(
        f"{words}:" if colon else sentence,
        width(),
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{filled}\n  ftcli {command}" if colon else filled


def on_terminal() -> bool:
    """Whether messages are read on a terminal."""
    return sys.stderr.isatty()


def colours() -> bool:
    """Whether stdout can show colours."""
    import os

    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def about(seconds: float) -> str:
    """`about 12 min`: an estimate of minutes is not exact to seconds."""
    minutes = round(seconds / 60)
    return f"about {minutes} min" if 1 <= minutes < 60 else f"about {duration(seconds)}"


def duration(seconds: float) -> str:
    """`6 min 12 s`, `42 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
