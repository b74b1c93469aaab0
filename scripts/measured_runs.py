"""A table of measured runs → the shapes and choices of the estimate.

The columns are those of docs/data/measured_runs.csv. Older software versions become values of
`ftcli.memory.Stack`; a row that no choice can express is listed with the reason.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftcli.errors import FtcliError
from ftcli.memory import Choices, Stack
from ftcli.memory.adapted import last_names
from ftcli.memory.architecture import Architecture
from ftcli.memory.hardware import find_card
from ftcli.memory.known_models import known_config
from ftcli.models.architectures.find import architecture_of, find_architecture
from ftcli.shell import GIB

DATA = Path(__file__).parents[1] / "docs" / "data"
TABLE = DATA / "measured_runs.csv"
SIZES = DATA / "model_sizes.json"

Row = dict[str, str]


class NotExpressible(Exception):
    """A row that the estimate cannot express; the message says why."""


@dataclass(frozen=True)
class MeasuredRun:
    """One published peak, as inputs of the estimate."""

    row: Row
    architecture: Architecture
    choices: Choices
    measure: str
    """allocated, reserved or nvidia-smi."""
    measured_bytes: int
    capability: tuple[int, int] | None


def read_rows(table: Path) -> list[Row]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expressed(rows: list[Row]) -> Iterator[MeasuredRun | tuple[Row, str]]:
    """Each row as a run, or with the reason why not."""
    for row in rows:
        try:
            yield measured_run(row)
        except (NotExpressible, FtcliError, KeyError, TypeError, ValueError) as reason:
            yield row, f"{type(reason).__name__}: {reason}"


def measured_run(row: Row) -> MeasuredRun:
    """Raises NotExpressible, FtcliError, KeyError or ValueError."""
    if float(row["peak_gib"]) <= 0 or int(row["micro_batch"]) < 1 or int(row["seq_len"]) < 1:
        raise NotExpressible("a size that is not positive")
    architecture = measured_architecture(row["model"])
    if "litgpt" in row["framework"]:
        architecture = _as_in_litgpt(architecture)
    choices = measured_choices(row, architecture)
    if row["measure"] not in ("allocated", "reserved", "nvidia-smi"):
        raise NotExpressible(f"measure {row['measure']!r}")
    return MeasuredRun(
        row=row,
        architecture=architecture,
        choices=choices,
        measure=row["measure"],
        measured_bytes=round(float(row["peak_gib"]) * GIB),
        capability=_capability(row["gpu"]),
    )


def _as_in_litgpt(architecture: Architecture) -> Architecture:
    """Head and embedding are two matrices there; GELU is torch's, which keeps only its input."""
    config = known_config(architecture.hub_id or "")
    if config is not None and config["model_type"] == "phi":
        architecture = architecture_of(config | {"hidden_act": "gelu"})
    if not architecture.tied:
        return architecture
    parameters = architecture.parameters + architecture.vocab * architecture.hidden
    return replace(architecture, tied=False, parameters=parameters)


def measured_architecture(model: str) -> Architecture:
    """The architecture of a known model, else of its plain sizes, with the norms of Llama."""
    try:
        return find_architecture(_KNOWN_AS.get(model, model))
    except FtcliError:
        sizes = json.loads(SIZES.read_text(encoding="utf-8"))["models"]
        if model not in sizes:
            raise
        return replace(architecture_of(_config(sizes[model])), name=model)


def _config(sizes: dict[str, Any]) -> dict[str, Any]:
    """A config.json of the type whose layers have such matrices."""
    kind = "mixtral" if sizes["experts"] > 1 else "llama" if sizes["mlp_matrices"] == 3 else "arcee"
    return {
        "model_type": kind,
        "num_hidden_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "head_dim": sizes["head_dim"],
        "intermediate_size": sizes["intermediate"],
        "vocab_size": sizes["vocab"],
        "tie_word_embeddings": sizes["tied"],
        "attention_bias": sizes["attention_bias"],
        "num_local_experts": sizes["experts"],
        "num_experts_per_tok": sizes["active_experts"],
    }


_KNOWN_AS = {
    "gemma2-2b": "gemma-2-2b",
    "gemma2-9b": "gemma-2-9b",
    "olmo3-7b": "olmo-3-7b",
    "mistral-7b": "mistral-7b-v0.1",
}


def _capability(gpu: str) -> tuple[int, int] | None:
    name = re.sub(r"NVIDIA|Tesla|-\d+GB|\d+x|/.*", "", gpu).strip()
    try:
        return find_card(name).compute_capability
    except FtcliError:
        return None


