"""The report of a run: one page to show to a colleague, made from what is in the run's folder.

`report.html` holds all that it shows: no network, no other file. The model card
(`ftcli.stages.card`) is made from the same figures.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.artifacts import RunFolder
from ftcli.commands import command, shown_path
from ftcli.console import Reporter
from ftcli.disk import write_text
from ftcli.stages.report.evaluations import Evaluation, evaluations_in
from ftcli.stages.report.figures import ReportFigures, read_figures
from ftcli.stages.report.plain import Reading
from ftcli.stages.report.verdict import Verdict


@dataclass(frozen=True)
class ReportResult:
    """What `ftcli report` has written."""

    run: RunFolder
    figures: ReportFigures

    @property
    def verdict(self) -> Verdict:
        """That of the page, whose commands start where `runs/` lies, with those of the user."""
        return self.figures.verdict_named(shlex.quote(shown_path(self.run.path)))

    def as_json(self) -> dict[str, Any]:
        verdict = self.verdict
        return {
            "run_dir": str(self.run.path),
            "report": str(self.run.report),
            "card": str(self.run.card),
            "verdict": verdict.kind,
            "headline": verdict.headline,
            "words": verdict.words,
            "reasons": list(verdict.reasons),
        }


def write_report(run: RunFolder) -> Path:
    """Write report.html anew from all that is in the folder, and return its path.

    Raises FtcliError where run.json cannot be read, OSError where the page cannot be written.
    """
    return _write(run, read_figures(run))


def report_run(path: Path) -> ReportResult:
    """Write report and model card of the run at `path`; raises FtcliError."""
    from ftcli.stages.card import model_card
    from ftcli.stages.opening import run_at

    run = run_at(path)
    figures = read_figures(run)
    _write(run, figures)
    write_text(run.card, model_card(figures))
    return ReportResult(run, figures)


def evaluation_shown(run: RunFolder) -> Evaluation | None:
    """The one that the page shows row by row; none where there is no page."""
    found = evaluations_in(run.evaluations, Reading(run.path)) if run.report.is_file() else ()
    return found[0] if found else None


def report_or_say(run: RunFolder, reporter: Reporter) -> None:
    """Write report and model card behind other work, which no failure of theirs may spoil."""
    try:
        report_run(run.path)
    except Exception as error:  # noqa: BLE001 - a page is not worth a finished training
        reporter.warn(
            f"the report could not be written ({error!r}); all else is as it should be, and "
            f"{command('report', run.path)} writes it"
        )


def _write(run: RunFolder, figures: ReportFigures) -> Path:
    from ftcli.stages.report.page import page

    write_text(run.report, page(figures))
    return run.report
