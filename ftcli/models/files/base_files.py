"""A base's files, in a folder or on the hub: which weights it has, whether they are complete, and
their fingerprint. No tensor is read completely, and no heavy library is imported.

The fingerprint hashes each tensor's name, type, shape and three pieces of its bytes, 3 MB of a 7B
of 15 GB. It does not depend on the distribution of tensors over files. Any training changes every
piece; a change to a few rows of one large matrix may go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ftcli.errors import ModelError
from ftcli.hub import hub_files
from ftcli.runs.atomic import free_bytes
from ftcli.shell import shown_size

if TYPE_CHECKING:
    from ftcli.memory.architecture import Architecture

PIECE_BYTES = 4096  # a page, the least that a disk reads
PIECES = 3  # of a tensor: its beginning, its middle and its end
LARGEST_HEADER = 100_000_000  # safetensors 0.6, tensor.rs: MAX_HEADER_SIZE

# Files that transformers 5.24 opens without running code, in its order (modeling_utils.py,
# _get_resolved_checkpoint_files).
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Suffixes of PyTorch files; torch.load unpickles them.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

# Saved with a trained model: tokenizer, vocabulary, template and configuration.
SAVED_SUFFIXES = {".json", ".txt", ".model", ".tiktoken", ".jinja"}
# tokenizers 0.23 saves with indents and each merge as a list. Measured growth: 2.6 of a compact
# file with merges as texts (49,152 tokens), 1.0 of its own files.
TOKENIZER_GROWTH = 3
MERGES_AS_TEXTS = b'"merges": [\n      "'

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def model_folder(source: str, revision: str | None = None) -> Path | None:
    """The folder itself, or the folder of a hub model in the local cache."""
    if os.path.isdir(source):
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(source, "config.json", revision=revision)
    except ValueError:  # not a hub id
        return None
    return Path(config).parent if isinstance(config, str) else None


def weight_files(source: str, revision: str | None = None) -> tuple[Path, ...]:
    """The weight files of a model; empty unless all are on this machine.

    Raises ModelError for an index that cannot be read, or that names files other than safetensors
    in its folder.
    """
    folder = model_folder(source, revision)
    if folder is None:
        return ()
    if (folder / WHOLE).is_file():
        return (folder / WHOLE,)
    files = shard_files(folder / INDEX) if (folder / INDEX).is_file() else ()
    return files if all(file.is_file() for file in files) else ()


def shard_files(index: Path) -> tuple[Path, ...]:
    """The files in an index, existing or not; raises ModelError as `weight_files` does."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except UNREADABLE as error:
        reason = f"cannot be read ({error!r}); download it again"
        raise ModelError("model", reason, file=str(index)) from error
    for name in names:
        plain = isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
        if not plain:
            raise ModelError(
                "model",
                f"names {name!r}, and ftcli opens only safetensors files in the same folder",
                file=str(index),
            )
    return tuple(index.with_name(name) for name in sorted(names))


def refuse_pickles(source: str, names: Collection[str]) -> None:
    """Raise ModelError if a model has weights, but none in safetensors."""
    if WHOLE in names or INDEX in names:
        return
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise ModelError(
            "model",
            f"{source}: its weights are pickles ({pickles[0]}), which run code when opened, and "
            "ftcli opens only safetensors; use a copy of the model that has them, or convert these "
            "in a sandbox (transformers: from_pretrained, then save_pretrained)",
        )
    others = sorted(name for name in names if name.endswith((".gguf", ".safetensors")))
    if others:
        raise ModelError(
            "model",
            f"{source}: has {others[0]}, and ftcli opens {WHOLE} or {INDEX}; use the model as "
            "transformers saves it",
        )


