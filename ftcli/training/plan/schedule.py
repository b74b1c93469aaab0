"""How many steps, and when to validate and to save."""

from __future__ import annotations

import math

from ftcli.config.recipe import Recipe
from ftcli.training.plan.choice import Choice, Profile

# Validations may take this share of the time that training takes.
VALIDATION_SHARE = 0.1
# A forward pass costs a third of a training step (Kaplan et al. 2020, section 2.1: 2N of 6N).
FORWARD_SHARE = 1 / 3
MOST_VALIDATIONS = 10
# Of the time between two checkpoints, what saving one may take where the recipe does not say when;
# the best weights, a signal and the end always save.
SAVE_SHARE = 0.02
SAVED_WHEN = f"one that would take over {SAVE_SHARE:.0%} of the time since the last is left out"


def count_steps(recipe: Recipe, profile: Profile) -> tuple[Choice[int], float]:
    """Optimizer steps, and the epochs they come to.

    `max_steps` counts those of the task's rows: rows that are replayed add their own, so that as
    many of the task are seen with them as without.
    """
    training = recipe.training
    if training.max_steps is not None:
        steps, reason = training.max_steps, "training.max_steps"
        if profile.replayed_rows:
            steps = math.ceil(steps * profile.rows / (profile.rows - profile.replayed_rows))
            reason += f": {training.max_steps} for the task's rows, the others for data.replay"
        return Choice(steps, reason), steps * training.batch_size / profile.rows
    steps = max(1, math.ceil(round(profile.rows * training.epochs) / training.batch_size))
    reason = f"{profile.rows_in_words} × {training.epochs:g} epochs / {training.batch_size} a step"
    return Choice(steps, reason), training.epochs


def choose_eval_every(recipe: Recipe, profile: Profile, steps: int) -> Choice[int]:
    """Steps between two validations, so that they cost little."""
    asked = recipe.training.eval_steps
    if asked != "auto":
        return Choice(asked, "set in the recipe")
    if not profile.validation_tokens:
        tenth = math.ceil(steps / MOST_VALIDATIONS)
        return Choice(tenth, "there are no validation rows")
    trained = steps * recipe.training.batch_size * profile.mean_tokens
    one = profile.validation_tokens * FORWARD_SHARE
    affordable = int(trained * VALIDATION_SHARE / one)
    count = min(max(affordable, 2), MOST_VALIDATIONS, steps)
    return Choice(
        math.ceil(steps / count),
        f"{count} validations, so that they take about {count * one / trained:.0%} of the time",
    )


def choose_save_every(recipe: Recipe, profile: Profile, eval_every: int) -> Choice[int]:
    """Steps between two checkpoints."""
    asked = recipe.training.save_steps
    if asked != "auto":
        return Choice(asked, "set in the recipe")
    if not profile.validation_tokens:
        return Choice(eval_every, f"nothing is validated; {SAVED_WHEN}")
    return Choice(eval_every, f"with every validation, the best weights always; {SAVED_WHEN}")
