"""Whole optimizer steps of ftcli on a pretended GPU, and what of them a card would feel."""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, PreTrainedModel, TrainerCallback
from transformers.initialization import no_init_weights
from transformers.utils.quantization_config import BitsAndBytesConfig

from ftcli.cli.train.train_recipe import open_recipe, plan_job, prepare_rows
from ftcli.config.loader import load_recipe
from ftcli.console import Terminal
from ftcli.kernels.experts import use_own_experts
from ftcli.kernels.small_gpu import keep_ends_in_ram
from ftcli.memory.hardware import find_card
from ftcli.models import device, text_forward
from ftcli.models.architectures.find import architecture_of_config
from ftcli.models.architectures.model_class import mend_text_forward, model_class
from ftcli.models.device import repeat_keys_if_needed
from ftcli.models.methods import keep_four_bit_trainable
from ftcli.runs.folder import RunFolder
from ftcli.runs.signals import StopSignals
from ftcli.training import building
from ftcli.training.callbacks import ScheduleCallback
from ftcli.training.job import TrainJob
from ftcli.training.trainer import FtcliTrainer
from tests.card.pretended import is_pinned, mark_pinned

STEPS = 3
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmm_", "baddbmm_", "_grouped_mm")
FUSED = ("flash", "varlen", "attention", "bitsandbytes", "fused_adam", "multi_tensor")
CHOSEN_ROWS = (
    "index",
    "index_select",
    "gather",
    "embedding",
    "scatter_",
    "index_put_",
    "index_add_",
)
# Operations that give a tensor without reading or writing its numbers.
NO_LAUNCH = (
    "empty",
    "detach",
    "alias",
    "lift_fresh",
    "set_",
    "device",
    "_unsafe_view",
    "resize_",
    "new_empty",
)


@dataclass
class Counts:
    """What happened in some steps."""

    launches: int = 0
    """Operations on the GPU but for views."""
    moved: Counter[str] = field(default_factory=Counter)
    """Bytes read and written by operations that are neither products nor fused, by name."""
    product_flops: int = 0
    """Of matrix products, attention's own kernel not included."""
    syncs: list[str] = field(default_factory=list)
    """Where the host waited for the GPU: `aten.op at file:line`."""
    copies: list[str] = field(default_factory=list)
    """Copies from the host that it waits for."""
    strays: list[str] = field(default_factory=list)
    """Operations that read tensors of the host together with those of the GPU."""
    on_host: list[str] = field(default_factory=list)
    product_types: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)


class Watch(TorchDispatchMode):
    """Counts into `counts`; a number that is read from the GPU is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on_gpu = [each for each in read if each.device.type == "cuda"]
        if name == "_local_scalar_dense":  # a number that Python reads
            if on_gpu:
                self.counts.syncs.append(f"{name} at {_where()}")
            return _one(read[0].dtype)
        found = func(*args, **(kwargs or {}))
        if (kwargs or {}).get("pin_memory"):
            mark_pinned(found)
        if name == "copy_" and len(args) > 2:
            kwargs = {"non_blocking": args[2]}
        made = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        if on_gpu or any(each.device.type == "cuda" for each in made):
            self._count(name, func, read, on_gpu, made, kwargs or {})
        return found

    def _copy(self, name: str, read: list[Tensor], made: Tensor, non_blocking: bool) -> None:
        """A copy between host and GPU; the host waits for one of memory that is not pinned."""
        to_host = made.device.type == "cpu"
        on_host = next(each for each in (made, *read) if each.device.type == "cpu")
        waits = not (non_blocking and is_pinned(on_host))
        if waits and made.numel() and (to_host or read[-1].dim()):
            kept = self.counts.syncs if to_host else self.counts.copies
            kept.append(f"{name} at {_where()}")

    def _count(
        self,
        name: str,
        func: Any,
        read: list[Tensor],
        on_gpu: list[Tensor],
        made: list[Tensor],
        keywords: Mapping[str, Any],
    ) -> None:
        counts = self.counts
        is_copy = name in ("_to_copy", "copy_")
        if is_copy and len({each.device.type for each in (*read, *made)}) == 2:
            self._copy(name, read, made[0], bool(keywords.get("non_blocking")))
            return
        if any(each.device.type == "cpu" and each.dim() for each in read):
            counts.strays.append(f"{name} at {_where()}")
        inputs = {id(each.untyped_storage()) for each in read}
        is_view = not func._schema.is_mutable and all(
            id(each.untyped_storage()) in inputs for each in made
        )
        if name.startswith(NO_LAUNCH) or (is_view and made):
            return
        counts.launches += 1
        counts.names[name] += 1
        counts.product_flops += _flops(name, on_gpu, made)
        if name in PRODUCTS:
            counts.product_types[str(on_gpu[0].dtype).removeprefix("torch.")] += 1
        elif not any(each in f"{func.namespace}.{name}" for each in FUSED):
            counts.moved[name] += _moved(name, on_gpu, made)


def _flops(name: str, read: list[Tensor], made: list[Tensor]) -> int:
    """Of a product, also of one with a 4-bit weight."""
    if name not in (*PRODUCTS, "gemm_4bit"):
        return 0
    inner = read[1 if name.startswith("addmm") else 0].shape[-1]
    return 2 * inner * (made or read)[0].numel()


def _moved(name: str, read: list[Tensor], made: list[Tensor]) -> int:
    """Bytes that an operation reads and writes; of a table it reads or writes chosen rows only."""
    if name in CHOSEN_ROWS:
        return 2 * min(map(_bytes, (*made, *(each for each in read if each.is_floating_point()))))
    return sum(map(_bytes, (*read, *(made or read[:1]))))


def _bytes(tensor: Tensor) -> int:
    """Bytes of the elements: an expanded dimension is read once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride or length == 1 else 1
    return size


