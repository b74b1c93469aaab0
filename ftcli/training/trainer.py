"""TRL's SFTTrainer with whole optimizer steps as batches, our loss, validation and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
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

from ftcli.kernels.attention import attention_for
from ftcli.kernels.small_gpu import in_ram
from ftcli.memory.architecture import Architecture
from ftcli.models.adapters import load_encoder, prefix_encoder, read_adapter
from ftcli.models.loss import add_loss_to_forward, row_losses
from ftcli.models.methods import trainable_weights_restored
from ftcli.runs.atomic import require_space
from ftcli.runs.checkpoints import Position, rotate
from ftcli.runs.folder import RunFolder
from ftcli.runs.metrics_log import Records
from ftcli.runs.signals import StopSignals
from ftcli.training.checkpoint import (
    RANDOM,
    NotFiniteError,
    RandomState,
    load_weights,
    page_states,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from ftcli.training.collators import (
    Example,
    MicroBatch,
    OomRetry,
    Rows,
    TrainingData,
    split_micro_batches,
    training_collator,
)
from ftcli.training.l2_sp import L2SP
from ftcli.training.plan.plan import Plan

ADVICE = "check these rows, or lower training.learning_rate"
# Not on a CPU, where a step uses all cores.
READS_AHEAD = ("cuda",)
# Keys of the model's config that the libraries change.
CHANGED_KEYS = ("output_router_logits", "router_aux_loss_coef", "use_cache")


@dataclass(frozen=True)
class StepBatch:
    """The rows of one optimizer step, in micro-batches of at most `max_rows` rows."""

    examples: list[Example]
    max_rows: int
    micro_batches: list[MicroBatch]


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
        save_total_limit: int,
    ) -> None:
        self.data = data
        self.collator = training_collator(plan, data.pad_id)
        self.run = run
        self.records = Records(run.metrics)
        self.save_total_limit = save_total_limit
        self.oom_retry = OomRetry(plan.training.micro_batch_size)
        self.validation_retry = OomRetry(plan.training.micro_batch_size)
        self.offloads = plan.training.activation_offload
        self.stops: StopSignals | None = None
        self.architecture: Architecture
        """Set when it is built."""
        self.l2_sp: L2SP | None = None
        self.checkpoint_bytes = 0
        self.checkpoint_seconds = 0.0
        self._before_step: RandomState | None = None
        add_loss_to_forward(model)
        with trainable_weights_restored(model), _config_restored(model):
            super().__init__(
                model=model,
                args=config,
                train_dataset=data.train.dataset,
                data_collator=list,  # `get_train_dataloader` collates
                processing_class=tokenizer,
            )
        self.remove_callback(PrinterCallback)

    # Steps

    def create_optimizer(self, model: PreTrainedModel | None = None) -> Any:
        """Trainer's optimizer, with L2-SP's pull before each step."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.l2_sp is not None:
            self.l2_sp.attach(optimizer, self.model)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item per optimizer step: a StepBatch, or the future of one.

        accelerate fetches the next item before it yields the current one, so that a thread can read
        and collate the next step while this one computes.
        """
        thread = ThreadPoolExecutor(1) if self.args.device.type in READS_AHEAD else None

        def collate(rows: list[int]) -> dict[str, StepBatch | Future[StepBatch]]:
            if thread is None:
                return {"step": self.collate_step(rows)}
            return {"step": thread.submit(self.collate_step, rows)}

        rows = range(len(self.data.train.dataset))
        return DataLoader(rows, batch_sampler=self.data.sampler, collate_fn=collate)  # type: ignore[arg-type]

    def collate_step(self, rows: Sequence[int]) -> StepBatch:
        """The rows of one step that this process trains on, read and collated."""
        own = rows[self.args.process_index :: self.args.world_size]
        examples, max_rows = self.data.train.read(own), self.oom_retry.rows
        return StepBatch(examples, max_rows, self.split_micro_batches(examples, max_rows))

    def split_micro_batches(self, examples: Sequence[Example], max_rows: int) -> list[MicroBatch]:
        """Micro-batches of at most `max_rows` rows, collated as planned; in pinned memory for a
        GPU."""
        found = split_micro_batches(examples, max_rows, self.collator)
        if self.args.device.type != "cuda":
            return found
        return [replace(each, inputs=each.inputs.pinned()) for each in found]

    def training_step(
        self,
        model: PreTrainedModel,
        inputs: dict[str, StepBatch | Future[StepBatch]],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Gradients of one optimizer step; micro-batches are halved if memory runs out.

        Returns the loss per label token; raises FtcliError (`loss_not_finite`).
        """
        model.train()
        self._before_step = random_state()
        where, step = f"step {self.state.global_step + 1}", inputs["step"]
        batch = step.result() if isinstance(step, Future) else step

        def attempt(max_rows: int) -> Tensor:
            if max_rows == batch.max_rows:
                return self.forward_backward(batch.micro_batches, where)
            return self.forward_backward(self.split_micro_batches(batch.examples, max_rows), where)

        return self.oom_retry.run(attempt, self.zero_grad, where)

    def forward_backward(
        self, micro_batches: Sequence[MicroBatch], where: str, of: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Accumulate the gradients of the micro-batches' mean loss; returns that loss, detached.

        With `of`, only the gradients of these weights: the backward pass ends there. Raises
        FtcliError (`loss_not_finite`), in which `where` names the step.
        """
        model, device = self.model_wrapped, self.args.device
        label_tokens = self._label_tokens(micro_batches)
        losses = []
        with self._autocast_cache(len(micro_batches)):
            for number, micro_batch in enumerate(micro_batches, start=1):
                is_last, inputs = number == len(micro_batches), micro_batch.inputs
                synced = nullcontext() if is_last else self.accelerator.no_sync(model)
                # Also in the backward pass, where checkpointing runs layers again.
                with synced, attention_for(self.model, inputs.layout):
                    with self.compute_loss_context_manager(), self._offload():
                        loss = model(**vars(inputs.to(device))) / label_tokens
                    with torch.autocast(device.type, enabled=False):
                        # DDP averages the gradients of all processes.
                        self.accelerator.backward(loss * self.args.world_size, inputs=of)
                losses.append(loss.detach())
        rows = [micro_batch.rows for micro_batch in micro_batches]
        _require_finite_loss(losses, rows, self.data.train, where)
        return self._sum_over_processes(torch.stack(losses).sum())

    def _label_tokens(self, micro_batches: Sequence[MicroBatch]) -> int | Tensor:
        """Of all processes."""
        own = sum(micro_batch.inputs.label_count for micro_batch in micro_batches)
        # A number of one process needs no copy to the GPU.
        return own if self.args.world_size == 1 else self._sum_over_processes(torch.tensor(own))

    def _sum_over_processes(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value.to(self.args.device), reduction="sum")
        return total

    def _autocast_cache(self, micro_batches: int) -> AbstractContextManager[Any]:
        """Keep autocast's weight cache alive across the step's micro-batches.

        autocast clears it when its outermost context ends. Casts for one micro-batch alone would
        take memory at the end of its backward pass, and with checkpointing in the middle of it.
        """
        if micro_batches == 1 or self.args.gradient_checkpointing:
            return nullcontext()
        context: AbstractContextManager[Any] = self.compute_loss_context_manager()
        return context

    def _offload(self) -> AbstractContextManager[Any]:
        """Only around the forward pass: in the backward pass layers run again on the GPU."""
        return in_ram(self.architecture.hidden) if self.offloads else nullcontext()

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def back_to_step_start(self) -> None:
        """Undo a failed step: its gradients, and the state of random generators."""
        self.zero_grad()
        if self._before_step is not None:
            restore_random_state(self._before_step)

    def _get_grad_norm(self, model: PreTrainedModel, grad_norm: Any = None) -> Any:
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))  # read once from a GPU
        # fp16 scales the loss until gradients overflow, and skips such steps.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            step = self.state.global_step
            rows = self.data.train.names(self.data.sampler[step])
            raise NotFiniteError(
                f"the gradient became {norm} in step {step + 1}, before any weight was "
                f"changed, on {rows}; {ADVICE}"
            )
        return norm

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """accelerate wraps only the model's own forward in autocast, which our loss replaces."""
        return self.accelerator.autocast()

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: Trainer would need the tensors of the step."""
        return 0

    # Validation

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Token-weighted loss on the validation rows; empty if a signal interrupted it."""
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

    def log_to_trackers(self, figures: dict[str, float | None]) -> None:
        """Log figures that are not part of the trainer's own log."""
        self.callback_handler.on_log(self.args, self.state, self.control, figures)

    def validation_loss(self) -> float | None:
        """Mean over the label tokens of all validation rows; None if a signal interrupted it.

        Raises FtcliError (`loss_not_finite`).
        """
        rows = self.data.validation
        assert rows is not None
        self._before_step = None  # a validation that fails must not undo the step before
        order = rows.longest_first()
        total, label_tokens, done = 0.0, 0, 0
        while done < len(order):
            if self.stops is not None and self.stops.number is not None:
                return None
            loss, labels, scored = self.score(order[done : done + self.validation_retry.rows])
            total, label_tokens, done = total + loss, label_tokens + labels, done + scored
        return total / label_tokens

    def score(self, order: list[int]) -> tuple[float, int, int]:
        """Summed loss and label tokens of the first rows in `order`, and their number."""
        rows = self.data.validation
        assert rows is not None

        def attempt(count: int) -> tuple[float, int, int]:
            total, tokens = 0.0, 0
            for batch in self.split_micro_batches(rows.read(order[:count]), count):
                with self.compute_loss_context_manager():
                    losses, counts = row_losses(self.model, batch.inputs.to(self.args.device))
                each = [[row] for row in batch.rows]
                _require_finite_loss(list(losses), each, rows, "a validation")
                total += losses.double().sum().item()
                tokens += int(counts.sum())
            return total, tokens, min(count, len(order))

        self.model.eval()
        try:
            return self.validation_retry.run(attempt, lambda: None, "a validation")
        finally:
            self.model.train()

    # Checkpoints

    def position(self) -> Position:
        """The position of the current step in its run."""
        step = self.state.global_step
        return Position(
            run_id=self.run.read_manifest()["run_id"],
            step=step,
            rows_done=self.data.sampler.rows_done(step),
            order=self.data.order_digest,
            micro_batch=self.oom_retry.rows,
            validation_rows=self.validation_retry.rows,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            page_states(self.optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As Trainer does, but only for the devices in use."""
        if checkpoint is not None:
            with safe_globals():
                restore_random_state(torch.load(Path(checkpoint) / RANDOM, weights_only=True))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: PreTrainedModel | None = None
    ) -> None:
        """As Trainer does, but a missing weight is an error, an adapter is read by its file's names
        and through no unused GPU, and a prefix with `projection` is loaded with its MLP."""
        folder = Path(resume_from_checkpoint)
        if (encoder := prefix_encoder(self.model)) is not None:
            load_encoder(encoder, folder)
        elif isinstance(self.model, PeftModel):
            read_adapter(self.model, folder)
        else:
            load_weights(self.model, folder)
        if self.l2_sp is not None:
            self.l2_sp.load(folder)

    def _save_checkpoint(self, model: PreTrainedModel, trial: object) -> None:
        position = self.position()
        require_space(self.run.path, self.checkpoint_bytes, "a checkpoint")
        started = time.monotonic()
        save_checkpoint(self, position, self.run.checkpoint(position.step))
        self.checkpoint_seconds = time.monotonic() - started
        self.run.update_manifest(saved_step=position.step)
        rotate(self.run, self.save_total_limit, self.state.best_global_step, position.step)


@contextmanager
def _config_restored(model: PreTrainedModel) -> Iterator[None]:
    """Restore the config after the block: a full model is saved with it.

    TRL 1.16 turns `output_router_logits` on, for an auxiliary loss that ours has not, and Trainer
    turns `use_cache` off.
    """
    configs = [model.config, model.config.get_text_config()]
    before = [{key: vars(each).get(key) for key in CHANGED_KEYS} for each in configs]
    yield
    for config, values in zip(configs, before, strict=True):
        vars(config).update({key: value for key, value in values.items() if value is not None})


def _require_finite_loss(
    losses: Sequence[Tensor], batches: Sequence[Sequence[int]], rows: Rows, where: str
) -> None:
    """Raise NotFiniteError naming the rows of the batches with a NaN or infinite loss.

    `losses` are scalars, one for each batch of row numbers.
    """
    if bool(torch.isfinite(torch.stack(list(losses))).all()):
        return
    bad = [i for i, loss in enumerate(losses) if not torch.isfinite(loss)]
    loss = losses[bad[0]].item()
    named = rows.names(row for i in bad for row in batches[i])
    raise NotFiniteError(
        f"the loss became {loss} in {where}, before any weight was changed, on {named}; {ADVICE}"
    )