def measured_choices(row: Row, architecture: Architecture) -> Choices:
    mode, targets, saved = _method(row, architecture)
    return Choices(
        mode=mode,
        precision=_precision(row),
        weights_dtype=_weights_dtype(row),
        optimizer=_known(_OPTIMIZERS, row, "optimizer"),
        rank=int(row["rank"] or 1),
        target_modules=targets,
        modules_to_save=saved,
        dropout=float(row["lora_dropout"] or 0),
        virtual_tokens=int(row["virtual_tokens"] or 0),
        double_quantization=row["weights_dtype"] != "nf4",
        micro_batch=int(row["micro_batch"]),
        seq_len=_seq_len(row),
        gradient_accumulation=int(row["grad_accum"] or 1),
        gradient_checkpointing=_known(_CHECKPOINTING, row, "grad_checkpointing"),
        activation_offload=row["grad_checkpointing"] == "offload",
        attention=_known(_ATTENTION, row, "attention"),
        loss="chunked" if row["loss"] == "chunked (ftcli)" else "full",
        padding="padded to longest" in row["packing_or_padded_to"],
        stack=_stack(row),
    )


_OPTIMIZERS: dict[str, Any] = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw": "adamw",
    "adamw_8bit": "adamw-8bit",
    "adamw_bnb_8bit": "adamw-8bit",
    "paged_adamw_8bit": "paged-adamw-8bit",
    # fp32 states in managed memory: like the 8-bit ones, in no figure of torch's.
    "paged_adamw_32bit": "paged-adamw-8bit",
    "sgd": "sgd",
}
_CHECKPOINTING = {"0": False, "1": True, "offload": True}
# Word of the table → of the recipe.
_MODES = {
    "full": "full",
    "lora": "lora",
    "qlora": "qlora",
    "adapter": "bottleneck",
    "prefix": "prefix-tuning",
    "prompt": "prompt-tuning",
}
_ATTENTION: dict[str, Any] = {
    "flash": "flash",
    "sdpa": "sdpa",
    "eager": "eager",
    "xformers": "flash",  # memory-efficient: keeps no scores either
}
_QUANTIZATIONS: dict[str, Any] = {"nf4": "nf4", "nf4-dq": "nf4", "gptq4": "gptq4", "int8": "int8"}


