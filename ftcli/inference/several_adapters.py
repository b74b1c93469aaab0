"""Several runs, and weighted sums of them, that answer by name on one base in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.config.recipe import Full, LoraKeys, Qlora, has_4_bit_base
from ftcli.console import shown_path
from ftcli.errors import ModelError, UsageError, did_you_mean
from ftcli.shell import command
from ftcli.training.opening import OpenRun, open_run
from ftcli.training.plan.plan import Plan

if TYPE_CHECKING:
    from ftcli.inference.generation import Model
    from ftcli.models.prompt_manifest import PromptFormat

# `shop:0.7+sql:0.3`; weights below 0 take an adapter's effect away.
_PART = r"[^:+=]+:-?\d+(?:\.\d+)?"
_SUM = re.compile(rf"{_PART}(?:\+{_PART})*")


@dataclass(frozen=True)
class Member:
    """One adapter that answers by name, prompted as in its own training.

    `parts` are the names and weights of a weighted sum; its run is that of the first part.
    """

    name: str
    opened: OpenRun
    parts: tuple[tuple[str, float], ...] = ()

    def shown_sum(self) -> str:
        """`shop:0.7+sql:0.3`."""
        return "+".join(f"{part}:{weight}" for part, weight in self.parts)


def find_members(
    run: OpenRun, adapters: Sequence[str], overrides: Sequence[str]
) -> tuple[Member, ...]:
    """RUN and what `--adapter` adds, RUN first; raises UsageError and ModelError.

    Each of `adapters` is NAME=RUN or NAME=OTHER:WEIGHT+…. Overrides of `generation` apply to all
    members, the others to RUN alone.
    """
    shared = [override for override in overrides if override.startswith("generation.")]
    members = {run.recipe.name: Member(run.recipe.name, run)}
    for text in adapters:
        name, _, value = text.partition("=")
        if not name or not value:
            raise UsageError(
                "flag", f"--adapter {text}: expected NAME=RUN, or a sum as mix=shop:0.7+sql:0.3"
            )
        if _SUM.fullmatch(value) and not Path(value).exists():
            member = _sum(name, value, members)
        else:
            member = Member(name, open_run(Path(value), shared))
        _require_free_name(text, member, members.get(name))
        members[name] = member
    for member in members.values():
        _require_same_base(run, member)
    return tuple(members.values())


def chosen(members: Sequence[Member], name: str | None) -> Member:
    """The member that `--use` names; RUN's own without it. Raises UsageError."""
    if name is None:
        return members[0]
    for member in members:
        if member.name == name:
            return member
    raise UsageError("flag", f"--use {name}: {unknown_name(members, name)}")


def unknown_name(members: Sequence[Member], name: str) -> str:
    """The error for a name that no member has."""
    names = [member.name for member in members]
    return f"no adapter of this name{did_you_mean(name, names)} (there is {', '.join(names)})"


def _sum(name: str, value: str, members: dict[str, Member]) -> Member:
    parts = []
    for text in value.split("+"):
        part, _, weight = text.partition(":")
        if part not in members:
            wrong = unknown_name(list(members.values()), part)
            raise UsageError("flag", f"--adapter {name}: {part}: {wrong}")
        _require_linear(name, members[part])
        parts.append((part, float(weight)))
    return Member(name, members[parts[0][0]].opened, tuple(parts))


def _require_free_name(text: str, found: Member, known: Member | None) -> None:
    """Raise UsageError where the name means something else; a run may be named twice."""
    if known is None:
        return
    if known.parts or found.parts or known.opened.run.path != found.opened.run.path:
        taken = known.shown_sum() or shown_path(known.opened.run.path)
        raise UsageError(
            "flag", f"--adapter {text}: {known.name} is {taken} already; give another name"
        )


def _require_linear(name: str, member: Member) -> None:
    """Raise ModelError if a weighted sum of updates is not the sum of their effects."""
    method = member.opened.recipe.method
    reasons = {
        f"{method.mode} does not add matrices to weights": not isinstance(method, LoraKeys),
        "it is a sum itself": bool(member.parts),
    }
    if isinstance(method, LoraKeys):
        reasons |= {
            "DoRA scales the weight and the update together": method.dora,
            "it adapts experts (method.experts)": method.experts,
            "it has full modules (method.modules_to_save)": bool(method.modules_to_save),
            "its ranks differ from layer to layer (method.rank_pattern)": bool(method.rank_pattern),
            "it reaches some layers only (method.layers)": method.layers is not None,
        }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise _differ(
            name,
            f"{member.name} cannot be part of it: {reason}",
            f"leave it out, or use it alone (--use {member.name})",
        )


