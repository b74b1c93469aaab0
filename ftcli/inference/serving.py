"""Which adapters answer, by name: several runs on one base, and weighted sums of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.config.recipe import Full, LoraKeys, Qlora, holds_4_bits
from ftcli.console import shown_path
from ftcli.errors import ModelError, UsageError, did_you_mean
from ftcli.shell import command
from ftcli.training.opening import OpenRun, open_run

# `shop:0.7+sql:0.3`; weights below 0 take an adapter's effect away.
_PART = r"[^:+=]+:-?\d+(?:\.\d+)?"
_MIX = re.compile(rf"{_PART}(?:\+{_PART})*")


@dataclass(frozen=True)
class Member:
    """One adapter that answers by name, spoken to as its run was trained.

    `parts` are the names and weights of a weighted sum; its run is that of the first of them.
    """

    name: str
    opened: OpenRun
    parts: tuple[tuple[str, float], ...] = ()

    def shown_sum(self) -> str:
        """`shop:0.7+sql:0.3`."""
        return "+".join(f"{part}:{weight}" for part, weight in self.parts)


def find_members(
    run: OpenRun, asked: Sequence[str], overrides: Sequence[str]
) -> tuple[Member, ...]:
    """RUN and what `--adapter` adds, RUN first; raises UsageError and ModelError.

    Each of `asked` is NAME=RUN or NAME=OTHER:WEIGHT+…. Of RUN's overrides those of `generation`
    reach the others too.
    """
    shared = [override for override in overrides if override.startswith("generation.")]
    members = {run.loaded.recipe.name: Member(run.loaded.recipe.name, run)}
    for text in asked:
        name, _, value = text.partition("=")
        if not name or not value:
            raise UsageError(
                "flag", f"--adapter {text}: expected NAME=RUN, or a sum as mix=shop:0.7+sql:0.3"
            )
        found = _member(name, value, members, shared)
        _require_free_name(text, found, members.get(name))
        members[name] = found
    for member in members.values():
        _require_same_base(run, member)
    return tuple(members.values())


def chosen(members: Sequence[Member], name: str | None) -> Member:
    """The member that `--use` names; without it RUN's own."""
    if name is None:
        return members[0]
    for member in members:
        if member.name == name:
            return member
    raise UsageError("flag", f"--use {name}: {unknown(members, name)}")


def unknown(members: Sequence[Member], name: str) -> str:
    """What to say where no member has the name."""
    names = [member.name for member in members]
    return f"no adapter of this name{did_you_mean(name, names)} (there is {', '.join(names)})"


def _member(name: str, value: str, members: dict[str, Member], overrides: Sequence[str]) -> Member:
    if not _MIX.fullmatch(value) or Path(value).exists():
        return Member(name, open_run(Path(value), overrides))
    parts = tuple(_part(name, part, members) for part in value.split("+"))
    for part, _ in parts:
        _require_linear(name, members[part])
    return Member(name, members[parts[0][0]].opened, parts)


def _part(name: str, text: str, members: dict[str, Member]) -> tuple[str, float]:
    part, _, weight = text.partition(":")
    if part not in members:
        raise UsageError(
            "flag", f"--adapter {name}: {part}: {unknown(list(members.values()), part)}"
        )
    return part, float(weight)


def _require_free_name(text: str, found: Member, known: Member | None) -> None:
    """Raise UsageError where the name stands for something else; a run may be named twice."""
    if known is None:
        return
    if known.parts or found.parts or known.opened.run.path != found.opened.run.path:
        taken = known.shown_sum() or shown_path(known.opened.run.path)
        raise UsageError(
            "flag", f"--adapter {text}: {known.name} is {taken} already; give another name"
        )


def _require_linear(name: str, member: Member) -> None:
    """Raise ModelError where a weighted sum of updates would not be the sum of their effects."""
    method = member.opened.loaded.recipe.method
    reasons = {
        f"{method.mode} is no sum of matrices": not isinstance(method, LoraKeys),
        "it is a sum itself": bool(member.parts),
    }
    if isinstance(method, LoraKeys):
        reasons |= {
            "DoRA scales the weight and the update together": method.dora,
            "it holds whole modules (method.modules_to_save)": bool(method.modules_to_save),
            "its ranks differ from layer to layer (method.rank_pattern)": bool(method.rank_pattern),
            "it reaches some layers only (method.layers)": method.layers is not None,
        }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise _differ(
            name,
            f"{member.name} cannot be part of it: {found[0]}",
            f"leave it out, or ask it alone (--use {member.name})",
        )


def _require_same_base(run: OpenRun, member: Member) -> None:
    """Raise ModelError where two adapters cannot stand on one base in memory."""
    other = member.opened
    if other.run.path == run.run.path:
        return
    alone = f"load them one at a time ({command('generate', other.run.path, '…')})"
    for opened in (run, other):
        if isinstance(opened.loaded.recipe.method, Full):
            whole = shown_path(opened.run.path)
            reason = f"{whole} holds a whole model, and no adapter for another base"
            raise _differ(member.name, reason, alone)
    ours, theirs = run.loaded.recipe, other.loaded.recipe
    if _base(run) != _base(other):
        bases = f"({theirs.model.id} and {ours.model.id})"
        reason = f"it was trained on another base than {ours.name} {bases}"
        raise _differ(member.name, reason, f"train it on that base, or {alone}")
    held = _held(run)
    found = [
        f"{what} {value} ({ours.name}: {held[what]})"
        for what, value in _held(other).items()
        if value != held[what]
    ]
    if found:
        reason = f"it cannot share a base in memory with {ours.name}: {', '.join(found)}"
        raise _differ(member.name, reason, f"train both alike, or {alone}")


def _differ(name: str, reason: str, advice: str) -> ModelError:
    return ModelError("adapters_differ", f"--adapter {name}: {reason}; {advice}")


def _base(opened: OpenRun) -> str:
    """The fingerprint of the base's weights, or its name where they could not be found."""
    return opened.run.base_fingerprint() or opened.loaded.recipe.model.id


def _held(opened: OpenRun) -> dict[str, str]:
    """What has to be alike for adapters that are in memory at once; raises FtcliError."""
    method = opened.loaded.recipe.method
    base = "held in 4 bits" if holds_4_bits(method) else "not quantised"
    if isinstance(method, Qlora) and not method.double_quantization:
        base += " with double_quantization false"
    return {
        "its method is": "LoRA" if isinstance(method, LoraKeys) else method.mode,
        "its base is": base,
        "its precision is": opened.run.planned("precision"),
        "its attention is": opened.run.planned("attention"),
    }
