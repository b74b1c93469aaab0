"""The page: a template filled with a run's figures, with its style and script inside.

Whatever a model has written stays text: every value is escaped, and the page's own policy lets
nothing run or load but the one style sheet and the one script whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.secrets import masker
from ftcli.stages.report.evaluations import SIDE_NAMES
from ftcli.stages.report.figures import ReportFigures
from ftcli.stages.report.samples import TAGS

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent
# What a page must not hold as it is (HTML, "preprocessing the input stream"): control characters
# are shown as their pictures, halves of characters and non-characters as U+FFFD.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
NO_CHARACTER = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
DELETE, PICTURES, PICTURE_OF_DELETE = 0x7F, 0x2400, "\u2421"


def page(figures: ReportFigures) -> str:
    """HTML; the same figures give the same text."""
    from markupsafe import Markup

    from ftcli.stages.report.pictures import draw

    style, script = (Markup(_read(name)) for name in ("page.css", "page.js"))
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            run=figures,
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
            pictures={chart.key: Markup(draw(chart)) for chart in figures.charts},
            side_names=SIDE_NAMES,
            tags=TAGS,
        )
    )


def clear(text: str) -> str:
    """A text without what a page cannot hold."""
    return NO_CHARACTER.sub("\ufffd", CONTROL.sub(_picture, text))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return PICTURE_OF_DELETE if code == DELETE else chr(PICTURES + code)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    mask = masker()

    def finalized(value: Any) -> Any:
        """Every value on its way into the page, without secrets; markup is our own."""
        if isinstance(value, str) and not isinstance(value, Markup):
            return clear(mask(value))
        return value

    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what may stand inline."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
