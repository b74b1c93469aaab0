"""The first pass over the data: which rows are held out, and which overlap with other splits.

Rows are held out by their content, not by their place in the file. Rows with the same prompt stay
in one split, so that no held-out prompt was seen in training. Groups of one prompt are ordered by a
hash with the seed: the order of the rows does not matter, and new rows leave most old ones in their
split. Only digests are kept, 32 bytes per row.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.config.data import AUTO, AUTO_TEST, ROWS_FOR_A_TEST, Data
from ftcli.console import Meter, Reporter
from ftcli.data.dataset import SPLITS, Assigned, Split
from ftcli.data.example import DIGEST_BYTES, Example, Origin
from ftcli.data.replay import ReplaySource, read_source, replay_file
from ftcli.data.sources import pinned_system, read_examples
from ftcli.errors import DataError
from ftcli.runs.atomic import sha256_file, short_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Codes = NDArray[Any]

ASSIGNED: tuple[Assigned, ...] = (*SPLITS, "duplicate")
# numpy ignores trailing zero bytes, which is safe here: all digests have one length.
DIGEST = f"S{DIGEST_BYTES}"
PAIR = [("whole", DIGEST), ("prompt", DIGEST)]
# Overlapping rows that an error names.
NAMED = 5
ROWS_BETWEEN_REPORTS = 1000


class Digests:
    """Digests of examples and of their prompts, in reading order."""

    def __init__(self) -> None:
        self._pairs = bytearray()

    def __len__(self) -> int:
        return len(self._pairs) // (2 * DIGEST_BYTES)

    def add(self, whole: bytes, prompt: bytes) -> None:
        self._pairs += whole + prompt

    def pairs(self) -> Codes:
        """Records of `whole` and `prompt`, one per example."""
        import numpy

        return numpy.frombuffer(self._pairs, PAIR)


@dataclass(frozen=True)
class Assignment:
    """The split of each example, by its number in reading order."""

    codes: bytes
    """One byte per example: the index of its split in ASSIGNED."""

    def split(self, index: int) -> Assigned:
        """Split of the example with this number, counted from 0."""
        return ASSIGNED[self.codes[index]]

    def rows(self, split: Assigned) -> int:
        """Number of examples in a split."""
        return self.codes.count(ASSIGNED.index(split))


class PromptSet:
    """The prompts of the rows in one split."""

    def __init__(self, digests: Digests, assignment: Assignment, split: Split) -> None:
        import numpy

        wanted = numpy.frombuffer(assignment.codes, numpy.uint8) == ASSIGNED.index(split)
        self._sorted = numpy.unique(digests.pairs()["prompt"][wanted])

    def __contains__(self, digest: bytes) -> bool:
        place = int(self._sorted.searchsorted(digest))
        return place < len(self._sorted) and self._sorted[place] == digest.rstrip(b"\0")


def assign_splits(
    digests: Digests, validation: float, test: float | None, seed: int, deduplicate: bool
) -> Assignment:
    """Splits of the examples.

    `validation` and `test` are ratios of the rows without duplicates (below 1) or numbers of rows;
    `test` None: AUTO_TEST if there are enough rows.
    A split takes whole groups of one prompt that fit into its number of rows, or the smallest group
    if none fits. So no split is empty while there are groups left, and training always keeps one.
    Raises DataError (`data_split`) if the numbers leave nothing to train on.
    """
    import numpy

    pairs = digests.pairs()
    kept = numpy.ones(len(pairs), bool)
    if deduplicate:
        kept[:] = False
        kept[numpy.unique(pairs["whole"], return_index=True)[1]] = True
    codes = numpy.full(len(pairs), ASSIGNED.index("duplicate"), numpy.uint8)
    prompts, group_of_row, sizes = numpy.unique(
        pairs["prompt"][kept], return_inverse=True, return_counts=True
    )
    codes[kept] = _splits_of_groups(prompts, sizes, validation, test, seed)[group_of_row]
    return Assignment(codes.tobytes())


def _splits_of_groups(
    prompts: Codes, sizes: Codes, validation: float, test: float | None, seed: int
) -> Codes:
    """For each prompt the index of its split in ASSIGNED."""
    import numpy

    rows = int(sizes.sum())
    if test is None:
        test = AUTO_TEST if rows >= ROWS_FOR_A_TEST else 0
    validation_rows, test_rows = _rows(validation, rows), _rows(test, rows)
    if rows and validation_rows + test_rows >= rows:
        raise DataError(
            "data_split",
            f"data.validation ({validation}) and data.test ({test}) ask for "
            f"{validation_rows + test_rows:g} of {rows} rows, which leaves none to train on",
        )
    codes = numpy.full(len(prompts), ASSIGNED.index("train"), numpy.uint8)
    if validation_rows or test_rows:
        order = _hash_order(prompts, seed)
        # Test rows are taken first, so that changing `validation` does not change them.
        kept_back = 2 if validation else 1
        codes[_taken(order, sizes, test_rows, len(order) - kept_back)] = ASSIGNED.index("test")
        rest = order[codes[order] == ASSIGNED.index("train")]
        codes[_taken(rest, sizes, validation_rows, len(rest) - 1)] = ASSIGNED.index("validation")
    return codes


def _rows(share_or_count: float, rows: int) -> float:
    return share_or_count * rows if share_or_count < 1 else share_or_count


def _hash_order(prompts: Codes, seed: int) -> Codes:
    """Indices of the prompts, ordered by their hash with the seed."""
    import numpy

    # numpy strips trailing zero bytes.
    whole = (prompt.ljust(DIGEST_BYTES, b"\0") for prompt in prompts)
    hashes = [hashlib.sha256(b"%d:" % seed + prompt).digest() for prompt in whole]
    return numpy.array(hashes, "S32").argsort(kind="stable")


def _taken(order: Codes, sizes: Codes, wanted_rows: float, most_groups: int) -> list[int]:
    """Groups from the front of `order` that fit into `wanted_rows`, or else the smallest one."""
    taken: list[int] = []
    left_rows = round(wanted_rows)
    for group in order:
        if not left_rows or len(taken) >= most_groups:
            break
        if sizes[group] <= left_rows:
            taken.append(int(group))
            left_rows -= int(sizes[group])
    if wanted_rows and not taken and most_groups > 0:
        taken.append(int(order[sizes[order].argmin()]))
    return taken


@dataclass(frozen=True)
class SplitRows:
    """Result of the first pass over the data."""

    data: Data
    """The recipe's, with the system prompt as a template if it names a column."""
    assignments: Mapping[Split, Assignment]
    """For each file the splits of its readable rows; `train` means the file's own split."""
    rows_read: int
    overlap: int
    replay: ReplaySource | None = None

    @property
    def duplicates(self) -> int:
        """Rows left out because an equal one precedes them in the same file."""
        return sum(assignment.rows("duplicate") for assignment in self.assignments.values())

    def split(self, source: Split, index: int) -> Assigned:
        """Split of a file's readable row with this number, counted from 0."""
        found = self.assignments[source].split(index)
        return source if found == "train" else found


