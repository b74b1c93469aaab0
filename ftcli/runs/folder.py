"""The run folder: names, lock, and finding a run.

runs/<name>/
  recipe.yaml     the resolved recipe        run.json     state, versions, hashes, hardware
  plan.json       decisions with reasons     data/        tokenised splits
  prompt_manifest.json   base, template, prompts    metrics.jsonl
  checkpoints/    step-N, resumable          speed.jsonl  tokens and seconds of each step
  adapter/ or model/                         README.md    model card
  eval/           scores and answers         report.html  a page with all of it
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftcli.errors import FtcliError
from ftcli.runs.atomic import folder_bytes, write_text
from ftcli.runs.locks import exclusive_lock
from ftcli.runs.training_records import RunRecord
from ftcli.shell import command

State = Literal["training", "stopped", "finished"]
LOCK = ".lock"
LAST_EVALUATION = "last"


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run folder; a property neither reads nor writes a file, except `state`."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def prompt_manifest(self) -> Path:
        return self.path / "prompt_manifest.json"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def speed(self) -> Path:
        return self.path / "speed.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def card(self) -> Path:
        return self.path / "README.md"

    @property
    def manifest(self) -> Path:
        return self.path / "run.json"

    @property
    def evaluated_last(self) -> Path:
        """File with the key of the newest evaluation."""
        return self.evaluations / LAST_EVALUATION

    @property
    def evaluations(self) -> Path:
        return self.path / "eval"

    def evaluation(self, key: str) -> Path:
        """Scores of one evaluation."""
        return self.evaluations / f"{key}.json"

    def answers(self, key: str) -> Path:
        """Its rows with all answers, JSON lines."""
        return self.evaluations / "answers" / f"{key}.jsonl"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def steps_saved(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending."""
        names = (path.name for path in self.checkpoints.glob("step-*"))
        return sorted(int(n.removeprefix("step-")) for n in names if n[5:].isdigit())

    def checkpoint_bytes(self) -> int:
        """Bytes of all checkpoints on disk."""
        return folder_bytes(self.checkpoints)

    def read_manifest(self) -> dict[str, Any]:
        """run.json; empty before a training has begun."""
        if not self.manifest.is_file():
            return {}
        try:
            return dict(json.loads(self.manifest.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise FtcliError(
                "run_broken",
                f"is not a JSON object ({error}); the run cannot be read",
                file=str(self.manifest),
            ) from error

    def record(self) -> RunRecord:
        """run.json; raises FtcliError (`run_broken`) if it is damaged or missing."""
        return RunRecord.read(self.manifest)

    @property
    def state(self) -> State | None:
        """In run.json; None before a training has begun."""
        state: State | None = self.read_manifest().get("state")
        return state

    def trained(self) -> Path:
        """Folder of the trained weights: `adapter/` or `model/`."""
        return self.adapter if self.adapter.is_dir() else self.model

    def update_manifest(self, **changes: object) -> dict[str, Any]:
        """Write changed entries of run.json; the others stay.

        Raises FtcliError (`run_broken`) for entries that a RunRecord does not have.
        """
        record = RunRecord.of(self.read_manifest() | changes, self.manifest)
        write_text(self.manifest, f"{record.model_dump_json(indent=2, exclude_unset=True)}\n")
        return record.model_dump(mode="json", exclude_unset=True)

    def require_prompt_manifest(self) -> Path:
        """prompt_manifest.json; raises FtcliError (`no_prompt_manifest`)."""
        if not self.prompt_manifest.is_file():
            raise FtcliError(
                "no_prompt_manifest",
                f"{self.path} has no {self.prompt_manifest.name}, so its base and prompts are "
                f"unknown; train it again: {command('train', self.path, '--fresh')}",
            )
        return self.prompt_manifest

    def base_fingerprint(self) -> str | None:
        """Of the weights that the run started from; None if they were not found then.

        Raises FtcliError.
        """
        base: str | None = self._prompt_manifest()["base"]
        return base

    def base_has_towers(self) -> bool:
        """Whether the base's text model is one part of it; raises FtcliError."""
        return "text_config" in (self._prompt_manifest().get("config") or {})

    def _prompt_manifest(self) -> dict[str, Any]:
        file = self.require_prompt_manifest()
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return {"base": found["base"], **found}
        except (ValueError, KeyError, TypeError) as error:
            raise unreadable_prompt_manifest(file, error) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclusive lock, which ends with its process.

        Raises MachineError (`run_locked`) naming the holder, without waiting for it.
        """
        held, advice = False, "give another folder with --set output=…"
        try:
            with exclusive_lock(self.path / LOCK, self.path, "run_locked", advice):
                held = True
                yield
        finally:
            if held:
                self._delete_if_unused()

    def _delete_if_unused(self) -> None:
        """Delete the lock and its folder if nothing was written."""
        if [file.name for file in self.path.iterdir()] == [LOCK]:
            (self.path / LOCK).unlink()
            self.path.rmdir()


def unreadable_prompt_manifest(file: Path, error: Exception) -> FtcliError:
    """The error for a prompt_manifest.json that a training did not write."""
    return FtcliError(
        "prompt_manifest",
        f"cannot be read ({error!r}); restore the file as the training wrote it, or train again: "
        f"{command('train', file.parent, '--fresh')}",
        file=str(file),
    )


def find_run(path: Path) -> RunFolder | None:
    """The run folder at `path`, if it is one."""
    return RunFolder(path.absolute()) if os.path.isfile(path / "run.json") else None


def run_above(path: Path) -> RunFolder | None:
    """The run that a folder is a part of, as `adapter/` or `checkpoints/step-N/`."""
    parents = Path(os.path.abspath(path)).parents[:2]
    return next((run for parent in parents if (run := find_run(parent)) is not None), None)


def newest_finished(output: Path, begin: str) -> RunFolder:
    """The newest finished run among `output`, `output-2`, …

    Raises FtcliError with the command that makes one: `begin`, or the one that resumes the newest.
    """
    runs = runs_at(output)
    finished = [run for run in runs if run.state == "finished"]
    if finished:
        return finished[-1]
    if not runs:
        raise FtcliError("run_missing", f"{output} has not been trained; first: {begin}")
    raise FtcliError(
        "run_missing",
        f"{output}: its run is not finished ({runs[-1].state}); resume: "
        f"{command('train', runs[-1].path)}",
    )


def numbered(output: Path) -> Iterator[Path]:
    """`output`, `output-2`, `output-3` … up to the first that does not exist."""
    yield output
    number = 2
    while (path := output.with_name(f"{output.name}-{number}")).exists():
        yield path
        number += 1


def runs_at(output: Path) -> list[RunFolder]:
    """The trainings at `output`, `output-2` …, oldest first."""
    return [RunFolder(path) for path in numbered(output) if (path / "run.json").is_file()]


def free_folder(output: Path) -> RunFolder:
    """The first of `output`, `output-2` … in which no training has begun."""
    for path in numbered(output):
        if not (path / "run.json").is_file():
            return RunFolder(path)
    return RunFolder(output.with_name(f"{output.name}-{len(list(numbered(output))) + 1}"))
