"""One stand-alone model from a run: what it was trained as, what is written, what is read back.

The three hold a copy of the weights one after the other, never two at once.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftcli.artifacts import RunFolder
from ftcli.console import Reporter
from ftcli.disk import folder_bytes
from ftcli.engine.adapters import open_adapter
from ftcli.engine.device import device_of, find_hardware, give_back_freed_memory
from ftcli.engine.fold import FourBits, fold, four_bit_layers
from ftcli.engine.inference import Model, PromptContract, generation_config
from ftcli.engine.model import DTYPES, load_base, open_config
from ftcli.engine.older_readers import write_for_older_readers
from ftcli.engine.parity import Parity, Rows, logits_of, parity
from ftcli.engine.trained import load_tuned_model
from ftcli.errors import ModelError
from ftcli.loading import Loaded
from ftcli.prepared import Prepared
from ftcli.recipe import Qlora
from ftcli.shapes import model_source

# As the hub's own models are cut: a part fits any file system, and is read on its own.
SHARD = "5GB"
# A model on a card needs room beside its weights: one of them widened, and the logits of a row.
ROOM_BESIDE = 1.2


@dataclass(frozen=True)
class Merge:
    """What is merged: a run's adapter, onto which weights, into which type."""

    loaded: Loaded
    run: RunFolder
    prepared: Prepared
    wanted: torch.dtype
    trained: torch.dtype
    """Type in which the training held the base, and from which it quantised."""
    held: torch.dtype
    """Narrowest type that holds those weights exactly: that of the files where it is narrower."""
    onto_original: bool

    @property
    def source(self) -> str:
        return model_source(self.loaded.recipe.model.id, self.loaded.base)

    @property
    def quantised(self) -> bool:
        """Whether the adapter was trained on a 4-bit base."""
        return isinstance(self.loaded.recipe.method, Qlora)

    @property
    def compared_in(self) -> torch.dtype:
        """A finer type than the merged model's; 4-bit layers compute in fp32 at most."""
        fine = self.wanted == torch.float32 and not self.quantised
        return torch.float64 if fine else torch.float32


@dataclass(frozen=True)
class Reference:
    """Base and adapter as they were trained: their logits, and which layers were in 4 bits."""

    logits: list[Tensor]
    contract: PromptContract
    four_bit_layers: frozenset[str]


def plan_merge(
    loaded: Loaded, run: RunFolder, prepared: Prepared, dtype: str, *, onto_original: bool
) -> Merge:
    """Decide the types; `auto` is that of the base's files. Raises ModelError."""
    model = loaded.recipe.model
    source = model_source(model.id, loaded.base)
    config = open_config(source, model.revision)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "merge_quantized",
            f"{source}: its files hold quantised weights, in which an update would be rounded "
            "away; use the adapter as it is (ftcli generate), or train on the unquantised model",
        )
    stored = config.dtype if config.dtype in DTYPES.values() else torch.float32
    trained = DTYPES[run.planned("weights_dtype")]
    return Merge(
        loaded=loaded,
        run=run,
        prepared=prepared,
        wanted=stored if dtype == "auto" else DTYPES[dtype],
        trained=trained,
        held=stored if trained == torch.float32 else trained,
        onto_original=onto_original,
    )


def reference_of(merge: Merge, rows: Rows, reporter: Reporter) -> Reference:
    """What base and adapter say as they were trained, the base in 4 bits where it was."""
    dtype = merge.trained if merge.quantised else merge.held
    model = load_tuned_model(merge.loaded, merge.run, merge.prepared, dtype)
    layers = four_bit_layers(model.network)
    logits = []
    with reporter.meter("base + adapter", len(rows)) as meter:
        for found in logits_of(model, rows, merge.compared_in):
            logits.append(found)
            meter.update(len(logits))
    return Reference(logits, model.contract, layers)


def write_merged(merge: Merge, reference: Reference, folder: Path, reporter: Reporter) -> None:
    """Write the stand-alone model; raises ModelError where an update is no number."""
    _let_go()
    base = load_base(
        merge.source,
        merge.loaded.recipe.model,
        dtype=merge.held,
        attention=_attention(merge.run),
        device=torch.device("cpu"),
    )
    adapted = open_adapter(base, merge.run.adapter)
    merged = fold(adapted, merge.wanted, _four_bits(merge, reference), reporter)
    save_model(merged, reference.contract, folder)


def compare(
    merge: Merge, reference: Reference, folder: Path, rows: Rows, reporter: Reporter
) -> Parity:
    """How far the model in the folder, read back with nothing else, is from the reference."""
    _let_go()
    hardware = find_hardware()
    fits = ROOM_BESIDE * folder_bytes(folder) < hardware.free_bytes
    network = load_base(
        str(folder),
        merge.loaded.recipe.model.model_copy(update={"revision": None}),
        dtype=open_config(str(folder), None).dtype,
        attention=_attention(merge.run),
        device=device_of(hardware) if fits else torch.device("cpu"),
    )
    model = Model(network, reference.contract)
    with reporter.meter("merged model", len(rows)) as meter:
        found = logits_of(model, rows, merge.compared_in)
        return parity(reference.logits, found, merge.wanted, meter.update)


def save_model(model: PreTrainedModel, contract: PromptContract, folder: Path) -> None:
    """Weights, config, tokenizer, chat template, generation config: transformers needs no more."""
    tokenizer = contract.renderer.tokenizer
    model.generation_config = generation_config(tokenizer, contract.stop_ids, contract.pad_id)
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
    write_for_older_readers(folder)


def _four_bits(merge: Merge, reference: Reference) -> FourBits | None:
    """How the weights were rounded in training, where the merge is to keep it."""
    method = merge.loaded.recipe.method
    if not isinstance(method, Qlora) or merge.onto_original:
        return None
    return FourBits(
        layers=reference.four_bit_layers,
        double_quantization=method.double_quantization,
        dtype=merge.trained,
        device=device_of(find_hardware()),
    )


def _attention(run: RunFolder) -> str:
    """The training's, but that flash attention takes 16-bit tensors only."""
    attention = run.planned("attention")
    return "sdpa" if attention == "flash" else attention


def _let_go() -> None:
    """Free the copy of the weights before: modules refer to one another in circles."""
    gc.collect()
    give_back_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
