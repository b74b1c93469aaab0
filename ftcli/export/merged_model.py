"""Merge a run's adapter into its base: measure the merged model, write it, read it back.

The trained model, the merged model and the model read back are in memory one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftcli.config.recipe import Qlora
from ftcli.console import Reporter
from ftcli.errors import ModelError
from ftcli.export.parity import (
    Prediction,
    Rows,
    WeightGroup,
    largest_activation,
    modules_with_weights,
    predictions_of,
)
from ftcli.inference.open_model import hardware_of, load_tuned_model
from ftcli.kernels.expert_stacks import expert_stacks
from ftcli.memory.architecture import NF4_BLOCK
from ftcli.memory.known_models import model_source
from ftcli.models.adapters import open_adapter
from ftcli.models.architectures.model_class import open_config
from ftcli.models.device import device_of, free_memory
from ftcli.models.files.older_readers import set_type, write_for_older_readers
from ftcli.models.files.quantized_files import DEQUANTISED, file_format
from ftcli.models.files.untrusted import copy_processor
from ftcli.models.load import DTYPES, load_base
from ftcli.models.prompt_manifest import generation_config
from ftcli.models.targets import shared_weight
from ftcli.models.text_forward import idle_modules
from ftcli.models.virtual_tokens import causal_model
from ftcli.shell import command
from ftcli.training.opening import OpenRun
from ftcli.training.plan.plan import Plan

# What torch says where a model computes a part in fp32, or an operation has no fp64.
FP64_REFUSED = ("dtype", "Double", "type float")
# As on the hub: fits any file system.
SHARD = "5GB"
# Memory besides the weights: one upcast weight, and the logits of a row.
ROOM_FACTOR = 1.2


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16`."""
    return str(dtype).removeprefix("torch.")


STORED_TYPES = {dtype_name(dtype): dtype for dtype in DTYPES.values()}


class Merger:
    """A run's merge, step by step: call the methods in their order, `measure_trained` first."""

    def __init__(self, opened: OpenRun, rows: Rows, reporter: Reporter) -> None:
        """Raises ModelError for a base whose files are quantised."""
        self._opened, self._rows, self._reporter = opened, rows, reporter
        self._recipe = opened.recipe
        self._source = model_source(self._recipe.model.id)
        self._hardware = hardware_of(opened)
        config = open_config(self._source, self._recipe.model.revision)
        if file_format(config) not in (None, *DEQUANTISED):
            raise ModelError(
                "merge_quantized",
                f"{self._source}: its files have quantised weights, in which an update would be "
                f"rounded away; use the adapter ({command('generate', opened.run.path, '…')}), or "
                "train on the unquantised model",
            )
        self._file_type = config.dtype if config.dtype in DTYPES.values() else torch.float32
        # The base's type in training, before quantisation.
        self._trained_type = DTYPES[Plan.read(opened.run.plan).model.dtype]
        fp32 = self._trained_type == torch.float32
        # The narrowest type with exactly these weights.
        self._base_type = self._file_type if fp32 else self._trained_type
        self._is_qlora = isinstance(self._recipe.method, Qlora)
        # 4-bit layers compute in fp32 at most, and GPUs are slow in fp64.
        fine = not self._is_qlora and self._hardware.kind == "cpu"
        self.compared_in = torch.float64 if fine else torch.float32
        self.largest_activation = 0.0
        """Of the merged model so far."""

    def types_to_try(self, dtype: str) -> tuple[str, ...]:
        """Types to store the weights in: `dtype`; `auto`: the files' type, fp16, fp32.

        fp16 has three more bits of precision than bf16.
        """
        if dtype != "auto":
            return (dtype_name(DTYPES[dtype]),)
        if self._file_type == torch.float32:
            return ("float32",)
        return tuple(dict.fromkeys((dtype_name(self._file_type), "float16", "float32")))

    def measure_trained(self) -> list[Prediction]:
        """Predictions of base + adapter as trained: a QLoRA run's base in 4 bits."""
        dtype = self._trained_type if self._is_qlora else self._base_type
        model = load_tuned_model(self._opened, dtype)
        self._prompt_format = model.prompt_format
        self._four_bit_layers = four_bit_layers(model.network)
        try:
            return self._predict(model.network, "base + adapter")
        except RuntimeError as error:
            # State spaces compute in fp32 whatever their weights are (transformers 5.24, Mamba 2).
            in_fp64 = self.compared_in == torch.float64
            if not (in_fp64 and any(word in str(error) for word in FP64_REFUSED)):
                raise
        self.compared_in = torch.float32
        return self._predict(model.network, "base + adapter")

    def open_base(self, *, original: bool) -> None:
        """Load base and adapter; `original`: without the rounding to 4 bits."""
        free_memory()
        method = self._recipe.method
        self._nf4 = None
        if isinstance(method, Qlora) and not original:
            self._nf4 = Nf4Config(
                layers=self._four_bit_layers,
                double_quantization=method.double_quantization,
                dtype=self._trained_type,
                device=device_of(self._hardware),
            )
        base = self._load(self._source, self._recipe.model, self._base_type)
        self._adapted: PeftModel = open_adapter(base, self._opened.run.adapter)

    def unmerged(self) -> list[Prediction]:
        """Predictions of the opened base with the adapter unmerged."""
        return self._predict(self._adapted, "base + adapter")

    def merged(self, stored: str | None) -> list[Prediction]:
        """Predictions of the merged model, its weights rounded to `stored`; None: not rounded."""
        label = "merged" if stored is None else f"merged, {stored}"
        dtype = STORED_TYPES[stored] if stored is not None else None
        groups = merged_groups(self._adapted, self.compared_in, dtype, self._nf4)
        with largest_activation(self._adapted) as largest:
            found = self._predict(self._adapted, label, groups)
        self.largest_activation = max(self.largest_activation, largest())
        return found

    def write(self, stored: str, folder: Path) -> None:
        """Merge and save what transformers needs; raises ModelError for NaN updates."""
        model = merge_adapter(self._adapted, STORED_TYPES[stored], self._nf4, self._reporter)
        del self._adapted
        tokenizer, prompt_format = self._prompt_format.renderer.tokenizer, self._prompt_format
        model.generation_config = generation_config(
            tokenizer, prompt_format.stop_ids, prompt_format.pad_id
        )
        save_merged(model, stored, folder)
        tokenizer.save_pretrained(folder)
        if idle_modules(model):
            copy_processor(self._source, self._recipe.model.revision, folder)
        write_for_older_readers(folder)

    def read_back(self, folder: Path) -> list[Prediction]:
        """Predictions of the model opened from the folder alone."""
        free_memory()
        model = self._recipe.model.model_copy(update={"revision": None})
        network = self._load(str(folder), model, open_config(str(folder), None).dtype)
        return self._predict(network, "read back")

    def _load(self, source: str, model: Any, dtype: torch.dtype) -> PreTrainedModel:
        """In evaluation mode, on the GPU if it fits."""
        attention = Plan.read(self._opened.run.plan).model.attention
        network = load_base(
            source,
            model,
            dtype=dtype,
            attention="sdpa" if attention == "flash" else attention,  # flash takes 16 bits only
            device=torch.device("cpu"),
        )
        needed = ROOM_FACTOR * sum(parameter.nbytes for parameter in network.parameters())
        free = hardware_of(self._opened).free_bytes
        return network.to(device_of(self._hardware)) if needed < free else network

    def _predict(
        self, network: PreTrainedModel, label: str, groups: Sequence[WeightGroup] | None = None
    ) -> list[Prediction]:
        predictions: list[Prediction] = []
        pad_id = self._prompt_format.pad_id
        with self._reporter.meter(label, len(self._rows)) as meter:
            for each in predictions_of(network, self._rows, pad_id, self.compared_in, groups):
                predictions.append(each)
                meter.update(len(predictions))
        return predictions