def _require_same_base(run: OpenRun, member: Member) -> None:
    """Raise ModelError if two adapters cannot share one base in memory."""
    other = member.opened
    if other.run.path == run.run.path:
        return
    alone = f"load them one at a time ({command('generate', other.run.path, '…')})"
    for opened in (run, other):
        if isinstance(opened.recipe.method, Full):
            whole = shown_path(opened.run.path)
            reason = f"{whole} is a full model, not an adapter"
            raise _differ(member.name, reason, alone)
    ours, theirs = run.recipe, other.recipe
    if _base(run) != _base(other):
        bases = f"({theirs.model.id} and {ours.model.id})"
        reason = f"it was trained on another base than {ours.name} {bases}"
        raise _differ(member.name, reason, f"train it on the same base, or {alone}")
    expected = _precision(run)
    found = [
        f"{what} {value} ({ours.name}: {expected[what]})"
        for what, value in _precision(other).items()
        if value != expected[what]
    ]
    if found:
        reason = f"it cannot share a base in memory with {ours.name}: {', '.join(found)}"
        raise _differ(member.name, reason, f"train both the same way, or {alone}")


def _differ(name: str, reason: str, advice: str) -> ModelError:
    return ModelError("adapters_differ", f"--adapter {name}: {reason}; {advice}")


def _base(opened: OpenRun) -> str:
    """The fingerprint of the base's weights, or its id if they were not found."""
    return opened.run.base_fingerprint() or opened.recipe.model.id


def _precision(opened: OpenRun) -> dict[str, str]:
    """Properties that adapters on one base share; raises FtcliError."""
    method = opened.recipe.method
    base = "in 4 bits" if has_4_bit_base(method) else "not quantised"
    if isinstance(method, Qlora) and not method.double_quantization:
        base += " with double_quantization false"
    return {
        "its method is": "LoRA" if isinstance(method, LoraKeys) else method.mode,
        "its base is": base,
        "its precision is": Plan.read(opened.run.plan).training.precision,
        "its attention is": Plan.read(opened.run.plan).model.attention,
    }


class AdapterSet:
    """Models that share one base in memory; one of its adapters is active at a time."""

    def __init__(self, name: str, model: Model) -> None:
        self.models = {name: model}
        self.peft_names = {name: "default"}  # PEFT's names may not contain dots

    def use(self, name: str) -> Model:
        """The model that answers as `name`, until the next call."""
        from peft import PeftModel

        model = self.models[name]
        if isinstance(model.network, PeftModel):
            model.network.set_adapter(self.peft_names[name], inference_mode=True)
        return model

    def add(self, name: str, folder: Path, prompt_format: PromptFormat) -> None:
        """Load one more adapter onto the base; raises ModelError."""
        from ftcli.models.adapters import add_adapter

        first, peft_name = self._first(), f"adapter{len(self.models)}"
        add_adapter(first.network, folder, peft_name)
        self._remember(name, peft_name, replace(first, prompt_format=prompt_format))

    def add_name(self, name: str, known: str) -> None:
        """Give an adapter in the set a second name."""
        self._remember(name, self.peft_names[known], self.models[known])

    def add_sum(
        self, name: str, parts: Sequence[tuple[str, float]], prompt_format: PromptFormat
    ) -> None:
        """Add a weighted sum of LoRA adapters in the set.

        `cat` puts their ranks side by side, which is exact; PEFT's default `svd` is not.
        """
        from peft.tuners.lora import LoraLayer

        from ftcli.models.methods import targets_as_named

        first, peft_name = self._first(), f"adapter{len(self.models)}"
        with targets_as_named():
            first.network.add_weighted_adapter(
                [self.peft_names[part] for part, _ in parts],
                [weight for _, weight in parts],
                peft_name,
                combination_type="cat",
            )
        for module in first.network.modules():
            if isinstance(module, LoraLayer) and peft_name in module.scaling:
                module.scaling[peft_name] = 1.0  # the parts are scaled already; rsLoRA scales again
        self._remember(name, peft_name, replace(first, prompt_format=prompt_format))

    def _first(self) -> Model:
        return next(iter(self.models.values()))

    def _remember(self, name: str, peft_name: str, model: Model) -> None:
        self.models[name], self.peft_names[name] = model, peft_name


def batches_by_name(names: Sequence[str], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows in batches of one name each, ordered by their first rows.

    A name's batches are those of a file with its rows alone, so that answers do not depend on the
    other rows.
    """
    waiting: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        waiting.setdefault(name, []).append(index)
    batches = [
        indices[start : start + batch_size]
        for indices in waiting.values()
        for start in range(0, len(indices), batch_size)
    ]
    yield from sorted(batches)
