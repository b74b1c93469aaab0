"""What all rows of an evaluation tell together, gathered while they go by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ftcli.stages.report.evaluations import SIDES
from ftcli.stages.report.plain import Plain, mapping

# Limits of our own for what is a label; LONGEST_LABEL characters.
MOST_LABELS, LONGEST_LABEL, ROWS_PER_LABEL = 20, 60, 3


class References:
    """Whether all references are a few labels, so that one answer alone is right in each row."""

    def __init__(self) -> None:
        self._rows = 0
        self._labels: set[str] = set()
        self._others = False

    def add(self, reference: str) -> None:
        """One row's."""
        label = reference.strip()
        self._rows += 1
        # A longer text is kept no further: one such is enough.
        if not label or "\n" in label or len(label) > LONGEST_LABEL:
            self._others = True
        elif len(self._labels) <= MOST_LABELS:
            self._labels.add(label)

    @property
    def are_labels(self) -> bool:
        """Short ones of one line, and each of them often."""
        few = 0 < len(self._labels) <= min(MOST_LABELS, self._rows / ROWS_PER_LABEL)
        return few and not self._others


class Equal:
    """Which scores are equal in every row, by digests of what each row adds to them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._digests = {name: hashlib.blake2b() for name in names}
        self._seen: set[str] = set()
        self.whole = 0
        """Rows that have something of the tuned model."""

    def add(self, line: Plain) -> None:
        """One row of the file of answers."""
        sides = mapping(line.get("sides"))
        self.whole += bool(mapping(sides.get("tuned")))
        counts = [mapping(mapping(sides.get(side)).get("counts")) for side in SIDES]
        for name, digest in self._digests.items():
            found = [each.get(name) for each in counts]
            digest.update(repr(found).encode("utf-8", "replace"))
            if any(each is not None for each in found):
                self._seen.add(name)

    def twins(self) -> dict[str, str]:
        """Score → an earlier one that is equal in every row, as far as the rows tell."""
        first: dict[bytes, str] = {}
        found = {}
        for name, digest in self._digests.items():
            if name in self._seen and first.setdefault(digest.digest(), name) != name:
                found[name] = first[digest.digest()]
        return found
