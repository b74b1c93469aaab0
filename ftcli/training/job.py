"""A training, decided: what it starts from, where it goes, its rows and its plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcli.config.recipe import Prefix, Recipe
from ftcli.data.prepared import Prepared
from ftcli.runs.checkpoints import require_whole
from ftcli.runs.folder import RunFolder
from ftcli.training.plan.plan import Plan
from ftcli.training.scene import Scene


@dataclass(frozen=True)
class Job:
    """Everything a training needs, decided."""

    scene: Scene
    run: RunFolder
    prepared: Prepared
    plan: Plan

    @property
    def recipe(self) -> Recipe:
        return self.scene.loaded.recipe

    @property
    def parent_adapter(self) -> Path | None:
        """Where the weights of another run's adapter are; a prefix goes on by the network that
        makes it, which its checkpoints hold."""
        parent = self.scene.parent
        if parent is None or not parent.run.adapter.is_dir():
            return None
        method = parent.loaded.recipe.method
        if isinstance(method, Prefix) and method.projection:
            manifest, steps = parent.run.read_manifest(), parent.run.steps_saved()
            if steps:
                step = manifest["result"]["best_step"] or steps[-1]
                return require_whole(parent.run, step, manifest["run_id"])
        return parent.run.adapter
