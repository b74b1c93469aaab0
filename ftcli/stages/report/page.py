"""The page: a template filled with a run's figures, with its style, script and pictures inside.

Whatever a model wrote stays text: every value is escaped, and the page's own policy lets nothing
run or load but the one style sheet and the one script whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftcli.results import Finding
from ftcli.secrets import masker
from ftcli.stages.evaluate.wording import summary_of
from ftcli.stages.report import charts, tables
from ftcli.stages.report.figures import ReportFigures
from ftcli.stages.report.samples import LONGEST_TEXT, MOST_FINDINGS, TAGS, Piece, marked

FOLDER = Path(__file__).parent
# What a page must not hold as it is (HTML, "preprocessing the input stream"): control characters
# are shown as their pictures, halves of characters and non-characters as U+FFFD.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
NO_CHARACTER = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def page(figures: ReportFigures) -> str:
    """HTML; the same figures give the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    mask = masker()

    def pieces(text: str, findings: Sequence[Finding] = ()) -> list[Piece]:
        """A text with what was found in it marked: where a secret is masked, places are others."""
        hidden = mask(text)
        return marked(hidden, findings if hidden == text else ())

    def finalized(value: Any) -> Any:
        """Every value on its way into the page, without secrets; markup is our own."""
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return clear(mask(value)) if is_text else value

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (
        Markup((FOLDER / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")
    )
    return environment.get_template("page.html.jinja").render(
        figures=figures,
        verdict=figures.verdict(figures.command_name),
        style=style,
        script=script,
        hash_of=_hash,
        picture=_picture,
        palettes=charts,
        tables=tables,
        tags=TAGS,
        longest=LONGEST_TEXT,
        most_findings=MOST_FINDINGS,
        pieces=pieces,
        summary_of=summary_of,
    )


def clear(text: str) -> str:
    """A text without what a page cannot hold."""
    return NO_CHARACTER.sub("\ufffd", CONTROL.sub(_control_picture, text))


def _control_picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return "\u2421" if code == 0x7F else chr(0x2400 + code)


def _picture(chart: charts.Chart, palette: charts.Palette) -> str:
    """A chart as an address of an image."""
    svg = charts.draw(chart, palette).encode("utf-8")
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what may stand inline."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