def sources_of(data: Data) -> dict[Split, str]:
    """The files named in the recipe: train always, the others unless they are numbers."""
    sources: dict[Split, str] = {"train": data.train}
    if isinstance(data.validation, str):
        sources["validation"] = data.validation
    if isinstance(data.test, str) and data.test != AUTO:
        sources["test"] = data.test
    return sources


def files_of(data: Data) -> dict[str, str]:
    """Every file or data set that rows come from, by its role; includes data.replay."""
    files = {str(source): file for source, file in sources_of(data).items()}
    if data.replay is not None:
        files["replay"] = replay_file(data.replay.source)
    return files


def _sizes(data: Data) -> tuple[float, float | None]:
    """Validation and test sizes taken from the training rows, as arguments of `assign_splits`."""
    validation = 0 if isinstance(data.validation, str) else data.validation
    if data.test == AUTO:
        return validation, 0 if data.validation == 0 else None
    return validation, 0 if isinstance(data.test, str) else data.test


def source_digests(data: Data) -> dict[str, str]:
    """sha256 of each file that rows come from; for a hub data set its name."""
    return {
        role: sha256_file(Path(source)) if Path(source).is_file() else source
        for role, source in files_of(data).items()
    }


def rows_parts(digests: Mapping[str, str]) -> dict[str, str]:
    """8 hex digits for the rows of each source, by their name in messages."""
    return {f"rows of data.{role}": short_digest(mark, 8) for role, mark in digests.items()}


