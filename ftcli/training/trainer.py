"""Plan → TRL's SFTTrainer, whose batches are whole optimizer steps. The only door to SFTConfig.

THEIR_NAMES says what goes where; `ftcli train --dry-run` prints it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_pt_utils import safe_globals
from trl import SFTConfig, SFTTrainer

from ftcli.config.recipe import Training
from ftcli.kernels.attention import attention_for
from ftcli.models.adapters import load_encoder, prefix_encoder, read_adapter
from ftcli.models.loss import add_loss_to_forward, row_losses
from ftcli.models.methods import trained_weights_untouched
from ftcli.runs.atomic import require_space
from ftcli.runs.checkpoints import Position, rotate
from ftcli.runs.folder import RunFolder
from ftcli.runs.metrics_log import Records
from ftcli.runs.signals import StopSignals
from ftcli.training.finite import gradient_not_finite, require_finite_loss
from ftcli.training.l2_sp import Hold
from ftcli.training.laying import laying_of
from ftcli.training.micro_batch import MicroBatch
from ftcli.training.plan.plan import Plan
from ftcli.training.randomness import RandomState, random_state, restore_random_state
from ftcli.training.rows import TrainingData
from ftcli.training.saving import RANDOM, page_states, save_checkpoint

# Our name of a decision → where it goes.
THEIR_NAMES = {
    "training.precision": "SFTConfig.bf16, fp16",
    "model.dtype": "from_pretrained(dtype)",
    "model.attention": "from_pretrained(attn_implementation)",
    "training.optimizer": "SFTConfig.optim",
    "training.learning_rate": "SFTConfig.learning_rate",
    "training.micro_batch_size": "our training step",
    "training.packing": "our layout of a step's rows",
    "optimizations.shared_prefix": "our layout of a step's rows",
    "optimizations.dequantised": "our forward of bitsandbytes' Linear4bit",
    "optimizations.fused_lora": "our forward of PEFT's Linear",
    "optimizations.liger": "apply_liger_kernel(rope, swiglu, geglu); its RMSNorm in our forward",
    "training.gradient_checkpointing": "SFTConfig.gradient_checkpointing",
    "steps": "SFTConfig.max_steps",
    "training.eval_steps": "our callback",
    "training.save_steps": "our callback",
    "rows.replayed_rows": "our order of rows",
    "training.hold.strength": "our hook before the optimizer's step",
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
        lr_scheduler_type=training.scheduler,
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


class FtcliTrainer(SFTTrainer):
    """SFTTrainer with our steps, our loss, our validation and our checkpoints."""

    control: TrainerControl
    state: TrainerState

    def __init__(
        self,
        model: PreTrainedModel,
        config: SFTConfig,
        data: TrainingData,
        tokenizer: PreTrainedTokenizerBase,
        run: RunFolder,
        plan: Plan,
        keep_checkpoints: int,
    ) -> None:
        self.data = data
        self.laying = laying_of(plan, data.pad_id)
        self.run = run
        self.records = Records(run.metrics)
        self.keep_checkpoints = keep_checkpoints
        self.micro_batch = MicroBatch(plan.training.micro_batch_size)
        self.validation_batch = MicroBatch(plan.training.micro_batch_size)
        self.stops: StopSignals | None = None
        self.hold: Hold | None = None
        self.checkpoint_bytes = 0
        self.checkpoint_seconds = 0.0
        self._before_step: RandomState | None = None
        add_loss_to_forward(model)
        with trained_weights_untouched(model):
            super().__init__(
                model=model,
                args=config,
                train_dataset=data.train.dataset,
                data_collator=list,  # rows are laid out by `training_step`
                processing_class=tokenizer,
            )
        self.remove_callback(PrinterCallback)

    # Steps

    def create_optimizer(self, model: PreTrainedModel | None = None) -> Any:
        """As Trainer does, and each step of it pulls the weights that are held."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made and self.hold is not None:
            self.hold.attach(optimizer, self.model)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Row numbers of one step after the other; `training_step` reads the rows."""
        rows = range(len(self.data.train.dataset))
        return DataLoader(rows, batch_sampler=self.data.windows, collate_fn=list)  # type: ignore[arg-type]

    def training_step(
        self, model: PreTrainedModel, inputs: list[int], num_items_in_batch: Any = None
    ) -> Tensor:
        """Gradients of one optimizer step, in as many micro-batches as memory asks for.

        `inputs` are the step's row numbers. Returns the loss by labelled token; raises FtcliError
        (`loss_not_finite`).
        """
        model.train()
        self._before_step = random_state()
        where = f"step {self.state.global_step + 1}"
        own = inputs[self.args.process_index :: self.args.world_size]
        return self.micro_batch.do(
            lambda rows: self.gradients_of(self.divide(own, rows), where),
            self.forget_gradients,
            where,
        )

    def divide(self, window: list[int], most: int) -> list[list[int]]:
        """Rows of a step in micro-batches of at most so many rows."""
        ids = self.data.train.dataset[window]["input_ids"]
        parts = self.laying.divide(ids, most)
        return [[window[place] for place in part] for part in parts]

    def gradients_of(
        self, batches: list[list[int]], where: str, of: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Add up the gradients of these micro-batches' mean loss; returns that loss, detached.

        Where `of` names weights, theirs alone: the backward pass ends where they are. Raises
        FtcliError (`loss_not_finite`), in which `where` says what the micro-batches are of.
        """
        rows, model, device = self.data.train, self.model_wrapped, self.args.device
        laid = [self.laying.lay([rows.dataset[i] for i in batch]) for batch in batches]
        labelled = self._sum_of_all(torch.tensor(sum(batch.label_count for batch in laid)))
        losses = []
        with self._casts_kept(len(laid)):
            for number, batch in enumerate(laid, start=1):
                is_last = number == len(laid)
                synced = nullcontext() if is_last else self.accelerator.no_sync(model)
                # Checkpointing runs layers again in the backward pass.
                with synced, attention_for(self.model, batch.layout):
                    with self.compute_loss_context_manager():
                        loss = model(**vars(batch.to(device))) / labelled
                    with torch.autocast(device.type, enabled=False):
                        # DDP takes the mean of all processes' gradients.
                        self.accelerator.backward(loss * self.args.world_size, inputs=of)
                losses.append(loss.detach())
        require_finite_loss(losses, batches, rows, where)
        return self._sum_of_all(torch.stack(losses).sum())

    def _sum_of_all(self, figure: Tensor) -> Tensor:
        """Of all processes."""
        found: Tensor = self.accelerator.reduce(figure.to(self.args.device), reduction="sum")
        return found

    def _casts_kept(self, micro_batches: int) -> AbstractContextManager[Any]:
        """Where autocast keeps its casts of trained weights for all micro-batches of a step: it
        forgets them where its outermost context ends.

        Those of one micro-batch alone would be in the way at the end of its backward pass, and
        those of layers that are computed again in that of the layers before.
        """
        if micro_batches == 1 or self.args.gradient_checkpointing:
            return nullcontext()
        context: AbstractContextManager[Any] = self.compute_loss_context_manager()
        return context

    def forget_gradients(self) -> None:
        """Throw away what a step has gathered so far."""
        self.model.zero_grad(set_to_none=True)

    def back_to_step_start(self) -> None:
        """Undo what a step that came to nothing has changed: gradients and random generators."""
        self.forget_gradients()
        if self._before_step is not None:
            restore_random_state(self._before_step)

    def _get_grad_norm(self, model: PreTrainedModel, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16 scales the loss until gradients overflow, and leaves such steps out.
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):
            step = self.state.global_step
            window = self.data.windows[step]
            raise gradient_not_finite(float(norm), window, self.data.train, step + 1)
        return norm

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """accelerate puts autocast around the model's own forward, which our loss does not call."""
        return self.accelerator.autocast()

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it would want the tensors of the step."""
        return 0

    # Validation

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Token-weighted loss on the validation rows; nothing when a signal cut it short."""
        loss = self.validation_loss()
        if loss is None:
            self.control.should_save = self.control.should_training_stop = True
            return {}
        metrics = {"eval_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def tell_trackers(self, figures: dict[str, float | None]) -> None:
        """Give the trackers what is not part of the trainer's own log."""
        self.callback_handler.on_log(self.args, self.state, self.control, figures)

    def validation_loss(self) -> float | None:
        """Mean over the labelled tokens of all validation rows; none when a signal cut it short.

        Raises FtcliError (`loss_not_finite`).
        """
        rows = self.data.validation
        assert rows is not None
        self._before_step = None  # the step is done, and what comes to nothing now is no part of it
        order = rows.longest_first()
        total, tokens, done = 0.0, 0, 0
        while done < len(order):
            if self.stops is not None and self.stops.number is not None:
                return None
            some = order[done : done + self.validation_batch.rows]
            loss, labelled, scored = self.score(some)
            total, tokens, done = total + loss, tokens + labelled, done + scored
        return total / tokens

    def score(self, order: list[int]) -> tuple[float, int, int]:
        """Summed loss and labelled tokens of the first rows in `order`, and how many they were."""
        rows = self.data.validation
        assert rows is not None

        def some(count: int) -> tuple[float, int, int]:
            numbers = order[:count]
            scored = [rows.dataset[i] for i in numbers]
            total, tokens = 0.0, 0
            for part in self.laying.divide([row["input_ids"] for row in scored], count):
                batch = self.laying.lay([scored[place] for place in part])
                with self.compute_loss_context_manager():
                    losses, counts = row_losses(self.model, batch.to(self.args.device))
                named = [[numbers[place]] for place in part]
                require_finite_loss(list(losses), named, rows, "a validation")
                total += losses.double().sum().item()
                tokens += int(counts.sum())
            return total, tokens, len(numbers)

        self.model.eval()
        try:
            return self.validation_batch.do(some, lambda: None, "a validation")
        finally:
            self.model.train()

    # Checkpoints

    def position(self) -> Position:
        """Where in its run the training stands."""
        step = self.state.global_step
        return Position(
            run_id=self.run.read_manifest()["run_id"],
            step=step,
            rows_done=self.data.windows.rows_done(step),
            order=self.data.order_digest(),
            micro_batch=self.micro_batch.rows,
            validation_rows=self.validation_batch.rows,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            page_states(self.optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As Trainer does, but of the devices that are in use, not of all that are there."""
        if checkpoint is not None:
            with safe_globals():
                restore_random_state(torch.load(Path(checkpoint) / RANDOM, weights_only=True))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: PreTrainedModel | None = None
    ) -> None:
        """As Trainer does, but an adapter is read by its file's names and through no GPU that is
        left alone, and a prefix is trained by the network that makes it."""
        folder = Path(resume_from_checkpoint)
        if (encoder := prefix_encoder(self.model)) is not None:
            load_encoder(encoder, folder)
        elif isinstance(self.model, PeftModel):
            read_adapter(self.model, folder)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.hold is not None:
            self.hold.take_up(folder)

    def _save_checkpoint(self, model: PreTrainedModel, trial: object) -> None:
        position = self.position()
        require_space(self.run.path, self.checkpoint_bytes, "a checkpoint")
        started = time.monotonic()
        save_checkpoint(self, position, self.run.checkpoint(position.step))
        self.checkpoint_seconds = time.monotonic() - started
        self.run.update_manifest(saved_step=position.step)
        rotate(self.run, self.keep_checkpoints, self.state.best_global_step, position.step)
