"""From a plan to a trainer: the base loaded, the method attached, the rows opened; and saved."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from ftcli.config.recipe import Full
from ftcli.errors import ModelError
from ftcli.kernels.cpu import end_gc_tuning
from ftcli.kernels.dequantised import keep_dequantised
from ftcli.kernels.liger import take_liger
from ftcli.kernels.lora import fuse_lora
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.device import device_of
from ftcli.models.load import DTYPES, compute_dtype, load_base, open_config
from ftcli.models.methods import attach, first_words, quantization, shared_weight
from ftcli.models.older_readers import write_for_older_readers
from ftcli.models.prompt_manifest import generation_config
from ftcli.training.job import TrainJob
from ftcli.training.l2_sp import Hold
from ftcli.training.rows import open_data
from ftcli.training.trainer import FtcliTrainer, sft_config


def build_trainer(job: TrainJob) -> FtcliTrainer:
    """Load the base as planned, attach the method, and read the prepared rows."""
    end_gc_tuning()  # all that is heavy has been imported, and no model is there
    recipe, plan, run = job.recipe, job.plan, job.run
    weights = DTYPES[plan.model.dtype]
    compute = compute_dtype(plan.training.precision)
    base = load_base(
        job.model.source,
        recipe.model,
        dtype=weights,
        attention=plan.model.attention,
        device=device_of(plan.hardware),
        quantization=quantization(recipe.method, compute),
    )
    if (init_adapter := job.init_adapter) is not None:
        model = open_adapter(base, init_adapter, trainable=True)
    else:
        model = _attached(base, job)
    _require_own_weights(model)
    if isinstance(recipe.method, Full):
        _generate_as_trained(model, job)  # the base's own may be one that cannot be saved
    trainer = FtcliTrainer(
        model,
        sft_config(recipe.training, plan, run.path / "logs", recipe.name),
        open_data(recipe, plan, job.dataset, run.data),
        job.model.renderer.tokenizer,
        run,
        plan,
        recipe.training.keep_checkpoints,
    )
    if plan.optimizations.dequantised:
        keep_dequantised(trainer.model)
    if plan.optimizations.fused_lora:
        fuse_lora(trainer.model)
    if plan.optimizations.liger:
        take_liger(trainer.model)
    trainer.hold = _hold(trainer.model, job)
    return trainer


def _hold(model: PreTrainedModel, job: TrainJob) -> Hold | None:
    """The weights as a run begins, also where one that goes on takes up others behind this."""
    recipe, strength = job.recipe, job.plan.training.hold_strength
    if not strength:
        return None
    whole = isinstance(recipe.method, Full)
    stored = open_config(job.model.source, recipe.model.revision).dtype if whole else None
    return Hold(model, strength, (stored or torch.float32) if whole else None)


def _attached(base: PreTrainedModel, job: TrainJob) -> PreTrainedModel:
    method, seed = job.recipe.method, job.recipe.training.seed
    return attach(base, method, seed, first_words(method, job.model.renderer.tokenizer))


def _require_own_weights(model: PreTrainedModel) -> None:
    """Raise ModelError where a merge could not give an update to its own layer alone."""
    if (shared := shared_weight(model)) is not None:
        raise ModelError(
            "target_modules",
            f"{shared}, and a merge would give each the updates of all; leave them out, or take "
            "method.mode: full",
        )


def _generate_as_trained(model: PreTrainedModel, job: TrainJob) -> None:
    model.generation_config = generation_config(
        job.model.renderer.tokenizer, job.dataset.stop_ids, job.dataset.pad_id
    )


def save_trained(trainer: FtcliTrainer, job: TrainJob, folder: Path) -> None:
    """The trained weights with the tokenizer, the template and the stop tokens of the training.

    A full model is saved in the type of its base's files, an adapter in fp32.
    """
    model = trainer.model
    if isinstance(job.recipe.method, Full):
        stored = open_config(job.model.source, job.recipe.model.revision)
        model.to(stored.dtype or torch.float32)
        _generate_as_trained(model, job)
    save_weights(model, folder)
    job.model.renderer.tokenizer.save_pretrained(folder)
    write_for_older_readers(folder)
