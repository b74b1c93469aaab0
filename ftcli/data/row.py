"""A record of the user's files, before anybody asks what its columns mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ftcli.data.example import Origin


@dataclass(frozen=True)
class Row:
    """One record as it stands in the file."""

    origin: Origin
    fields: Mapping[str, object]


@dataclass(frozen=True)
class Reject:
    """A record that is left out, and why."""

    origin: Origin
    reason: str
