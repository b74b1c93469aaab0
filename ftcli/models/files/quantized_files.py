"""Checkpoints whose files are quantised: weights in 16 bits when they are loaded, or refused.

An update would be rounded away in such files, and most of their kernels have no gradient. What
ftcli writes of such a model has 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from ftcli.errors import ModelError

# Formats that transformers 5.24 dequantises on loading (utils/quantization_config.py: dequantize).
DEQUANTISED = ("mxfp4", "fp8", "mxfp8", "compressed-tensors")


def file_format(config: PreTrainedConfig) -> str | None:
    """How the files of a checkpoint are quantised; None: they are not."""
    for part in (config, config.get_text_config(decoder=True)):
        if (found := getattr(part, "quantization_config", None)) is not None:
            values = found if isinstance(found, dict) else found.to_dict()
            return str(values.get("quant_method", "an unknown method"))
    return None


def dequantise_on_loading(config: PreTrainedConfig, source: str) -> bool:
    """Have transformers dequantise the files, if they are quantised; returns whether it will.

    Files of bitsandbytes stay as they are: its layers can be trained. Raises ModelError for
    formats that ftcli cannot train.
    """
    found = file_format(config)
    if found is None or found.startswith("bitsandbytes"):
        return False
    own: Any = getattr(config, "quantization_config", None)
    if found not in DEQUANTISED or not isinstance(own, dict):
        raise ModelError(
            "files_quantized",
            f"{source}: its files are quantised by {found}, which ftcli cannot train; use the "
            "unquantised model, with method.mode: qlora if it is too large",
        )
    config.quantization_config = {**own, "dequantize": True}
    return True


def dequantised_note(config: PreTrainedConfig, parameters: int) -> str | None:
    """What a plan says of files that are dequantised on loading; None: they are not."""
    found = file_format(config)
    if found not in DEQUANTISED:
        return None
    return (
        f"the files are quantised by {found} and are dequantised to 16 bits on loading, "
        f"{2 * parameters / 2**30:.1f} GiB of RAM; a merge writes 16 bits"
    )


def quantise_linear(
    network: PreTrainedModel, names: list[str], config: BitsAndBytesConfig, device: torch.device
) -> None:
    """Quantise linear layers that are in memory, one by one on this device, as
    `from_pretrained` does with files in 16 bits."""
    from bitsandbytes.nn import Linear4bit, Params4bit  # looks for CUDA, slowly

    for name in names:
        layer: Any = network.get_submodule(name)
        four_bit = Linear4bit(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            config.bnb_4bit_compute_dtype,
            config.bnb_4bit_use_double_quant,
            config.bnb_4bit_quant_type,
            device="meta",
        )
        four_bit.weight = Params4bit(
            layer.weight.data,
            requires_grad=False,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
        ).to(device)
        four_bit.bias = layer.bias
        four_bit.requires_grad_(False)
        above, _, last = name.rpartition(".")
        setattr(network.get_submodule(above), last, four_bit)
    network.is_loaded_in_4bit = True  # PEFT 0.21 asks for it (tuners/lora/bnb.py)
    network.to(device)
