"""What `ftcli train --rehearse` prints behind its legs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcli.console import duration, result
from ftcli.shell import command, set_flags, shown_path

if TYPE_CHECKING:
    from ftcli.cli.smoke.smoke import Rehearsal


def show_rehearsal(found: Rehearsal) -> None:
    """The verdict, what the real training will be, and its command."""
    loaded = found.loaded
    result(f"rehearsal passed in {duration(found.seconds)}: nothing failed on the way")
    result(f"plan   {found.plan.headline()}")
    result(f"data   {shown_path(found.data)}")
    result(f"next   {command('train', loaded.path, *set_flags(loaded.overrides))}")
