"""Load a run's base or trained model for eval, merge and generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

import torch
from transformers import BitsAndBytesConfig

from ftcli.config.recipe import Bottleneck, Full, Lora, PrefixTuning, PromptTuning, Qlora, Recipe
from ftcli.data.example import Message, RowError
from ftcli.data.prompts import without_system
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.inference.generation import Model
from ftcli.kernels.cpu import end_gc_tuning, tune_cpu
from ftcli.memory.hardware import Hardware
from ftcli.memory.known_models import model_source
from ftcli.models.adapters import open_adapter
from ftcli.models.architectures.find import find_architecture
from ftcli.models.device import device_of, hardware_for
from ftcli.models.files.base_files import require_weights
from ftcli.models.load import compute_dtype, load_base
from ftcli.models.methods import quantization
from ftcli.models.prompt_manifest import PromptFormat, verified_base, verify_run
from ftcli.training.opening import OpenRun
from ftcli.training.plan.decide import choose_attention, choose_precision
from ftcli.training.plan.plan import Plan


def load_base_model(opened: OpenRun) -> Model:
    """The base that a run started from, with the run's tokenizer and template."""
    prompt_format = verify_run(opened.recipe, opened.run, opened.prepared)
    network = _base(opened, inference_dtype(opened))
    return Model(network, prompt_format, opened.recipe.training.optimizations != "off")


def load_tuned_model(opened: OpenRun, dtype: torch.dtype | None = None) -> Model:
    """The trained model: the base with the run's adapter, or the run's own model."""
    prompt_format = verify_run(opened.recipe, opened.run, opened.prepared)
    dtype = dtype or inference_dtype(opened)
    recipe = opened.recipe
    match recipe.method:
        case Full():
            network = _load(str(opened.run.model), opened, dtype, None)
        case Lora() | Qlora() | Bottleneck() | PrefixTuning() | PromptTuning():
            network = open_adapter(_base(opened, dtype), opened.run.adapter)
        case _:
            assert_never(recipe.method)
    return Model(network, prompt_format, recipe.training.optimizations != "off")


def _base(opened: OpenRun, dtype: torch.dtype) -> Any:
    """The base in the run's precision; raises FtcliError if it has changed since the training."""
    recipe = opened.recipe
    source = model_source(recipe.model.id)
    with verified_base([opened.run], source, recipe.model.revision):
        return _load(source, opened, dtype, quantization(recipe.method, dtype))


def _load(
    source: str, opened: OpenRun, dtype: torch.dtype, quantized: BitsAndBytesConfig | None
) -> Any:
    end_gc_tuning()  # the libraries are imported, and no model is loaded yet
    hardware = hardware_of(opened)
    tune_cpu(hardware)
    plan = Plan.read(opened.run.plan)
    attention, on_gpu = plan.model.attention, hardware.kind == "cuda"
    if attention == "flash" and hardware.kind == "cpu":
        attention = "sdpa"  # flash attention needs a GPU
    return load_base(
        source,
        opened.recipe.model,
        dtype=dtype,
        attention=attention,
        device=device_of(hardware),
        quantization=quantized,
        embedding_offload=plan.training.embedding_offload and on_gpu,
    )


def hardware_of(opened: OpenRun) -> Hardware:
    """The device that a run's model uses here; raises MachineError at the recipe's key."""
    with opened.file.locate():
        return hardware_for(opened.recipe)


def inference_dtype(opened: OpenRun) -> torch.dtype:
    """The type of a run's models here: as in training, or fp32 if a CPU emulates bf16."""
    hardware = hardware_of(opened)
    if hardware.kind == "cpu" and not hardware.fast_bf16:
        return torch.float32
    return compute_dtype(Plan.read(opened.run.plan).training.precision)


def dtype_and_device(opened: OpenRun) -> str:
    """Type and device of a run's models here: `torch.bfloat16 on NVIDIA …`."""
    return f"{inference_dtype(opened)} on {hardware_of(opened).name}"


def load_untrained(recipe: Recipe, renderer: Renderer) -> Model:
    """The base, as a training of this recipe would load it; raises ModelError, MachineError."""
    model = recipe.model
    source = model_source(model.id)
    architecture = find_architecture(model.id, model.revision)
    hardware = hardware_for(recipe)
    tune_cpu(hardware)
    require_weights(source, model.revision, architecture)
    dtype = compute_dtype(choose_precision(recipe, hardware)[0])
    network = load_base(
        source,
        model,
        dtype=dtype,
        attention=choose_attention(recipe, architecture, hardware)[0],
        device=device_of(hardware),
        quantization=quantization(recipe.method, dtype),
    )
    return Model(network, PromptFormat(renderer, renderer.stop_ids, renderer.pad_id))


def ids_of(renderer: Renderer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a prompt; if the template has no system turn, it goes into the first user turn.

    Raises RowError.
    """
    try:
        return renderer.prompt_ids(messages)
    except RowError:
        if not messages or messages[0].role != "system":
            raise
    return renderer.prompt_ids(without_system(messages))
