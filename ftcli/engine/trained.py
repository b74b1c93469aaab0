"""Open what a run has trained, for eval, merge and generate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ftcli.artifacts import RunFolder
from ftcli.engine.adapters import open_adapter
from ftcli.engine.device import device_of, find_hardware, use_whole_machine
from ftcli.engine.inference import Model, PromptContract
from ftcli.engine.methods import quantization
from ftcli.engine.model import (
    DTYPES,
    compute_dtype,
    load_base,
    load_tokenizer,
    open_config,
    renderer_of,
)
from ftcli.hardware import Hardware
from ftcli.loading import Loaded
from ftcli.prepared import Prepared
from ftcli.recipe import Adapter, Full, Lora, Prefix, Prompt, Qlora
from ftcli.shapes import model_source


def load_base_model(loaded: Loaded, run: RunFolder, prepared: Prepared) -> Model:
    """The base that the run started from, with the run's tokenizer and template."""
    hardware = _hardware()
    dtype = inference_dtype(run, hardware)
    source = model_source(loaded.recipe.model.id, loaded.base)
    base = _base(loaded, run, source, hardware, dtype, quantization(loaded.recipe.method, dtype))
    return _ready(base, loaded, run, prepared)


def load_tuned_model(
    loaded: Loaded, run: RunFolder, prepared: Prepared, dtype: torch.dtype | None = None
) -> Model:
    """The trained model: the base with the run's adapter, or the run's own model."""
    hardware = _hardware()
    dtype = dtype or inference_dtype(run, hardware)
    match loaded.recipe.method:
        case Full():
            network: Any = _base(loaded, run, str(run.model), hardware, dtype, None)
        case Lora() | Qlora() | Adapter() | Prefix() | Prompt():
            source = model_source(loaded.recipe.model.id, loaded.base)
            base = _base(
                loaded, run, source, hardware, dtype, quantization(loaded.recipe.method, dtype)
            )
            network = open_adapter(base, run.adapter)
        case _:
            assert_never(loaded.recipe.method)
    return _ready(network, loaded, run, prepared)


def merge_dtype(loaded: Loaded, asked: str) -> torch.dtype:
    """The type asked for, or for `auto` that of the base's files."""
    if asked != "auto":
        return DTYPES[asked]
    source = model_source(loaded.recipe.model.id, loaded.base)
    return open_config(source, loaded.recipe.model.revision).dtype or torch.float32


def load_to_merge(loaded: Loaded, run: RunFolder, wanted: torch.dtype, *, original: bool) -> Any:
    """The adapter on a base that it can be folded into, in the type the merged model will have.

    A 4-bit base is dequantised first: PEFT's own merge would quantise the sum again. `original`
    takes the unquantised base, which the adapter was not trained on.
    """
    hardware = _hardware()
    source = model_source(loaded.recipe.model.id, loaded.base)
    plan = Lora(mode="lora") if original else loaded.recipe.method
    base = _base(loaded, run, source, hardware, wanted, quantization(plan, wanted))
    if isinstance(plan, Qlora):
        base = base.dequantize().to(wanted)
    return open_adapter(base, run.adapter)


def open_merged(folder: Path, contract: PromptContract) -> Model:
    """A merged model read back from disk, with nothing but the folder, in its own type."""
    hardware = _hardware()
    network = AutoModelForCausalLM.from_pretrained(folder).to(device_of(hardware))
    return Model(network, contract)


def inference_dtype(run: RunFolder, hardware: Hardware) -> torch.dtype:
    """The training's arithmetic, or fp32 where 16 bits are emulated."""
    if hardware.kind == "cpu" and not hardware.fast_bf16:
        return torch.float32
    return compute_dtype(_planned(run, "precision"))


def _planned(run: RunFolder, name: str) -> str:
    """A decision of the run's plan."""
    return str(json.loads(run.plan.read_text(encoding="utf-8"))[name]["value"])


def prompts_of(model: Model, messages: Sequence[Sequence[Any]]) -> list[list[int]]:
    """Token ids of prompts, exactly as the training rows began."""
    return [model.contract.renderer.prompt_ids(list(turns)) for turns in messages]


def _hardware() -> Hardware:
    hardware = find_hardware()
    use_whole_machine(hardware)
    return hardware


def _base(
    loaded: Loaded,
    run: RunFolder,
    source: str,
    hardware: Hardware,
    dtype: torch.dtype,
    quantized: BitsAndBytesConfig | None,
) -> Any:
    attention = _planned(run, "attention")
    return load_base(
        source,
        loaded.recipe.model,
        dtype=dtype,
        attention="sdpa" if attention == "flash" and hardware.kind == "cpu" else attention,
        device=device_of(hardware),
        quantization=quantized,
    )


def _ready(network: Any, loaded: Loaded, run: RunFolder, prepared: Prepared) -> Model:
    tokenizer = load_tokenizer(str(run.trained()))
    renderer = renderer_of(tokenizer, loaded.recipe.data)
    return Model(network, PromptContract(renderer, prepared.stop_ids, prepared.pad_id))
