"""The file of answers: how far it has come, and what its answers were made with.

Beside `answers.jsonl` stands `answers.jsonl.from.json`: a prompt alone does not tell one run's
answers from another's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ftcli.errors import FtcliError
from ftcli.inference.questions import Asked
from ftcli.inference.serving import Member
from ftcli.runs.atomic import write_json, write_text

# Of each adapter by its name.
Making = Mapping[str, Mapping[str, object]]


def made_with(members: Sequence[Member], seed: int | None) -> Making:
    """What answers depend on, by the names of the adapters."""
    return {member.name: _making(member, seed) for member in members}


def begin(output: Path, made: Making) -> None:
    """Write down what the answers are made with, before the first of them."""
    if output.is_file() or not output.exists():  # nobody goes on with a pipe
        write_json(_beside(output), made)


def require_same_making(output: Path, made: Making) -> None:
    """Raise FtcliError where the output holds answers that were made with something else."""
    if not output.is_file() or not output.stat().st_size:
        return
    before = _read(_beside(output))
    if before is None:
        raise _taken(output, f"no {_beside(output).name} says what these answers were made with")
    if changes := _changes(before, made):
        raise _taken(output, f"its answers were made otherwise: {', '.join(changes)}")


def answered(output: Path, asked: Sequence[Asked]) -> int:
    """How many answers are there already; raises FtcliError when they are to other prompts."""
    if not output.is_file():
        return 0
    text = output.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:  # a line that was cut while it was written
        write_text(output, whole + "\n" if whole else "")
    lines = whole.split("\n") if whole else []
    for number, line in enumerate(lines, start=1):
        if number > len(asked) or not _answers(line, asked[number - 1]):
            raise _taken(output, "this is not the answer to the input's row", number)
    return len(lines)


def _answers(line: str, asked: Asked) -> bool:
    """Whether a line is this row's answer, by this row's adapter where it names one."""
    try:
        answer = json.loads(line)
        return bool(answer["prompt"] == asked.messages[-1].content) and (
            answer.get("adapter", asked.name) == asked.name
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _taken(output: Path, reason: str, line: int | None = None) -> FtcliError:
    message = f"{reason}; take another --output, or delete this file"
    return FtcliError("output_taken", message, file=str(output), line=line)


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.from.json")


def _read(path: Path) -> Making | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(values) for name, values in found.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


def _making(member: Member, seed: int | None) -> dict[str, object]:
    """Trained weights and how answers are drawn; of a sum, whose parts stand beside it, the sum."""
    if member.parts:
        return {"sum": member.shown_sum()}
    weights = json.dumps(member.opened.run.read_manifest().get("weights"), sort_keys=True)
    settings = member.opened.loaded.recipe.generation
    return {
        "weights": hashlib.sha256(weights.encode()).hexdigest()[:16],
        "seed": seed if settings.temperature else None,
        **settings.model_dump(mode="json"),
    }


def _changes(before: Making, now: Making) -> list[str]:
    """What differs, in words."""
    found = [f"without {name}" for name in now if name not in before]
    found += [f"with {name}" for name in before if name not in now]
    for name in filter(before.__contains__, now):
        was, is_now = before[name], now[name]
        found += [
            f"{name} with {key} {_shown(was.get(key))}, now {_shown(is_now.get(key))}"
            for key in {**was, **is_now}
            if was.get(key) != is_now.get(key)
        ]
    return found


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
