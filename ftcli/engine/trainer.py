"""Plan → TRL's SFTTrainer: build, run, resume. The only door to SFTConfig.

THEIR_NAMES says what goes where; `ftcli train --dry-run` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerControl,
)
from trl import SFTConfig, SFTTrainer

from ftcli.artifacts import RunFolder
from ftcli.console import Reporter
from ftcli.engine.adapters import load_encoder, prefix_encoder
from ftcli.engine.batches import collate, length_batches
from ftcli.engine.callbacks import Course, stop_signals
from ftcli.engine.checkpoints import newest, rotate, save_checkpoint
from ftcli.engine.loss import row_losses, summed_loss
from ftcli.engine.memory import StepMemory
from ftcli.engine.methods import trained_weights_untouched
from ftcli.errors import FtcliError
from ftcli.plan import Plan
from ftcli.recipe import Training

# Our name of a decision → where it goes.
THEIR_NAMES = {
    "precision": "SFTConfig.bf16, fp16",
    "weights_dtype": "from_pretrained(dtype)",
    "attention": "from_pretrained(attn_implementation)",
    "optimizer": "SFTConfig.optim",
    "learning_rate": "SFTConfig.learning_rate",
    "micro_batch": "SFTConfig.per_device_train_batch_size",
    "gradient_checkpointing": "SFTConfig.gradient_checkpointing",
    "steps": "SFTConfig.max_steps",
    "eval_every": "our callback",
    "save_every": "our callback",
}
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw-8bit": "adamw_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
    "sgd": "sgd",
}


@dataclass(frozen=True)
class Rows:
    """Memory-mapped ids and labels of one split, and the length of each row."""

    dataset: Dataset
    lengths: list[int]


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on in the order of the run, and rows to validate on."""

    train: Rows
    micro_batches: list[list[int]]
    validation: Rows | None
    pad_id: int

    def tokens_of_steps(self, accumulation: int) -> list[int]:
        """Real tokens, without padding, of each optimizer step."""
        lengths = self.train.lengths
        batches = self.micro_batches
        return [
            sum(lengths[row] for batch in batches[i : i + accumulation] for row in batch)
            for i in range(0, len(batches), accumulation)
        ]


def sft_config(training: Training, plan: Plan, output: Path) -> SFTConfig:
    """The whole of TRL's configuration; our callbacks decide when to validate and to save."""
    precision = plan.precision.value
    config = SFTConfig(
        output_dir=str(output),
        per_device_train_batch_size=plan.micro_batch.value,
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=1,
        max_steps=plan.steps.value,
        learning_rate=plan.learning_rate.value,
        lr_scheduler_type=training.scheduler,
        warmup_steps=plan.warmup_steps,
        optim=OPTIMIZERS[plan.optimizer.value],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        neftune_noise_alpha=training.neftune_noise_alpha,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        gradient_checkpointing=plan.gradient_checkpointing.value,
        use_cpu=plan.hardware_kind == "cpu",
        seed=training.seed,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=plan.hardware_kind == "cuda",
    )
    config._n_gpu = 1  # one card is used, however many there are: TRL refuses DataParallel
    return config


class FtcliTrainer(SFTTrainer):
    """SFTTrainer with our batches, our loss, our validation and our checkpoints."""

    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        config: SFTConfig,
        data: TrainingData,
        tokenizer: PreTrainedTokenizerBase,
        run: RunFolder,
        keep_checkpoints: int,
    ) -> None:
        self.data = data
        self.run = run
        self.keep_checkpoints = keep_checkpoints
        with trained_weights_untouched(model):
            super().__init__(
                model=model,
                args=config,
                train_dataset=data.train.dataset,
                data_collator=lambda rows: collate(rows, data.pad_id),
                processing_class=tokenizer,
            )
        # Our loss divides by the labelled tokens of the whole step.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.data.train.dataset,
            batch_sampler=self.data.micro_batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        loss = summed_loss(model, inputs["input_ids"], inputs["labels"]) / num_items_in_batch
        if not torch.isfinite(loss):
            raise FtcliError(
                "loss_not_finite",
                f"the loss became {loss.item()} in step {self.state.global_step + 1}, before its "
                "weights were changed; lower training.learning_rate, or look at the rows of this "
                "step",
            )
        return loss

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """accelerate puts autocast around the model's own forward, which our loss does not call."""
        return self.accelerator.autocast()

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Token-weighted loss on the validation rows."""
        metrics = {"eval_loss": self.validation_loss()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def validation_loss(self) -> float:
        rows = self.data.validation
        assert rows is not None
        self.model.eval()
        total, tokens = 0.0, 0
        for batch in length_batches(rows.lengths, self.args.per_device_train_batch_size):
            inputs = self._prepare_inputs(
                collate([rows.dataset[i] for i in batch], self.data.pad_id)
            )
            with self.compute_loss_context_manager():
                losses, counts = row_losses(self.model, inputs["input_ids"], inputs["labels"])
            total += losses.double().sum().item()
            tokens += int(counts.sum())
        self.model.train()
        return total / tokens

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: PreTrainedModel | None = None
    ) -> None:
        """As Trainer does, but a prefix is trained by the network that makes it."""
        if (encoder := prefix_encoder(self.model)) is not None:
            load_encoder(encoder, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: PreTrainedModel, trial: object) -> None:
        save_checkpoint(self, self.run)
        rotate(self.run, self.keep_checkpoints, self.state.best_global_step)


@dataclass(frozen=True)
class Outcome:
    """What a training came to; losses are per labelled token."""

    steps: int
    train_loss: float | None
    first_eval_loss: float | None
    eval_loss: float | None
    best_step: int | None
    tokens_per_second: float
    seconds: float
    signal_number: int | None


def train(
    trainer: FtcliTrainer,
    training: Training,
    plan: Plan,
    memory: StepMemory,
    reporter: Reporter,
) -> Outcome:
    """Run to the last step, to an early stop or to a signal; the model holds the best weights.

    Resumes from the newest checkpoint of the run folder, if there is one.
    """
    checkpoint = newest(trainer.run)
    validate = trainer.validation_loss if trainer.data.validation is not None else None
    tokens = trainer.data.tokens_of_steps(plan.accumulation)
    course = Course(trainer.run, training, plan, tokens, validate)
    trainer.add_callback(memory)
    trainer.add_callback(course)
    with reporter.meter("step", plan.steps.value) as meter, stop_signals(course, reporter):
        course.begin(meter, resumed=checkpoint is not None)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    best_step = state.best_global_step
    complete = state.global_step >= plan.steps.value
    signal_number = None if complete else course.signal_number
    if signal_number is None and best_step not in (None, state.global_step):
        trainer._load_from_checkpoint(str(trainer.run.checkpoint(best_step)))
    return Outcome(
        steps=state.global_step,
        train_loss=course.train_loss(),
        first_eval_loss=course.first_eval_loss,
        eval_loss=state.best_metric,
        best_step=best_step,
        tokens_per_second=course.tokens_per_second(),
        seconds=course.seconds(),
        signal_number=signal_number,
    )
