"""The first pass over the data: which row is on which side, and which rows leak."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ftcli.config.recipe import Data
from ftcli.console import Meter, Reporter
from ftcli.data.example import DIGEST_BYTES, Example, Origin
from ftcli.data.reading import pinned_system, read_examples
from ftcli.data.replay import Drawing, look_through, replay_file
from ftcli.data.split import Digests, Prompts, Side, Split, plan_split
from ftcli.errors import DataError
from ftcli.runs.atomic import sha256_file, short_digest

Source = Literal["train", "validation", "test"]
SOURCES: tuple[Source, ...] = ("train", "validation", "test")
# How many leaks are named in an error.
NAMED = 5
ROWS_BETWEEN_REPORTS = 1000


@dataclass(frozen=True)
class Sides:
    """What is known of the rows once all of them have been read."""

    data: Data
    """The recipe's, with the system prompt as a template where it names a column."""
    splits: Mapping[Source, Split]
    """For each file the sides of its readable rows; `train` in another file is its own side."""
    rows_read: int
    leaks: int
    replay: Drawing | None = None

    @property
    def duplicates(self) -> int:
        """Rows that are left out because an equal one comes before them in the same file."""
        return sum(split.rows("duplicate") for split in self.splits.values())

    def side(self, source: Source, index: int) -> Side:
        """Side of a file's readable row with this number, counted from 0."""
        side = self.splits[source].side(index)
        return source if side == "train" else side


def sources_of(data: Data) -> dict[Source, str]:
    """The files named in the recipe: train always, the others where they are no share."""
    sources: dict[Source, str] = {"train": data.train}
    if isinstance(data.validation, str):
        sources["validation"] = data.validation
    if isinstance(data.test, str):
        sources["test"] = data.test
    return sources


def files_of(data: Data) -> dict[str, str]:
    """Every file or data set that rows come from, by what it is for: also the replayed ones."""
    files = {str(source): file for source, file in sources_of(data).items()}
    if data.replay is not None:
        files["replay"] = replay_file(data.replay.source)
    return files


def source_digests(data: Data, base: Path) -> dict[str, str]:
    """sha256 of each file that rows come from; of a hub data set its name."""
    return {
        role: sha256_file(base / source) if (base / source).is_file() else source
        for role, source in files_of(data).items()
    }


def rows_parts(digests: Mapping[str, str]) -> dict[str, str]:
    """8 hex digits for the rows of each source, by their name in the words of a message."""
    return {f"rows of data.{role}": short_digest(mark, 8) for role, mark in digests.items()}


def find_sides(data: Data, base: Path, seed: int, reporter: Reporter) -> Sides:
    """Read all rows; raises DataError as `read_examples` and `plan_split`, and for leaks.

    A leak is a row of a validation or test file whose prompt is on another side too: trained on,
    or held out both to choose a checkpoint and to judge it.
    """
    # Settled by the training rows, so that no other file gives the recipe's words another meaning.
    data = data.model_copy(update={"system": pinned_system(data, base)})
    with reporter.meter("read", 0) as meter:
        reading = _Reading(data, base, Progress(meter))
        for source, file in sources_of(data).items():
            shares = (_share(data.validation), _share(data.test)) if source == "train" else (0, 0)
            digests = reading.read(source, file)
            split = plan_split(digests, *shares, seed=seed, deduplicate=data.deduplicate)
            reading.found.append(_Found(source, digests, split))
    if reading.leaks and not data.allow_leaks:
        raise DataError(
            "leak",
            f"{reading.leaks} held-out rows have a prompt that is on another side too: "
            f"{', '.join(reading.named_leaks())}; take them out, or set data.allow_leaks: true",
        )
    splits = {found.source: found.split for found in reading.found}
    replay = None
    if data.replay is not None:
        with reporter.meter("read replay", 0) as meter:
            step = Progress(meter).step
            held_out = reading.held_out_questions()
            replay = look_through(data.replay, base, seed, held_out, step)
    return Sides(data, splits, reading.progress.rows, reading.leaks, replay)


def _share(held_out: float | int | str) -> float | int:
    return 0 if isinstance(held_out, str) else held_out


@dataclass(frozen=True)
class _Found:
    """One file's rows."""

    source: Source
    digests: Digests
    split: Split

    def prompts(self) -> Iterator[tuple[Side, Prompts]]:
        """The prompts on each of its sides."""
        for side in SOURCES:
            if self.split.rows(side):
                whose = self.source if side == "train" else side
                yield whose, Prompts(self.digests, self.split, side)


@dataclass
class _Reading:
    """Reads one file after the other, and holds each against those before it."""

    data: Data
    base: Path
    progress: Progress
    found: list[_Found] = field(default_factory=list)
    leaks: int = 0
    named: list[tuple[Origin, Side, bytes]] = field(default_factory=list)
    """The first leaks: row, the other side, digest of the prompt."""
    questions: dict[Source, bytearray] = field(default_factory=dict)
    """Question digests of each file's readable rows, where rows are replayed beside them."""

    def read(self, source: Source, file: str) -> Digests:
        digests = Digests()
        questions = self.questions[source] = bytearray()
        others = [each for found in self.found for each in found.prompts() if each[0] != source]
        for item in read_examples(file, self.data, self.base):
            self.progress.step()
            if isinstance(item, Example):
                prompt = item.prompt_digest()
                digests.add(item.digest(), prompt)
                if self.data.replay is not None:
                    questions += item.question_digest()
                self._look_for_leak(item.origin, prompt, others)
        return digests

    def held_out_questions(self) -> set[bytes]:
        """Question digests of the rows that are held out of training."""
        return {
            bytes(self.questions[found.source][place : place + DIGEST_BYTES])
            for found in self.found
            for index, place in enumerate(range(0, len(self.questions[found.source]), DIGEST_BYTES))
            if _is_held_out(found, index)
        }

    def _look_for_leak(
        self, origin: Origin, prompt: bytes, others: Sequence[tuple[Side, Prompts]]
    ) -> None:
        side = next((side for side, prompts in others if prompt in prompts), None)
        if side is not None:
            self.leaks += 1
            if len(self.named) < NAMED:
                self.named.append((origin, side, prompt))

    def named_leaks(self) -> list[str]:
        """The first leaks, each with the row that asks the same; reads the files once more."""
        wanted = {prompt for _, _, prompt in self.named}
        first: dict[bytes, Origin] = {}
        for file in sources_of(self.data).values():
            for item in read_examples(file, self.data, self.base):
                if isinstance(item, Example) and (prompt := item.prompt_digest()) in wanted:
                    first.setdefault(prompt, item.origin)
                if len(first) == len(wanted):
                    break
        return [f"{origin} (in {side} too: {first[prompt]})" for origin, side, prompt in self.named]


def _is_held_out(found: _Found, index: int) -> bool:
    side = found.split.side(index)
    return side in ("validation", "test") or (side == "train" and found.source != "train")


@dataclass
class Progress:
    """Rows that are done, and how fast they go, told to a meter now and then."""

    meter: Meter
    total: int = 0
    """0: not known."""
    rows: int = 0
    begin: float = field(default_factory=time.monotonic)

    def step(self) -> None:
        """One row more."""
        self.rows += 1
        last = self.rows == self.total > ROWS_BETWEEN_REPORTS
        if last or self.rows % ROWS_BETWEEN_REPORTS == 0:
            seconds = max(time.monotonic() - self.begin, 1e-3)
            self.meter.update(self.rows, f"{self.rows / seconds:,.0f} rows/s")