def _modules(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Words of the column `targets` → linear modules of this model; a fused one counts for each
    of its parts."""
    linear = architecture.kinds[0].linear
    block = linear[0].name.rpartition(".")[0]
    names = [each.name.rpartition(".") for each in linear]
    *queries, output = (name for path, _, name in names if path == block)
    *inner, down = [name for path, _, name in names if path != block] or ["", ""]
    query, key, value = queries if len(queries) == 3 else queries * 3
    gate, up = (inner * 2)[:2]
    return {
        "q": (query,),
        "k": (key,),
        "v": (value,),
        "o": (output,),
        "gate": (gate,),
        "up": (up,),
        "down": (down,),
        "mlp": (*inner, down),
        "w1": (gate,),
        "w2": (up,),
        "c_attn": (query,),  # one matrix for q, k and v: it reads one input
        "c_proj": (output, down),
        "head": (),  # an adapter on the head is small next to the head
    }


def _known(words: dict[str, Any], row: Row, column: str) -> Any:
    if row[column] not in words:
        raise NotExpressible(f"{column} {row[column]!r}")
    return words[row[column]]


def _precision(row: Row) -> Any:
    words = row["precision"]
    if row["method"] == "full" and row["weights_dtype"] in ("bf16", "fp16"):
        return "pure-bf16"  # autocast has nothing to cast
    if "autocast" in words or "mixed" in words:
        return "fp16" if "fp16" in words else "bf16"
    if "bf16" in words or "fp16" in words:
        return "pure-bf16"
    if "fp32" in words:
        return "fp32"
    raise NotExpressible(f"precision {words!r}")


def _weights_dtype(row: Row) -> Any:
    dtype = row["weights_dtype"]
    if dtype not in ("bf16", "fp16", "fp32", *_QUANTIZATIONS):
        raise NotExpressible(f"weights_dtype {dtype!r}")
    return "fp32" if dtype == "fp32" else "auto"


def _method(row: Row, architecture: Architecture) -> tuple[Any, Any, tuple[str, ...]]:
    """Mode, targets and modules to save; a method without a formula counts as LoRA on the same
    modules, with the number of trained weights that was published."""
    mode = _MODES.get(row["method"])
    if mode is None:
        raise NotExpressible(f"method {row['method']!r}")
    words, _, saved = row["targets"].partition(" + ")
    named = words.split(" ")[-1]
    if mode == "bottleneck" and named:
        mode = "lora"
    modules = _modules(architecture)
    unknown = [word for word in named.split(",") if word and word not in modules]
    if unknown and named != "all-linear" and row["method"] in ("lora", "qlora"):
        raise NotExpressible(f"targets {row['targets']!r}")
    wanted = dict.fromkeys(name for word in named.split(",") for name in modules.get(word, ()))
    there = tuple(name for name in wanted if name in last_names(architecture))
    targets: Any = "all-linear" if named == "all-linear" else there
    names = tuple({"wte": "embed_tokens"}.get(n, n) for n in re.findall(r"wte|lm_head", saved))
    return mode, targets, names


# Fewest characters per token of school mathematics with Llama 3's vocabulary: assumed, so that
# texts of at most 1,300 characters have at most 591 tokens.
_FEWEST_CHARACTERS_PER_TOKEN = 2.2


def _seq_len(row: Row) -> int:
    """Tokens of the longest row: the stated limit, or what its longest text can have."""
    stated = int(row["seq_len"])
    text = re.search(r"texts <=(\d+) chars", row["packing_or_padded_to"])
    return min(stated, round(int(text[1]) / _FEWEST_CHARACTERS_PER_TOKEN)) if text else stated


def _stack(row: Row) -> Stack:
    framework, loss = row["framework"], row["loss"]
    offloads = row["grad_checkpointing"] == "offload"
    return Stack(
        like_ours=row["same_stack"] == "1",
        adapter_bytes=2 if row["adapter_dtype"] == "bf16" else 4,
        saved_bytes=4 if framework.startswith("ftcli") else None,
        kbit_preparation=row["kbit_prep"] == "1",
        foreach_optimizer=row["opt_impl"] == "foreach",
        full_loss_bytes_per_logit=_bytes_per_logit(row),
        fused_loss_bytes_per_hidden=_bytes_per_hidden(loss),
        quantization=_QUANTIZATIONS.get(row["weights_dtype"]),
        linear_experts="transformers 5" not in framework,
        fused_qkv="litgpt" in framework or "c_attn" in row["targets"],
        saves_quantised_inputs=_saves_quantised_inputs(framework),
        compiled="compile" in loss,
        # torchtune's table adds the step in the backward pass before it adds offloading, and its
        # recipe with paged states is the one with the step in the backward pass.
        steps_in_backward=framework == "torchtune" and (offloads or "paged" in row["optimizer"]),
        trainable_parameters=_trained_parameters(row),
    )


def _trained_parameters(row: Row) -> int | None:
    """The published count for methods without a formula here; None where a formula gives it."""
    published = row["trainable_params"]
    if row["method"] == "adapter":
        return int(published or 0)
    return int(published) if published and row["method"] == "prompt" else None


def _saves_quantised_inputs(framework: str) -> bool:
    """Of bitsandbytes before 0.43; litgpt pinned 0.41, then 0.42."""
    version = re.search(r"bnb ?0\.(\d+)", framework)
    return "litgpt" in framework or (version is not None and int(version[1]) < 43)


def _bytes_per_hidden(loss: str) -> int | None:
    """Losses that store no logits: Liger's keeps gradients of hidden states in fp32, cut cross
    entropy does not."""
    if "liger" in loss:
        return 10
    return 6 if "cut cross" in loss else None


def _bytes_per_logit(row: Row) -> int:
    """Bytes that the loss of that framework keeps of each logit.

    2 for 16-bit logits, 2 or 4 for the shifted copy, 4 for each of fp32 logits, log-softmax and
    gradient; fused cross entropy (foak) writes the gradient over the logits, which saves 4.
    """
    loss = row["loss"]
    for word, size in (("litgpt", 6), ("8 chunks", 2), ("torchtune", 12)):
        if word in loss:
            return size
    if loss == "chunked":
        return 6
    unfused = _bytes_per_full_logit(row)
    return unfused - 4 if "foak" in loss else unfused


def _bytes_per_full_logit(row: Row) -> int:
    framework, model = row["framework"], row["model"]
    if "DeepSpeed" in framework or (model == "santacoder" and row["precision"] == "pure bf16"):
        return 8  # wholly in 16 bits: logits, shifted copy, log-softmax, gradient
    if model.startswith("qwen-") and "remote code" in framework:
        return 12  # the model's own loss does not make fp32 logits before autocast does
    if "old:" in row["loss"] or model == "santacoder":
        return 16
    keeps_outputs = ("own loop", "transformers 5.0", "PEFT")
    if any(word in framework for word in keeps_outputs) and "axolotl" not in framework:
        return 16 if row["kbit_prep"] == "1" else 14
    return 14 if "tf4.48" in framework else 12
