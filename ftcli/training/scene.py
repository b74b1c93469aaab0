"""What a training starts from: the recipe with its model, its machine and its ancestor."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.config.chat_template import find_template, names_file
from ftcli.config.loader import Loaded, differences, load_recipe, resolved
from ftcli.config.recipe import Full, Recipe
from ftcli.data.prepared import PART_NAMES, load_prepared
from ftcli.data.sides import files_of, rows_parts, source_digests
from ftcli.errors import FtcliError, MachineError, UsageError
from ftcli.hub import require_reachable
from ftcli.memory.hardware import Hardware
from ftcli.memory.shapes import Shape, find_shape, model_source
from ftcli.models.fingerprint import base_fingerprint
from ftcli.runs.atomic import short_digest
from ftcli.runs.folder import RunFolder
from ftcli.shell import command, set_flags, shown_path
from ftcli.training.opening import FREE_KEYS, OpenRun
from ftcli.training.plan.plan import require_machine, require_possible
from ftcli.training.scored_files import require_scored_files

if TYPE_CHECKING:
    from ftcli.data.tokenizing.rendering import Renderer

# Keys that say how long a run is.
LENGTH_KEYS = ("training.epochs:", "training.max_steps:")


@dataclass(frozen=True)
class Scene:
    """A recipe with its model and machine, before any row is tokenised."""

    loaded: Loaded
    source: str
    shape: Shape
    renderer: Renderer
    hardware: Hardware
    parent: OpenRun | None
    fingerprint: str


def look(loaded: Loaded, parent: OpenRun | None) -> Scene:
    """Find model, tokenizer and machine; from a full run, its model takes the base's place."""
    _require_trackers(loaded.recipe)
    require_scored_files(loaded)
    if parent is not None and isinstance(parent.loaded.recipe.method, Full):
        loaded = _with_model(loaded, str(parent.run.model))
    else:
        _require_same_adapter(loaded, parent)
    model = loaded.recipe.model
    source = model_source(model.id, loaded.base)
    shape = find_shape(model.id, loaded.base, model.revision)
    require_possible(loaded.recipe, shape)
    require_reachable(source, model.revision)

    from ftcli.data.tokenizing.encode import fingerprint
    from ftcli.models.device import hardware_for, use_whole_machine
    from ftcli.models.load import load_renderer

    hardware = hardware_for(loaded)
    require_machine(loaded.recipe, shape, hardware)
    use_whole_machine(hardware)
    renderer = load_renderer(loaded, source)
    mark = fingerprint(loaded, renderer)
    return Scene(loaded, source, shape, renderer, hardware, parent, mark)


def _with_model(loaded: Loaded, folder: str) -> Loaded:
    model = loaded.recipe.model.model_copy(update={"id": folder, "revision": None})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"model": model}))


def _require_same_adapter(loaded: Loaded, parent: OpenRun | None) -> None:
    """An adapter can go on only as the same kind of adapter on the same base."""
    if parent is None:
        return
    old, new = parent.loaded.recipe, resolved(loaded)
    if isinstance(new.method, Full):
        raise UsageError(
            "from_run",
            f"--from {parent.run.path}: it holds an adapter, and method.mode is full; "
            "merge it first and name the merged folder in model.id",
        )
    free = {"method.dropout", "method.init_text"}  # neither changes what an adapter is
    changed = [
        difference
        for difference in differences(old, new, free, loaded.base)
        if difference.startswith(("method.", "model.id:"))
    ]
    if changed:
        raise UsageError(
            "from_run",
            f"--from {parent.run.path}: its adapter does not suit the recipe: {'; '.join(changed)}",
        )


def require_unchanged(run: RunFolder, scene: Scene, beside: str) -> list[str]:
    """A stopped run goes on only with what it began with.

    Returns what has changed and may, as `key: old → new`. Raises FtcliError (`recipe_changed`) with
    all that may not, and the command that trains it beside the run.
    """
    manifest = run.read_manifest()
    if not manifest:
        return []
    began, now = load_recipe(run.recipe).recipe, resolved(scene.loaded)
    base = scene.loaded.base
    changed = differences(began, now, FREE_KEYS, base)
    if manifest["data"] != scene.fingerprint and not changed:
        changed = _other_parts(run, scene) or [f"data: {manifest['data']} → {scene.fingerprint}"]
    if changed:
        what = "was begun with another recipe"
        ways = f"change it back to go on, or start over beside it:\n  {beside}"
        raise _changed(run, what, changed, ways + _for_more(run, scene.loaded, changed))
    return differences(began, now, frozenset(), base)


