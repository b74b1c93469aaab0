"""Open what a run trained, or the base it started from, for eval, merge and generate."""

from __future__ import annotations

from typing import Any, assert_never

import torch

from ftcli.config.loader import Loaded
from ftcli.config.recipe import Adapter, Full, Lora, Prefix, Prompt, Qlora
from ftcli.data.prepared import Prepared
from ftcli.inference.generation import Model
from ftcli.kernels.cpu import end_gc_tuning, tune_cpu
from ftcli.memory.hardware import Hardware
from ftcli.memory.shapes import model_source
from ftcli.models.adapters import open_adapter
from ftcli.models.device import device_of, hardware_for
from ftcli.models.load import compute_dtype, load_base
from ftcli.models.methods import quantization
from ftcli.models.prompt_manifest import verified_base, verify_run
from ftcli.runs.folder import RunFolder
from ftcli.training.plan.plan import Plan


def load_base_model(loaded: Loaded, run: RunFolder, prepared: Prepared) -> Model:
    """The base that the run started from, with the run's tokenizer and template."""
    contract, hardware = verify_run(loaded, run, prepared), _hardware(loaded)
    base = _base(loaded, run, hardware, inference_dtype(run, hardware))
    return Model(base, contract, loaded.recipe.training.fast is not False)


def load_tuned_model(
    loaded: Loaded, run: RunFolder, prepared: Prepared, dtype: torch.dtype | None = None
) -> Model:
    """The trained model: the base with the run's adapter, or the run's own model."""
    contract, hardware = verify_run(loaded, run, prepared), _hardware(loaded)
    dtype = dtype or inference_dtype(run, hardware)
    match loaded.recipe.method:
        case Full():
            network = load_base(
                str(run.model),
                loaded.recipe.model,
                dtype=dtype,
                attention=_attention(run, hardware),
                device=device_of(hardware),
            )
        case Lora() | Qlora() | Adapter() | Prefix() | Prompt():
            network = open_adapter(_base(loaded, run, hardware, dtype), run.adapter)
        case _:
            assert_never(loaded.recipe.method)
    return Model(network, contract, loaded.recipe.training.fast is not False)


def inference_dtype(run: RunFolder, hardware: Hardware) -> torch.dtype:
    """The training's arithmetic, or fp32 where the CPU emulates bf16."""
    if hardware.kind == "cpu" and not hardware.fast_bf16:
        return torch.float32
    return compute_dtype(Plan.read(run.plan).training.precision)


def held_as(loaded: Loaded, run: RunFolder) -> str:
    """Type and machine in which the run's models answer here: `torch.bfloat16 on NVIDIA …`."""
    hardware = hardware_for(loaded)
    return f"{inference_dtype(run, hardware)} on {hardware.name}"


def _hardware(loaded: Loaded) -> Hardware:
    end_gc_tuning()  # all that is heavy has been imported, and no model is loaded yet
    hardware = hardware_for(loaded)
    tune_cpu(hardware)
    return hardware


def _base(loaded: Loaded, run: RunFolder, hardware: Hardware, dtype: torch.dtype) -> Any:
    """The base in the run's precision; raises FtcliError if it has changed since the training."""
    model = loaded.recipe.model
    source = model_source(model.id, loaded.base)
    with verified_base([run], source, model.revision):
        return load_base(
            source,
            model,
            dtype=dtype,
            attention=_attention(run, hardware),
            device=device_of(hardware),
            quantization=quantization(loaded.recipe.method, dtype),
        )


def _attention(run: RunFolder, hardware: Hardware) -> str:
    """The training's attention; flash attention runs on GPUs alone."""
    attention = Plan.read(run.plan).model.attention
    return "sdpa" if attention == "flash" and hardware.kind == "cpu" else attention