def _one(dtype: torch.dtype) -> Any:
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


def _where() -> str:
    """The innermost line of ftcli, and the innermost line of a library above it."""
    frames = [each for each in traceback.extract_stack() if "torch/_" not in each.filename][:-3]
    own = [each for each in frames if "/ftcli/" in each.filename]
    shown = [frames[-1], *own[-1:]]
    return " in ".join(f"{Path(each.filename).name}:{each.lineno}" for each in shown)


@contextmanager
def base_without_weights() -> Iterator[None]:
    """ftcli trains a base of fake tensors instead of loading one."""
    with mock.patch.object(building, "load_base", _base):
        yield


def _base(
    source: str,
    model: Any,
    *,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
    embedding_offload: bool = False,
) -> PreTrainedModel:
    """As `load_base`, from the config alone."""
    repeat_keys_if_needed(device)
    config = AutoConfig.from_pretrained(source)
    kind: Any = model_class(config)
    with no_init_weights(), torch.device(device):
        base: PreTrainedModel = kind.from_config(config, dtype=dtype, attn_implementation=attention)
    base.tie_weights()
    mend_text_forward(base)
    if quantization is not None:
        _quantise(base, quantization)
    use_own_experts(base)
    if embedding_offload:
        for module in (base.get_input_embeddings(), base.get_output_embeddings()):
            module.weight = nn.Parameter(torch.empty_like(module.weight, device="cpu"))
        keep_ends_in_ram(base, device)
    keep_four_bit_trainable(base)
    softcap = getattr(config, "final_logit_softcapping", None)
    text_forward._KNOWN[base] = text_forward.TextForward(
        "lm_head", "model", 1.0, 1.0, softcap, (), ()
    )
    return base.eval()


def _quantise(base: PreTrainedModel, quantization: BitsAndBytesConfig) -> None:
    names = [n for n, each in architecture_of_config(base.config).linear_names() if each.quantises]
    for name in names:
        above, _, last = name.rpartition(".")
        layer = _four_bit(base.get_submodule(name), quantization)
        setattr(base.get_submodule(above), last, layer)
    base.is_loaded_in_4bit = True


def _four_bit(linear: nn.Module, quantization: BitsAndBytesConfig) -> Linear4bit:
    """A layer of bitsandbytes whose weight is no Params4bit, which refuses fake tensors."""
    double, kind = quantization.bnb_4bit_use_double_quant, quantization.bnb_4bit_quant_type
    data, state = quantize_4bit(linear.weight, compress_statistics=double, quant_type=kind)
    layer: Any = Linear4bit.__new__(Linear4bit)
    nn.Module.__init__(layer)
    layer.in_features, layer.out_features = linear.in_features, linear.out_features
    layer.compute_dtype, layer.compute_type_is_set = quantization.bnb_4bit_compute_dtype, True
    layer.weight, layer.bias = nn.Parameter(data, requires_grad=False), linear.bias
    layer.weight.quant_state = layer.quant_state = state
    layer.weight.compress_statistics, layer.weight.quant_type = double, kind
    return layer


def fake_job(recipe: Path, run: Path, card: str = "RTX 4090") -> TrainJob:
    """A recipe planned for a card, without Liger, whose kernels need values; its rows are prepared
    for real."""
    loaded = load_recipe(recipe, ())
    hardware = replace(find_card(card).hardware, kernels=frozenset())
    with mock.patch.object(device, "hardware_for", lambda _: hardware):
        loaded, model = open_recipe(loaded, None)
    folder = RunFolder(run)
    dataset = prepare_rows(loaded, model, folder, Terminal())
    return plan_job(loaded, model, dataset, folder)


def take_steps(
    job: TrainJob, steps: int = STEPS, watched: list[weakref.ref[nn.Module]] | None = None
) -> list[Counts]:
    """Counts of each step of a training loop without validation and saves; `watched` gets the
    model."""
    counted: list[Counts] = []
    watch = Watch()
    with base_without_weights(), torch.device("cuda"), watch:
        trainer = building.build_trainer(job)
    watch.counts = Counts()
    if watched is not None:
        watched.append(weakref.ref(trainer.model))

    class EachStep(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            counted.append(watch.counts)
            watch.counts = Counts()

    if watched is not None:
        watched.append(weakref.ref(trainer.model))

    trainer.add_callback(_schedule(trainer, job))
    trainer.add_callback(EachStep())
    trainer._save_checkpoint = lambda *_: None
    with watch:
        trainer.train()
    return [*counted[1:], watch.counts][:steps]


def _schedule(trainer: FtcliTrainer, job: TrainJob) -> ScheduleCallback:
    return ScheduleCallback(trainer, job.recipe.training, job.plan, StopSignals(lambda _: None))