def require_as_finished(run: RunFolder, loaded: Loaded, beside: str) -> None:
    """A finished run answers only for what it was trained with.

    Looks at nothing that needs a tokenizer, and passes over data and a base that are gone. Raises
    FtcliError (`recipe_changed`) as `require_unchanged`.
    """
    began, free = load_recipe(run.recipe).recipe, FREE_KEYS
    parent: str | None = run.read_manifest().get("parent")
    if parent is not None and began.model.id == str(RunFolder(Path(parent)).model):
        free = free | {"model.id", "model.revision"}  # its parent's model took the base's place
    keys = differences(began, resolved(loaded), free, loaded.base)
    changed = keys or [*_changed_sources(run, began), *_changed_base(run, began)]
    if changed:
        shown = command("train", run.path)
        back = f"to see its result:\n  {shown}" if keys else "change it back to see its result"
        ways = f"{back}\nto train this recipe beside it:\n  {beside}"
        raise _changed(run, "is finished, and was trained with another recipe", changed, ways)


def _changed_sources(run: RunFolder, began: Recipe) -> Iterator[str]:
    """Files of rows, and of a template, that are there with other contents."""
    data, here = began.data, run.path
    prepared = load_prepared(run.data)
    before = prepared.parts if prepared is not None else {}
    sources = files_of(data)
    digests = source_digests(data, here)
    now = rows_parts({role: mark for role, mark in digests.items() if mark != sources[role]})
    if data.template is not None and names_file(data.template, here):
        text = find_template(data.template, here).text
        now[PART_NAMES["template"]] = short_digest(text, 8)
    for name, mark in now.items():
        if before.get(name, mark) != mark:
            yield f"{name}: {before[name]} → {mark}"


def _changed_base(run: RunFolder, began: Recipe) -> Iterator[str]:
    """The weights of the base, where they are on this machine."""
    before, model = run.base_fingerprint(), began.model
    try:
        now = base_fingerprint(model_source(model.id, run.path), model.revision)
    except FtcliError:
        return  # what is gone or damaged cannot be compared
    if before is not None and now is not None and now != before:
        yield f"weights of the base: {before[:8]} → {now[:8]}"


def other_machine(run: RunFolder, scene: Scene) -> str | None:
    """What is said where a run goes on elsewhere than it began; None where it does not."""
    began, now = run.read_manifest().get("hardware"), scene.hardware
    if began is None or began["name"] == now.name:
        return None
    return (
        f"the run began on {began['name']} and goes on on {now.title}: at another speed, and not "
        "to the same last digits; Ctrl-C stops it"
    )


def _other_parts(run: RunFolder, scene: Scene) -> list[str]:
    """Which of the things that shape the tokens are others, as `template: digest → digest`."""
    from ftcli.data.tokenizing.encode import fingerprint_parts

    prepared = load_prepared(run.data)
    before = prepared.parts if prepared is not None else {}
    now = fingerprint_parts(scene.loaded, scene.renderer)
    return [
        f"{name}: {before[name]} → {now.get(name, 'none')}"
        for name in before
        if before[name] != now.get(name)
    ]


def _changed(run: RunFolder, what: str, changed: list[str], ways: str) -> FtcliError:
    lines = "".join(f"\n  {line}" for line in changed)
    free = f"these may change: {', '.join(sorted(FREE_KEYS))}"
    return FtcliError("recipe_changed", f"{shown_path(run.path)} {what}:{lines}\n{ways}\n{free}")


def _for_more(run: RunFolder, loaded: Loaded, changed: list[str]) -> str:
    """What to do where a run is to become longer or shorter."""
    if not any(line.startswith(LENGTH_KEYS) for line in changed):
        return ""
    more = command("train", loaded.path, *set_flags(loaded.overrides), "--from", run.path)
    return (
        "\nThe length of a run shapes its learning rates from the first step: let it end as it "
        f"began, then, for more:\n  {more}"
    )


def _require_trackers(recipe: Recipe) -> None:
    """Raise MachineError (`tracker`) naming every package that is missing."""
    missing = [n for n in dict.fromkeys(recipe.training.report_to) if not _is_installed(n)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MachineError(
            "tracker",
            f"{' and '.join(missing)} {verb} not installed: pip install {' '.join(missing)}",
        )


def _is_installed(package: str) -> bool:
    """A folder of that name, as some trackers leave one behind, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
