"""Paths on what is passed on: as seen from the recipe's folder, and on a model card, which is
published, the names alone of what leads out of a run's surroundings."""

from __future__ import annotations

import os
from collections.abc import Callable

from ftcli.stages.report.plain import Plain, mapping

Told = Callable[[str], str]
"""A path as the page says it."""
# Keys of a recipe that name files or folders (`ftcli.loading.resolved`).
PATHS = {
    *("model.id", "output", "data.train", "data.validation", "data.test", "data.template"),
    *("data.replay.source", "eval.format.schema", "eval.format.table", "eval.faithfulness.banned"),
}
OUTSIDE = os.path.join(os.pardir, os.pardir)


def told_from(recipe: str) -> Told:
    """Paths below the folder above the recipe's, as seen from the recipe's own: a run says them
    from the root, and whose home that is concerns nobody who reads the page."""
    folder = os.path.dirname(recipe)
    above = os.path.dirname(folder)
    around = above if len(above) > 1 else folder

    def told(path: str) -> str:
        if len(around) > 1 and path.startswith(f"{around}{os.sep}"):
            return os.path.relpath(path, folder)
        return path

    return told


def portable(value: object, told: Told) -> object:
    """A recipe's values with each path as the page says it."""
    match value:
        case dict():
            return {key: portable(inner, told) for key, inner in value.items()}
        case list():
            return [portable(inner, told) for inner in value]
        case str():
            return told(value)
    return value


def name_alone(path: str) -> str:
    """The last part of a path from the root, or out of the folder above the recipe's."""
    inner = os.path.normpath(path)
    leads_out = os.path.isabs(path) or inner == OUTSIDE or inner.startswith(OUTSIDE + os.sep)
    return (os.path.basename(inner) or path) if leads_out and "\n" not in path else path


def names_alone(recipe: Plain, section: str = "") -> dict[str, object]:
    """A recipe with the names alone of what lies elsewhere."""
    found: dict[str, object] = {}
    for key, value in recipe.items():
        place = f"{section}{key}"
        if place in PATHS and isinstance(value, str):
            found[key] = name_alone(value)
        else:
            found[key] = names_alone(mapping(value), f"{place}.") if mapping(value) else value
    return found
