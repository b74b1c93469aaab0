"""report.html and the model card, written from a run's folder.

The page is a template filled with the run's figures. Style, script and pictures are inside it: it
needs no network and no other file.
What a model wrote stays text: every value is escaped, and the page's own policy allows only the
one style sheet and the one script whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.console import Reporter, counted
from ftcli.evaluation.verdicts import summary_of
from ftcli.redact import redactor
from ftcli.report import charts, samples, tables
from ftcli.report.card import model_card
from ftcli.report.figures import ReportFigures, read_figures
from ftcli.runs.atomic import write_text
from ftcli.runs.folder import RunFolder
from ftcli.runs.results import Finding
from ftcli.shell import command, shown_size

if TYPE_CHECKING:
    from jinja2 import Template

FOLDER = Path(__file__).parent
# Code points that HTML does not allow ("preprocessing the input stream"): control characters are
# shown as their pictures, surrogates and non-characters as U+FFFD.
CLEAR = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
NO_CHARACTERS = (range(0x80, 0xA0), range(0xD800, 0xE000), range(0xFDD0, 0xFDF0), (0xFFFE, 0xFFFF))
CLEAR |= {code: 0xFFFD for codes in NO_CHARACTERS for code in codes}


def report_or_warn(run: RunFolder, reporter: Reporter) -> None:
    """Write report and model card after other work; a failure is a warning."""
    try:
        write_report(run)
    except Exception as error:  # noqa: BLE001 - a page is not worth a finished training
        reporter.warn(
            f"the report could not be written ({error!r}); everything else is complete, and "
            f"{command('report', run.path)} writes it"
        )


def write_report(run: RunFolder) -> ReportFigures:
    """Write report.html and README.md again from the files of the folder.

    Raises FtcliError if run.json cannot be read, OSError if they cannot be written.
    """
    figures = read_figures(run)
    write_text(run.report, page(figures))
    write_text(run.card, model_card(figures))
    return figures


def page(figures: ReportFigures) -> str:
    """HTML; the same figures give the same text."""
    from markupsafe import Markup

    redact = redactor()

    def pieces(text: str, findings: Sequence[Finding] = ()) -> list[samples.Piece]:
        """A text with its findings marked, unless a secret before them is redacted."""
        shown = redact(text)
        return samples.marked(shown, findings if shown == text else ())

    style, script = (
        (FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    return _template().render(
        redact=redact,
        figures=figures,
        verdict=figures.verdict(figures.command_name),
        style=Markup(style),
        script=Markup(script),
        pieces=pieces,
    )


@cache
def _template() -> Template:
    """The page's template, with the functions it calls."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
    from markupsafe import Markup

    @pass_context
    def finalized(context: Mapping[str, Any], value: Any) -> Any:
        """Redact every value that is not our own markup."""
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return context["redact"](value).translate(CLEAR) if is_text else value

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "hash_of": _hash_of,
        "picture": _picture,
        "samples": samples,
        "tables": tables,
        "summary_of": summary_of,
        "shown_size": shown_size,
        "counted": counted,
    }
    return environment.get_template("page.html.jinja")


def _hash_of(text: str) -> str:
    """The hash with which a Content-Security-Policy allows inline text."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _picture(chart: charts.Chart) -> str:
    """A chart as the data URL of an image."""
    svg = charts.draw(chart).encode("utf-8")
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