def require_weights(source: str, revision: str | None, architecture: Architecture) -> str:
    """Check that the weight files are here and complete, or can be downloaded; returns a message on
    what was found. Missing tensors are detected at loading (load.py). Raises ModelError."""
    if files := weight_files(source, revision):
        base_fingerprint(source, revision)  # raises for a truncated file
        return f"weights complete ({shown_size(sum(file.stat().st_size for file in files))})"
    if os.path.isdir(source):
        index = Path(source, INDEX)
        if not index.is_file():
            raise ModelError("model", f"{source}: has no weights ({WHOLE}); download them")
        shards = shard_files(index)
        gone = [shard.name for shard in shards if not shard.is_file()]
        raise ModelError(
            "model",
            f"{source}: {len(gone)} of {len(shards)} weight files are missing, {gone[0]} first; "
            "download them again",
        )
    from huggingface_hub.constants import HF_HUB_CACHE

    names = hub_files(source, revision=revision, repo_type="model")
    if WHOLE not in names and INDEX not in names:
        raise ModelError("model", f"{source}: the repository has no weights ({WHOLE})")
    wanted, free = 2 * architecture.parameters, free_bytes(Path(HF_HUB_CACHE))  # in 16 bits
    if free < wanted:
        raise ModelError(
            "model",
            f"{source}: its weights have to be downloaded, about {shown_size(wanted)}, and the "
            f"disk of {HF_HUB_CACHE} has {shown_size(free)} free; free some space, or set "
            "HF_HOME to another disk",
        )
    return f"weights on the hub, to be downloaded (about {shown_size(wanted)})"


def base_fingerprint(source: str, revision: str | None = None) -> str | None:
    """32 hex digits of the weights of a local folder, or of a hub model in the local cache.

    Distinguishes models of one shape, and does not depend on shards. None: the weights are not on
    this machine. Raises ModelError for a truncated file.
    """
    files = weight_files(source, revision)
    if not files:
        return None
    whole = hashlib.sha256()
    for _, digest in sorted(digest for file in files for digest in _tensor_digests(file)):
        whole.update(digest)
    return whole.hexdigest()[:32]


def _tensor_digests(file: Path) -> Iterator[tuple[str, bytes]]:
    """Name and digest of each tensor. Source of the layout: safetensors' README, "Format"."""
    size = file.stat().st_size
    with file.open("rb", buffering=0) as data:
        header_bytes = int.from_bytes(data.read(8), "little")
        start = 8 + header_bytes
        if header_bytes > LARGEST_HEADER or start > size:
            raise _truncated(file)
        try:
            header = json.loads(data.read(header_bytes))
            header.pop("__metadata__", None)
            tensors = [
                ([name, t["dtype"], t["shape"]], *t["data_offsets"]) for name, t in header.items()
            ]
            whole = all(0 <= begin <= end <= size - start for _, begin, end in tensors)
        except UNREADABLE as error:
            raise _truncated(file) from error
        if not whole:
            raise _truncated(file)
        for description, begin, end in tensors:
            yield description[0], _digest(description, data, start + begin, end - begin)


def _digest(description: list[object], data: BinaryIO, start: int, size: int) -> bytes:
    """sha256 of a tensor's description and of evenly spread pieces of its bytes."""
    digest = hashlib.sha256(json.dumps(description).encode())
    if size <= PIECES * PIECE_BYTES:
        data.seek(start)
        digest.update(data.read(size))
        return digest.digest()
    for number in range(PIECES):
        data.seek(start + number * (size - PIECE_BYTES) // (PIECES - 1))
        digest.update(data.read(PIECE_BYTES))
    return digest.digest()


def _truncated(file: Path) -> ModelError:
    message = "is not a complete safetensors file; download it again"
    return ModelError("model", message, file=str(file))


def tokenizer_bytes(source: str, revision: str | None = None) -> int:
    """Upper bound, within 1 kB, for a model's tokenizer and configuration when saved again.

    For a local folder, or a hub model in the local cache; 0 if it is not on this machine.
    """
    folder = model_folder(source, revision)
    if folder is None:
        return 0
    total = 0
    for file in folder.iterdir():
        index = file.name.endswith(".index.json")  # a map of tensors to files
        if file.suffix in SAVED_SUFFIXES and not index and file.is_file():
            total += file.stat().st_size * _growth(file)
    return total


def _growth(file: Path) -> int:
    if file.name != "tokenizer.json":
        return 1
    written = file.read_bytes()
    as_older = b"\n" not in written[:1000] or MERGES_AS_TEXTS in written
    return TOKENIZER_GROWTH if as_older else 1
