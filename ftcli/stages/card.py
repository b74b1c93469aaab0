"""The model card of a run: what it is, what it was made from, how to use it."""

from __future__ import annotations

from typing import Any

from ftcli.console import duration, gigabytes, megabytes
from ftcli.loading import Loaded, dump_recipe
from ftcli.plan import Plan
from ftcli.prepared import Prepared


def model_card(loaded: Loaded, prepared: Prepared, plan: Plan, report: dict[str, Any]) -> str:
    """Markdown with the front matter that the hub reads."""
    recipe = loaded.recipe
    return "\n".join(
        [
            "---",
            f"base_model: {recipe.model.id}",
            f"library_name: {'transformers' if recipe.method.mode == 'full' else 'peft'}",
            "pipeline_tag: text-generation",
            "tags: [ftcli, sft]",
            "---",
            "",
            f"# {recipe.name}",
            "",
            f"`{recipe.model.id}`, tuned with ftcli ({recipe.method.mode}) on "
            f"{prepared.train.rows} rows.",
            "",
            "| | |",
            "| --- | --- |",
            f"| training | {report['steps']} steps of {recipe.training.batch_size} rows, "
            f"learning rate {plan.learning_rate.value:g}, {plan.precision.value} |",
            f"| validation loss | {_losses(report)} |",
            f"| trained parameters | {report['trained_parameters']:,} of "
            f"{report['total_parameters']:,} |",
            f"| time, memory | {duration(report['seconds'])}, "
            f"{gigabytes(report['peak_memory_bytes'])} |",
            f"| size | {megabytes(report['saved_bytes'])} |",
            f"| data | fingerprint {prepared.fingerprint} |",
            "",
            "## Use",
            "",
            "```sh",
            'ftcli generate . "a prompt like those it was trained on"',
            "```",
            "",
            "## Recipe",
            "",
            "```yaml",
            dump_recipe(recipe).rstrip(),
            "```",
            "",
        ]
    )


def _losses(report: dict[str, Any]) -> str:
    if report["eval_loss"] is None:
        return "not measured (no validation rows)"
    first = report["first_eval_loss"]
    before = f"{first:.3f} → " if first is not None else ""
    return f"{before}{report['eval_loss']:.3f} (best: step {report['best_step']})"
