"""From a plan to a trainer: the base loaded, the method attached, the rows opened; and saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ftcli.config.recipe import Full, Recipe
from ftcli.data.prepared import Prepared
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.errors import ModelError
from ftcli.kernels.cpu import collect_as_usual
from ftcli.kernels.dequantised import keep_dequantised
from ftcli.kernels.liger import take_liger
from ftcli.kernels.lora import fuse_lora
from ftcli.kernels.norm import fuse_norms
from ftcli.memory.hardware import Hardware
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.device import device_of
from ftcli.models.load import DTYPES, compute_dtype, load_base, open_config
from ftcli.models.methods import attach, first_words, quantization
from ftcli.models.older_readers import write_for_older_readers
from ftcli.models.prompt_manifest import generation_config
from ftcli.models.targets import shared_weight
from ftcli.runs.folder import RunFolder
from ftcli.training.l2_sp import Hold
from ftcli.training.plan.plan import Plan
from ftcli.training.rows import open_data
from ftcli.training.trainer import FtcliTrainer, sft_config


@dataclass(frozen=True)
class Setup:
    """What a trainer is built from."""

    recipe: Recipe
    source: str
    hardware: Hardware
    plan: Plan
    prepared: Prepared
    renderer: Renderer
    parent_adapter: Path | None = None


def build_trainer(setup: Setup, run: RunFolder) -> FtcliTrainer:
    """Load the base as planned, attach the method, and read the prepared rows."""
    collect_as_usual()  # all that is heavy has been imported, and no model is there
    recipe, plan = setup.recipe, setup.plan
    weights = DTYPES[plan.weights_dtype.value]
    compute = compute_dtype(plan.precision.value)
    base = load_base(
        setup.source,
        recipe.model,
        dtype=weights,
        attention=plan.attention.value,
        device=device_of(setup.hardware),
        quantization=quantization(recipe.method, compute),
    )
    if setup.parent_adapter is not None:
        model = open_adapter(base, setup.parent_adapter, trainable=True)
    else:
        model = _attached(base, setup)
    _require_own_weights(model)
    if isinstance(recipe.method, Full):
        _generate_as_trained(model, setup)  # the base's own may be one that cannot be saved
    trainer = FtcliTrainer(
        model,
        sft_config(recipe.training, plan, run.path / "logs", recipe.name),
        open_data(recipe, plan, setup.prepared, run.data),
        setup.renderer.tokenizer,
        run,
        plan,
        recipe.training.keep_checkpoints,
    )
    if plan.dequantised is not None and plan.dequantised.value:
        keep_dequantised(trainer.model)
    if plan.fused_lora is not None and plan.fused_lora.value:
        fuse_lora(trainer.model)
    liger = plan.liger is not None and plan.liger.value
    if liger:
        take_liger(trainer.model)
    if plan.fused_norms.value:
        fuse_norms(trainer.model, liger=liger)
    trainer.hold = _hold(trainer.model, setup)
    return trainer


def _hold(model: PreTrainedModel, setup: Setup) -> Hold | None:
    """The weights as a run begins, also where one that goes on takes up others behind this."""
    recipe, choice = setup.recipe, setup.plan.hold
    if choice is None:
        return None
    whole = isinstance(recipe.method, Full)
    stored = open_config(setup.source, recipe.model.revision).dtype if whole else None
    return Hold(model, choice.value, (stored or torch.float32) if whole else None)


def _attached(base: PreTrainedModel, setup: Setup) -> PreTrainedModel:
    method, seed = setup.recipe.method, setup.recipe.training.seed
    return attach(base, method, seed, first_words(method, setup.renderer.tokenizer))


def _require_own_weights(model: PreTrainedModel) -> None:
    """Raise ModelError where a merge could not give an update to its own layer alone."""
    if (shared := shared_weight(model)) is not None:
        raise ModelError(
            "target_modules",
            f"{shared}, and a merge would give each the updates of all; leave them out, or take "
            "method.mode: full",
        )


def _generate_as_trained(model: PreTrainedModel, setup: Setup) -> None:
    model.generation_config = generation_config(
        setup.renderer.tokenizer, setup.prepared.stop_ids, setup.prepared.pad_id
    )


def save_trained(trainer: FtcliTrainer, setup: Setup, folder: Path) -> None:
    """The trained weights with the tokenizer, the template and the stop tokens of the training.

    A full model is saved in the type of its base's files, an adapter in fp32.
    """
    model = trainer.model
    if isinstance(setup.recipe.method, Full):
        stored = open_config(setup.source, setup.recipe.model.revision)
        model.to(stored.dtype or torch.float32)
        _generate_as_trained(model, setup)
    save_weights(model, folder)
    setup.renderer.tokenizer.save_pretrained(folder)
    write_for_older_readers(folder)
