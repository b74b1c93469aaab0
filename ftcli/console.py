"""The only module that prints: results to stdout, the story to stderr.

Without a terminal there are no colours and no bars, and progress is a plain line now and then.
rich is imported inside: `ftcli --help` does not pay for it.
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
    """One running count that the engine moves and the console shows."""

    def update(self, done: int, figures: str = "") -> None:
        """`done` of the meter's total are finished; `figures` is a short text beside it."""


class Reporter(Protocol):
    """How the engine speaks without printing."""

    def note(self, text: str) -> None:
        """Something unusual that the user should know."""

    def warn(self, text: str) -> None:
        """Something that works but is likely wrong, and how to stop it."""

    def meter(self, label: str, total: int) -> Any:
        """A context manager that gives a Meter; a total of 0 is not known."""


class Terminal:
    """Reporter of the command line."""

    def note(self, text: str) -> None:
        say(text)

    def warn(self, text: str) -> None:
        say(f"warning: {text}", style="yellow")

    @contextmanager
    def meter(self, label: str, total: int) -> Iterator[Meter]:
        if sys.stderr.isatty():
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
            say(f"{self.label} {done}{total}  {figures}".rstrip())


def _bar(*, known: bool) -> Progress:
    """`known`: how many there are in all."""
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


def say(text: str, *, style: str | None = None) -> None:
    """A line of the story, to stderr, without the secrets that a message may have picked up."""
    text = redact(text)
    if style and sys.stderr.isatty():
        _rich(stderr=True).print(text, style=style, markup=False)
    else:
        print(text, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """A line of the result, to stdout."""
    print(text, flush=True)


def stream(text: str) -> None:
    """A piece of generated text, to stdout, at once."""
    print(text, end="", flush=True)


def result_json(value: object) -> None:
    """The one JSON object of `--json`."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # such as bytes of a file's name that are no text
        text = json.dumps(value)
    print(text, flush=True)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    gap: int = 3,
) -> None:
    """Aligned columns without rules, to stdout; those of `numbers` to the right."""
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
    """A sentence on as many lines as the terminal asks for; `further` begins all but the first."""
    import textwrap

    return textwrap.fill(
        sentence,
        width(),
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def colours() -> bool:
    """Whether stdout can show colours."""
    import os

    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def about(seconds: float) -> str:
    """`about 12 min`: of an estimate the seconds after a minute mean nothing."""
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
