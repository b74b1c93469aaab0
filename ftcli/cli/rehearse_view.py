"""What `ftcli train --rehearse` prints behind its legs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ftcli.console import duration, result, shown_path

if TYPE_CHECKING:
    from ftcli.stages.rehearse import Rehearsal


def show_rehearsal(found: Rehearsal) -> None:
    """The verdict, what the real training will be, and its command."""
    loaded = found.loaded
    flags = "".join(f" --set {shlex.quote(override)}" for override in loaded.overrides)
    result(f"rehearsal passed in {duration(found.seconds)}: nothing failed on the way")
    result(f"plan   {found.plan.headline()}")
    result(f"data   {shown_path(found.data)}")
    result(f"next   ftcli train {loaded.shown_path()}{flags}")
