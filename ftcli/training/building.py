"""Build the trainer of a plan, and save the trained weights.

The only module that makes an SFTConfig. LIBRARY_NAMES says which library setting each decision
becomes; `ftcli train --dry-run` prints it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel
from trl import SFTConfig

from ftcli.config.recipe import Full, Training
from ftcli.errors import ModelError
from ftcli.kernels.cpu import end_gc_tuning
from ftcli.kernels.dequantised import cache_dequantised
from ftcli.kernels.liger import apply_liger
from ftcli.kernels.lora import fuse_lora
from ftcli.kernels.small_gpu import tile_mlps
from ftcli.models.adapters import open_adapter, save_weights
from ftcli.models.architectures.model_class import open_config
from ftcli.models.device import device_of
from ftcli.models.files.older_readers import write_for_older_readers
from ftcli.models.files.untrusted import copy_processor
from ftcli.models.load import DTYPES, compute_dtype, load_base
from ftcli.models.methods import attach, init_token_ids, quantization
from ftcli.models.prompt_manifest import generation_config
from ftcli.models.targets import shared_weight
from ftcli.models.text_forward import idle_modules
from ftcli.training.collators import open_data
from ftcli.training.job import TrainJob
from ftcli.training.l2_sp import L2SP
from ftcli.training.plan.plan import Plan
from ftcli.training.trainer import FtcliTrainer

# Key of a decision → library setting.
LIBRARY_NAMES = {
    "training.precision": "SFTConfig.bf16, fp16",
    "model.dtype": "from_pretrained(dtype)",
    "model.attention": "from_pretrained(attn_implementation)",
    "training.optimizer": "SFTConfig.optim",
    "training.learning_rate": "SFTConfig.learning_rate",
    "training.micro_batch_size": "our training step, which splits a batch itself",
    "training.packing": "our collator",
    "optimizations.shared_prefix": "our collator",
    "optimizations.dequantised": "our forward of bitsandbytes' Linear4bit",
    "optimizations.fused_lora": "our forward of PEFT's Linear",
    "optimizations.liger": "apply_liger_kernel(rope, swiglu, geglu); its RMSNorm in our forward",
    "training.gradient_checkpointing": "SFTConfig.gradient_checkpointing",
    "training.embedding_offload": "our forward of embeddings and head",
    "training.activation_offload": "our saved_tensors_hooks",
    "training.tiled_mlp": "our forward of the MLPs",
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
    """TRL's configuration; our callbacks decide when to validate and to save.

    Its batch is a whole optimizer step, which our training step splits into micro-batches.
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
        loss_type="nll",  # otherwise TRL before 1.16 replaces the model's forward with its own
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=plan.hardware.kind == "cuda",
    )
    config._n_gpu = 1  # of several GPUs use one: TRL refuses DataParallel
    return config


def build_trainer(job: TrainJob) -> FtcliTrainer:
    """Load the base as planned, attach the method, and read the prepared rows."""
    end_gc_tuning()  # the libraries are imported, and no model is loaded yet
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
        embedding_offload=plan.training.embedding_offload,
    )
    if (init_adapter := job.init_adapter) is not None:
        model = open_adapter(base, init_adapter, trainable=True)
    else:
        model = _attached(base, job)
    _require_own_weights(model)
    if isinstance(recipe.method, Full):
        _set_generation_config(model, job)  # transformers may refuse to save the base's own
    trainer = FtcliTrainer(
        model,
        sft_config(recipe.training, plan, run.path / "logs", recipe.name),
        open_data(recipe, plan, job.dataset, run.data),
        job.model.renderer.tokenizer,
        run,
        plan,
        recipe.training.save_total_limit,
    )
    trainer.architecture = job.model.architecture
    if plan.optimizations.dequantised:
        cache_dequantised(trainer.model)
    if plan.optimizations.fused_lora:
        fuse_lora(trainer.model)
    if plan.optimizations.liger:
        apply_liger(trainer.model)
    if plan.training.tiled_mlp:
        tile_mlps(trainer.model)
    trainer.l2_sp = _l2_sp(trainer.model, job)
    return trainer


def _l2_sp(model: PreTrainedModel, job: TrainJob) -> L2SP | None:
    """L2-SP towards the starting weights; a resumed run loads them from its checkpoint."""
    recipe, strength = job.recipe, job.plan.training.l2_sp
    if not strength:
        return None
    stored = None
    if isinstance(recipe.method, Full):
        stored = open_config(job.model.source, recipe.model.revision).dtype or torch.float32
    return L2SP(model, strength, stored)


def _attached(base: PreTrainedModel, job: TrainJob) -> PreTrainedModel:
    method, seed = job.recipe.method, job.recipe.training.seed
    return attach(base, method, seed, init_token_ids(method, job.model.renderer.tokenizer))


def _require_own_weights(model: PreTrainedModel) -> None:
    """Raise ModelError if a merge would change a weight that several layers share."""
    if (shared := shared_weight(model)) is not None:
        raise ModelError(
            "target_modules",
            f"{shared}, and a merge would give each the updates of all; leave them out, or set "
            "method.mode: full",
        )


def _set_generation_config(model: PreTrainedModel, job: TrainJob) -> None:
    model.generation_config = generation_config(
        job.model.renderer.tokenizer, job.dataset.stop_ids, job.dataset.pad_id
    )


def save_trained(trainer: FtcliTrainer, job: TrainJob, folder: Path) -> None:
    """Save the trained weights with the tokenizer, template and stop tokens of the training.

    A full model is saved in the type of its base's files, an adapter in fp32.
    """
    model = trainer.model
    if isinstance(job.recipe.method, Full):
        stored = open_config(job.model.source, job.recipe.model.revision)
        model.to(stored.dtype or torch.float32)
        _set_generation_config(model, job)
    save_weights(model, folder)
    if isinstance(job.recipe.method, Full) and idle_modules(model):
        copy_processor(job.model.source, job.recipe.model.revision, folder)
    job.model.renderer.tokenizer.save_pretrained(folder)
    write_for_older_readers(folder)
