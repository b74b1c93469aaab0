"""From a plan to a trainer: base loaded, method attached, rows opened; and the weights saved.

The only door to SFTConfig. THEIR_NAMES says where each decision goes; `ftcli train --dry-run`
prints it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel
from trl import SFTConfig

from ftcli.config.recipe import Full, Training
from ftcli.errors import ModelError
from ftcli.kernels.cpu import end_gc_tuning
from ftcli.kernels.dequantised import keep_dequantised
from ftcli.kernels.liger import take_liger
from ftcli.kernels.lora import fuse_lora
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.device import device_of
from ftcli.models.load import DTYPES, compute_dtype, load_base, open_config
from ftcli.models.methods import attach, init_token_ids, quantization, shared_weight
from ftcli.models.older_readers import write_for_older_readers
from ftcli.models.prompt_manifest import generation_config
from ftcli.training.collators import open_data
from ftcli.training.job import TrainJob
from ftcli.training.l2_sp import L2SP
from ftcli.training.plan.plan import Plan
from ftcli.training.trainer import FtcliTrainer

# Our name of a decision → where it goes.
THEIR_NAMES = {
    "training.precision": "SFTConfig.bf16, fp16",
    "model.dtype": "from_pretrained(dtype)",
    "model.attention": "from_pretrained(attn_implementation)",
    "training.optimizer": "SFTConfig.optim",
    "training.learning_rate": "SFTConfig.learning_rate",
    "training.micro_batch_size": "our training step",
    "training.packing": "our collator",
    "optimizations.shared_prefix": "our collator",
    "optimizations.dequantised": "our forward of bitsandbytes' Linear4bit",
    "optimizations.fused_lora": "our forward of PEFT's Linear",
    "optimizations.liger": "apply_liger_kernel(rope, swiglu, geglu); its RMSNorm in our forward",
    "training.gradient_checkpointing": "SFTConfig.gradient_checkpointing",
    "steps": "SFTConfig.max_steps",
    "training.eval_steps": "our callback",
    "training.save_steps": "our callback",
    "rows.replayed_rows": "our order of rows",
    "training.l2_sp": "our hook before the optimizer's step",
}
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw-8bit": "adamw_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
    "sgd": "sgd",
}


def sft_config(training: Training, plan: Plan, output: Path, name: str) -> SFTConfig:
    """The whole of TRL's configuration; our callbacks decide when to validate and to save.

    What it calls a batch is a whole step of ours, which we cut into micro-batches ourselves.
    """
    precision = plan.training.precision
    config = SFTConfig(
        output_dir=str(output),
        run_name=name,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=1,
        num_train_epochs=1,
        max_steps=plan.steps,
        learning_rate=plan.training.learning_rate,
        lr_scheduler_type=training.lr_scheduler,
        warmup_steps=plan.warmup_steps,
        optim=OPTIMIZERS[plan.training.optimizer],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        neftune_noise_alpha=training.neftune_noise_alpha,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        gradient_checkpointing=plan.training.gradient_checkpointing,
        use_cpu=plan.hardware.kind == "cpu",
        seed=training.seed,
        max_length=None,
        loss_type="nll",  # else TRL before 1.16 replaces the model's forward, which is ftcli's own
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=plan.hardware.kind == "cuda",
    )
    config._n_gpu = 1  # one card is used, however many there are: TRL refuses DataParallel
    return config


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
        recipe.training.save_total_limit,
    )
    if plan.optimizations.dequantised:
        keep_dequantised(trainer.model)
    if plan.optimizations.fused_lora:
        fuse_lora(trainer.model)
    if plan.optimizations.liger:
        take_liger(trainer.model)
    trainer.l2_sp = _l2_sp(trainer.model, job)
    return trainer


def _l2_sp(model: PreTrainedModel, job: TrainJob) -> L2SP | None:
    """The weights that a run starts from; a resumed run loads its own after this."""
    recipe, strength = job.recipe, job.plan.training.l2_sp
    if not strength:
        return None
    whole = isinstance(recipe.method, Full)
    stored = open_config(job.model.source, recipe.model.revision).dtype if whole else None
    return L2SP(model, strength, (stored or torch.float32) if whole else None)


def _attached(base: PreTrainedModel, job: TrainJob) -> PreTrainedModel:
    method, seed = job.recipe.method, job.recipe.training.seed
    return attach(base, method, seed, init_token_ids(method, job.model.renderer.tokenizer))


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