@dataclass(frozen=True)
class Nf4Config:
    """How the training quantised its base."""

    layers: frozenset[str]
    """Names in the base, of layers and of stacks of experts; without the head, which bitsandbytes
    does not quantise."""
    double_quantization: bool
    dtype: torch.dtype
    """Of the weights before quantisation."""
    device: torch.device


def four_bit_layers(model: PreTrainedModel) -> frozenset[str]:
    """Names of a model's 4-bit layers and stacks in the base, without PEFT's suffixes."""
    base = causal_model(model)
    layers = (name for name, module in base.named_modules() if _is_linear4bit(module))
    stacks = (stack.full_name for stack in expert_stacks(base) if stack.in_4_bits)
    return frozenset(map(_base_name, (*layers, *stacks)))


def _is_linear4bit(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit"


def _base_name(name: str) -> str:
    """A name in the base, without PEFT's wrappers."""
    return name.replace(".base_layer", "")


def layers_to_merge(adapted: PeftModel, nf4: Nf4Config | None) -> list[tuple[str, nn.Module]]:
    """The layers whose weights change: with an adapter, or quantised in training.

    A module of experts has an entry per stack, which ends in the stack's name.
    """
    quantised = nf4.layers if nf4 is not None else frozenset()
    found: dict[str, nn.Module] = {}
    for name, module in causal_model(adapted).named_modules():
        if isinstance(module, ParamWrapper):
            found[f"{_base_name(name)}.{module.parameter_name}"] = module
        elif isinstance(module, BaseTunerLayer) or name in quantised:
            found[name] = module
        for parameter, _ in module.named_parameters(recurse=False):
            if (stack := f"{_base_name(name)}.{parameter}") in quantised:
                found.setdefault(stack, module)
    return list(found.items())


def merge_adapter(
    adapted: PeftModel, stored: torch.dtype, nf4: Nf4Config | None, reporter: Reporter
) -> PreTrainedModel:
    """The base with the update added to its weights, all in one type; raises ModelError.

    `nf4` rounds the weights first, as the training did. Layers change one by one, so that only one
    copy of the weights is in memory.
    """
    if (shared := shared_weight(adapted)) is not None:
        raise ModelError(
            "merge_shared",
            f"{shared}, which can take the update of only one; use the adapter unmerged (ftcli "
            "generate)",
        )
    layers = layers_to_merge(adapted, nf4)
    with reporter.meter("merge", len(layers)) as meter:
        for done, (name, layer) in enumerate(layers, start=1):
            add_update(name, layer, nf4)
            weight = _weight(name, layer)
            weight.data = weight.data.to(stored)
            meter.update(done)
    return without_adapter(adapted, stored)


def _weight(name: str, layer: nn.Module) -> nn.Parameter:
    """The parameter that a merge changes: a layer's weight, or the stack that the name ends in."""
    base: Any = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    parameters = dict(base.named_parameters(recurse=False))
    stack = name.rsplit(".", 1)[-1]
    return parameters[stack if stack in parameters else "weight"]


def add_update(name: str, layer: nn.Module, nf4: Nf4Config | None) -> None:
    """Set a layer's weight to the trained base weight plus its update, in fp32.

    PEFT adds them; fp32, because it rounds the update to the weight's type first. Raises
    ModelError if the sum is NaN or infinite.
    """
    weight = _weight(name, layer)
    if nf4 is not None and name in nf4.layers:
        weight.data = nf4_round_trip(weight.data.to(nf4.dtype), nf4)
    weight.data = weight.data.float()
    if isinstance(layer, BaseTunerLayer):
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:  # safe_merge has found NaN or infinity
            raise ModelError("adapter_broken", f"{name}: its update is NaN or infinite") from error


def nf4_round_trip(weight: Tensor, nf4: Nf4Config) -> Tensor:
    """A weight [out, in] or [experts, out, in] quantised to 4 bits and back, in its own type and on
    its device."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # looks for CUDA, slowly

    packed, state = quantize_4bit(
        weight.contiguous().to(nf4.device),
        blocksize=NF4_BLOCK,
        compress_statistics=nf4.double_quantization,
        quant_type="nf4",
    )
    dequantised: Tensor = dequantize_4bit(packed, state)
    return dequantised.to(weight.device)


def without_adapter(adapted: PeftModel, stored: torch.dtype) -> PreTrainedModel:
    """The base with merged layers and fully trained modules, all in one type but for towers."""
    model: PreTrainedModel = adapted.unload()
    idle = {weight for module in idle_modules(model) for weight in module.parameters()}
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter not in idle:
            parameter.data = parameter.data.to(stored)
    # If only one of the tied embeddings was trained, the config must not tie them again.
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    for config in (model.config, model.config.get_text_config(decoder=True)):
        if head is not None and getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = head.weight.data_ptr() == words.weight.data_ptr()
    return model


def save_merged(model: PreTrainedModel, stored: str, folder: Path) -> None:
    """Save a merged model whose weights have the type `stored`, but for its towers."""
    model.save_pretrained(folder, max_shard_size=SHARD)
    if idle_modules(model):
        set_type(folder, stored)


def merged_groups(
    adapted: PeftModel, dtype: torch.dtype, stored: torch.dtype | None, nf4: Nf4Config | None
) -> list[WeightGroup]:
    """Weight groups that compute as the merged model, in `dtype`.

    Weights are rounded to `stored` first; None: not rounded.
    """
    layers = layers_to_merge(adapted, nf4)
    return [
        _MergedGroup(module, dtype, layers, stored, nf4)
        for module in modules_with_weights(causal_model(adapted))
    ]


class _MergedGroup(WeightGroup):
    """A group with its updates added to its weights; its adapters are off meanwhile."""

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        layers: Sequence[tuple[str, nn.Module]],
        stored: torch.dtype | None,
        nf4: Nf4Config | None,
    ) -> None:
        super().__init__(module, dtype)
        parts = {*module.modules()}
        self.layers = [(name, layer) for name, layer in layers if layer in parts]
        self.adapters = [each for each in parts if isinstance(each, BaseTunerLayer)]
        self.rounded_to, self.nf4 = stored, nf4

    def upcast(self, *_: object) -> None:
        self.stored = [(each, each.data) for each in self.module.parameters()]
        for name, layer in self.layers:
            add_update(name, layer, self.nf4)
        for adapter in self.adapters:
            if not adapter.merged:
                adapter.merged_adapters.extend(adapter.active_adapters)  # `unload` drops them
        for parameter, data in self.stored:
            if not data.is_floating_point():
                continue
            if self.rounded_to is not None:
                require_in_range(parameter.data, self.rounded_to)
                parameter.data = parameter.data.to(self.rounded_to)
            parameter.data = parameter.data.to(self.dtype)

    def restore(self, *_: object) -> None:
        super().restore()
        for adapter in self.adapters:
            adapter.merged_adapters.clear()


def require_in_range(weight: Tensor, stored: torch.dtype) -> None:
    """Raise ModelError for a weight beyond the type's range (fp16: 65,504)."""
    largest = weight.abs().max().item()
    if largest > torch.finfo(stored).max:
        raise ModelError(
            "merge_range",
            f"a weight of {largest:.3g} is too large for {dtype_name(stored)} "
            f"({torch.finfo(stored).max:.6g}); take --dtype bf16 or fp32",
        )
