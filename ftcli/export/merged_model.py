"""One stand-alone model from a run: what it was trained as, what is written, what is read back.

The three hold a copy of the weights one after the other, never two at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ftcli.config.loader import Loaded
from ftcli.config.recipe import Qlora
from ftcli.console import Reporter
from ftcli.data.prepared import Prepared
from ftcli.errors import ModelError
from ftcli.export.fold import FourBits, dtype_name, fold, four_bit_layers, merged_parts
from ftcli.export.parity import Part, Prediction, Rows, largest_activation, predictions_of
from ftcli.inference.trained import load_tuned_model
from ftcli.memory.shapes import model_source
from ftcli.models.adapters import open_adapter
from ftcli.models.device import device_of, free_memory, hardware_for
from ftcli.models.load import DTYPES, load_base, open_config
from ftcli.models.older_readers import write_for_older_readers
from ftcli.models.prompt_manifest import PromptContract, generation_config
from ftcli.runs.folder import RunFolder
from ftcli.shell import command

TYPES = {dtype_name(dtype): dtype for dtype in DTYPES.values()}
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
    types: tuple[str, ...]
    """Types to store the weights in, the first choice first; `bfloat16`."""
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
        """4-bit layers compute in fp32 at most, and cards are slow in fp64."""
        fine = not self.quantised and hardware_for(self.loaded).kind == "cpu"
        return torch.float64 if fine else torch.float32


@dataclass(frozen=True)
class Reference:
    """Base and adapter as they were trained: what they predict, and which layers were in 4 bits."""

    predictions: list[Prediction]
    contract: PromptContract
    four_bit_layers: frozenset[str]


def plan_merge(
    loaded: Loaded, run: RunFolder, prepared: Prepared, dtype: str, *, onto_original: bool
) -> Merge:
    """Decide the types: for `auto` that of the base's files, then fp16, then fp32.

    fp16 has three bits more than bf16 behind the point, and no more bytes. Raises ModelError.
    """
    model = loaded.recipe.model
    source = model_source(model.id, loaded.base)
    config = open_config(source, model.revision)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "merge_quantized",
            f"{source}: its files hold quantised weights, in which an update would be rounded "
            f"away; use the adapter as it is ({command('generate', run.path, '…')}), or train on "
            "the unquantised model",
        )
    files = config.dtype if config.dtype in DTYPES.values() else torch.float32
    trained = DTYPES[run.planned("weights_dtype")]
    choices = (files, torch.float16, torch.float32) if dtype == "auto" else (DTYPES[dtype],)
    first_fp32 = choices.index(torch.float32) + 1 if torch.float32 in choices else None
    return Merge(
        loaded=loaded,
        run=run,
        prepared=prepared,
        types=tuple(dict.fromkeys(map(dtype_name, choices[:first_fp32]))),
        trained=trained,
        held=files if trained == torch.float32 else trained,
        onto_original=onto_original,
    )


def reference_of(merge: Merge, rows: Rows, reporter: Reporter) -> Reference:
    """What base and adapter say as they were trained, the base in 4 bits where it was."""
    dtype = merge.trained if merge.quantised else merge.held
    model = load_tuned_model(merge.loaded, merge.run, merge.prepared, dtype)
    layers = four_bit_layers(model.network)
    found = predictions_of(model.network, rows, model.contract.pad_id, merge.compared_in)
    predictions = _counted(found, "base + adapter", len(rows), reporter)
    return Reference(predictions, model.contract, layers)


class Merging:
    """The base with the adapter on it, and what it predicts once it is merged."""

    def __init__(self, merge: Merge, reference: Reference, rows: Rows, reporter: Reporter) -> None:
        free_memory()
        self._merge, self._rows, self._reporter = merge, rows, reporter
        self._contract = reference.contract
        self._four_bits = _four_bits(merge, reference)
        self._adapted = self._open()
        self.largest_activation = 0.0
        """Of what the merged model has computed so far."""

    def unmerged(self) -> list[Prediction]:
        """What these weights and the adapter beside them predict."""
        return self._predictions("base + adapter", None)

    def merged(self, stored: str | None) -> list[Prediction]:
        """What the merged model predicts; its weights rounded to `stored`, or not at all."""
        label = "merged" if stored is None else f"merged, {stored}"
        dtype = TYPES[stored] if stored is not None else None
        arguments = (self._adapted, self._merge.compared_in, dtype, self._four_bits)
        with largest_activation(self._adapted) as largest:
            found = self._predictions(label, merged_parts(*arguments))
        self.largest_activation = max(self.largest_activation, largest())
        return found

    def write(self, stored: str, folder: Path) -> None:
        """Merge for good and save; raises ModelError where an update is no number."""
        model = fold(self._adapted, TYPES[stored], self._four_bits, self._reporter)
        save_model(model, self._contract, folder)
        del self._adapted

    def read_back(self, folder: Path) -> list[Prediction]:
        """What the model in the folder predicts, opened with nothing else."""
        free_memory()
        network = load_base(
            str(folder),
            self._merge.loaded.recipe.model.model_copy(update={"revision": None}),
            dtype=open_config(str(folder), None).dtype,
            attention=_attention(self._merge.run),
            device=torch.device("cpu"),
        )
        found = self._predicted(self._placed(network), None)
        return _counted(found, "read back", len(self._rows), self._reporter)

    def _open(self) -> PeftModel:
        base = load_base(
            self._merge.source,
            self._merge.loaded.recipe.model,
            dtype=self._merge.held,
            attention=_attention(self._merge.run),
            device=torch.device("cpu"),
        )
        return open_adapter(self._placed(base), self._merge.run.adapter)

    def _placed(self, model: PreTrainedModel) -> PreTrainedModel:
        """On the card where there is room for it."""
        hardware = hardware_for(self._merge.loaded)
        held = sum(parameter.nbytes for parameter in model.parameters())
        return model.to(device_of(hardware)) if ROOM_BESIDE * held < hardware.free_bytes else model

    def _predictions(self, label: str, parts: Sequence[Part] | None) -> list[Prediction]:
        found = self._predicted(self._adapted, parts)
        return _counted(found, label, len(self._rows), self._reporter)

    def _predicted(
        self, network: PreTrainedModel, parts: Sequence[Part] | None
    ) -> Iterator[Prediction]:
        dtype = self._merge.compared_in
        return predictions_of(network, self._rows, self._contract.pad_id, dtype, parts)


def _counted(
    found: Iterable[Prediction], label: str, rows: int, reporter: Reporter
) -> list[Prediction]:
    predictions = []
    with reporter.meter(label, rows) as meter:
        for prediction in found:
            predictions.append(prediction)
            meter.update(len(predictions))
    return predictions


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
        device=device_of(hardware_for(merge.loaded)),
    )


def _attention(run: RunFolder) -> str:
    """The training's, but that flash attention takes 16-bit tensors only."""
    attention = run.planned("attention")
    return "sdpa" if attention == "flash" else attention