def find_splits(data: Data, seed: int, reporter: Reporter) -> SplitRows:
    """Read all rows; raises DataError as `read_examples` and `assign_splits`, and for overlap.

    Overlap: a row of a validation or test file whose prompt is in another split too, so that it is
    trained on, or both chooses a checkpoint and scores it.
    """
    # Decided by the training rows alone, for all files.
    data = data.model_copy(update={"system": pinned_system(data)})
    of_train = _sizes(data)
    with reporter.meter("read", 0) as meter:
        reader = _Reader(data, Progress(meter))
        for source, file in sources_of(data).items():
            digests = reader.read(source, file)
            validation, test = of_train if source == "train" else (0, 0)
            assignment = assign_splits(digests, validation, test, seed, data.deduplicate)
            reader.files.append(_File(source, digests, assignment))
    if reader.overlap and not data.allow_overlap:
        raise DataError(
            "overlap",
            f"{reader.overlap} held-out rows have a prompt that another split has too: "
            f"{', '.join(reader.named_overlap())}; remove them, or set data.allow_overlap: true",
        )
    replay = None
    if data.replay is not None:
        with reporter.meter("read replay", 0) as meter:
            held_out = reader.held_out_questions()
            replay = read_source(data.replay, seed, held_out, Progress(meter).step)
    assignments = {file.source: file.assignment for file in reader.files}
    return SplitRows(data, assignments, reader.progress.rows, reader.overlap, replay)


@dataclass(frozen=True)
class _File:
    """One file's rows and their splits."""

    source: Split
    digests: Digests
    assignment: Assignment

    def prompts(self) -> Iterator[tuple[Split, PromptSet]]:
        """The prompts of each of its splits."""
        for split in SPLITS:
            if self.assignment.rows(split):
                prompts = PromptSet(self.digests, self.assignment, split)
                yield self.source if split == "train" else split, prompts


@dataclass
class _Reader:
    """Reads the files one by one, and compares each with the ones before it."""

    data: Data
    progress: Progress
    files: list[_File] = field(default_factory=list)
    overlap: int = 0
    named: list[tuple[Origin, Split, bytes]] = field(default_factory=list)
    """The first overlapping rows: row, the other split, digest of the prompt."""
    questions: dict[Split, bytearray] = field(default_factory=dict)
    """Question digests of each file's readable rows, if data.replay is set."""

    def read(self, source: Split, file: str) -> Digests:
        digests = Digests()
        questions = self.questions[source] = bytearray()
        others = [each for found in self.files for each in found.prompts() if each[0] != source]
        for item in read_examples(file, self.data):
            self.progress.step()
            if not isinstance(item, Example):
                continue
            prompt = item.prompt_digest()
            digests.add(item.digest(), prompt)
            if self.data.replay is not None:
                questions += item.question_digest()
            other = next((split for split, prompts in others if prompt in prompts), None)
            if other is not None:
                self.overlap += 1
                if len(self.named) < NAMED:
                    self.named.append((item.origin, other, prompt))
        return digests

    def held_out_questions(self) -> set[bytes]:
        """Question digests of the held-out rows."""
        found = set()
        for file in self.files:
            digests = self.questions[file.source]
            for index, place in enumerate(range(0, len(digests), DIGEST_BYTES)):
                split = file.assignment.split(index)
                if (file.source if split == "train" else split) in ("validation", "test"):
                    found.add(bytes(digests[place : place + DIGEST_BYTES]))
        return found

    def named_overlap(self) -> list[str]:
        """The first overlapping rows, each with its match; reads the files again."""
        wanted = {prompt for _, _, prompt in self.named}
        first: dict[bytes, Origin] = {}
        for file in sources_of(self.data).values():
            for item in read_examples(file, self.data):
                if isinstance(item, Example) and (prompt := item.prompt_digest()) in wanted:
                    first.setdefault(prompt, item.origin)
                if len(first) == len(wanted):
                    break
        return [
            f"{origin} (in {other} too: {first[prompt]})" for origin, other, prompt in self.named
        ]


@dataclass
class Progress:
    """Counts rows, and shows their number and speed every ROWS_BETWEEN_REPORTS rows."""

    meter: Meter
    total: int = 0
    """0: unknown."""
    rows: int = 0
    begin: float = field(default_factory=time.monotonic)

    def step(self) -> None:
        """Count one row."""
        self.rows += 1
        last = self.rows == self.total > ROWS_BETWEEN_REPORTS
        if last or self.rows % ROWS_BETWEEN_REPORTS == 0:
            seconds = max(time.monotonic() - self.begin, 1e-3)
            self.meter.update(self.rows, f"{self.rows / seconds:,.0f} rows/s")
