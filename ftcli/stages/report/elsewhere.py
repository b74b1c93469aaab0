"""Paths that lead out of a run's surroundings: a model card is published, and shows names alone."""

from __future__ import annotations

import os

from ftcli.stages.report.plain import Plain, mapping

# Keys of a recipe that name files or folders (`ftcli.loading.resolved`).
PATHS = {
    *("model.id", "output", "data.train", "data.validation", "data.test", "data.template"),
    *("data.replay.source", "eval.format.schema", "eval.format.table", "eval.faithfulness.banned"),
}
OUTSIDE = os.path.join(os.pardir, os.pardir)


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
