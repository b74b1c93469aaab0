"""The report of a run: one page to show to a colleague, and the model card, of the same figures.

`report.html` holds all that it shows: no network, no other file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.console import Reporter
from ftcli.runs.atomic import write_text
from ftcli.runs.folder import RunFolder
from ftcli.shell import command

if TYPE_CHECKING:  # an evaluation, whose words the report shows, ends with a report
    from ftcli.report.figures import ReportFigures


def report_run(path: Path) -> ReportFigures:
    """Write report and model card of the run at `path`, or of the newest finished one of the
    recipe there; raises FtcliError."""
    from ftcli.training.opening import run_at

    return write_report(run_at(path))


def write_report(run: RunFolder) -> ReportFigures:
    """Write report.html and README.md anew from all that is in the folder.

    Raises FtcliError where run.json cannot be read, OSError where they cannot be written.
    """
    from ftcli.report.card import model_card
    from ftcli.report.figures import read_figures
    from ftcli.report.page import page

    figures = read_figures(run)
    write_text(run.report, page(figures))
    write_text(run.card, model_card(figures))
    return figures


def report_or_say(run: RunFolder, reporter: Reporter) -> None:
    """Write report and model card after other work, which no failure of theirs may spoil."""
    try:
        write_report(run)
    except Exception as error:  # noqa: BLE001 - a page is not worth a finished training
        reporter.warn(
            f"the report could not be written ({error!r}); all else is as it should be, and "
            f"{command('report', run.path)} writes it"
        )
