"""A base model known again by its weights, without reading them whole.

Of each tensor its name, type, shape and three pieces of its bytes are hashed: a 7B of 15 GB costs
3 MB of reading. How the tensors are spread over files plays no part. Another training moves every
piece; a change of a few rows of one large matrix may go unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ftcli.errors import ModelError

PIECE_BYTES = 4096  # a page: less is not read from a disk
PIECES_OF_A_TENSOR = 3  # its beginning, its middle and its end
PIECES_OF_A_FILE = 64  # where nothing is known of the tensors in it
LARGEST_HEADER = 100_000_000  # safetensors 0.6, tensor.rs: MAX_HEADER_SIZE

# What transformers 5.24 opens, in its order (modeling_utils.py, _get_resolved_checkpoint_files).
FIRST_CHOICES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OTHERS = ("*.safetensors", "*.gguf", "*.bin")


def base_fingerprint(source: str, revision: str | None = None) -> str | None:
    """32 hex digits of the weights of a local folder, or of a hub model in the local cache.

    Two models of the same shape differ; one model cut into other shards does not. None: the weights
    are not on this machine. Raises ModelError for a file that is not whole.
    """
    files = weight_files(source, revision)
    if not files:
        return None
    whole = hashlib.sha256()
    for _, mark in sorted(mark for file in files for mark in _marks(file)):
        whole.update(mark)
    return whole.hexdigest()[:32]


def weight_files(source: str, revision: str | None = None) -> tuple[Path, ...]:
    """The files that a model is loaded from; none where they are not all on this machine."""
    folder = _folder(source, revision)
    if folder is None:
        return ()
    for name in FIRST_CHOICES:
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".json") else (folder / name,)
    for pattern in OTHERS:
        if found := tuple(sorted(folder.glob(pattern))):
            return found
    return ()


def _folder(source: str, revision: str | None) -> Path | None:
    if os.path.isdir(source):
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(source, "config.json", revision=revision)
    except ValueError:  # not a hub id
        return None
    return Path(config).parent if isinstance(config, str) else None


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names; none where one is missing, or where it cannot be read."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()
    files = tuple(index.with_name(name) for name in sorted(names))
    return files if all(file.is_file() for file in files) else ()


def _marks(file: Path) -> Iterator[tuple[str, bytes]]:
    """For each tensor of a file its name and a digest; the whole file is one where it is opaque."""
    size = file.stat().st_size
    with file.open("rb", buffering=0) as data:
        if file.suffix == ".safetensors":
            yield from _tensor_marks(file, data, size)
        else:
            yield file.name, _digest([size], data, 0, size, PIECES_OF_A_FILE)


def _tensor_marks(file: Path, data: BinaryIO, size: int) -> Iterator[tuple[str, bytes]]:
    """Source of the layout: safetensors' README, "Format"."""
    header_bytes = int.from_bytes(data.read(8), "little")
    start = 8 + header_bytes
    if header_bytes > LARGEST_HEADER or start > size:
        raise _cut(file)
    try:
        header = json.loads(data.read(header_bytes))
        header.pop("__metadata__", None)
        tensors = [(name, t["dtype"], t["shape"], *t["data_offsets"]) for name, t in header.items()]
        whole = all(0 <= begin <= end <= size - start for *_, begin, end in tensors)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _cut(file) from error
    if not whole:
        raise _cut(file)
    for name, dtype, shape, begin, end in tensors:
        known = [name, dtype, shape]
        yield name, _digest(known, data, start + begin, end - begin, PIECES_OF_A_TENSOR)


def _digest(known: list[object], data: BinaryIO, start: int, size: int, pieces: int) -> bytes:
    """sha256 of what is known of some bytes of a file and of evenly spread pieces of them."""
    mark = hashlib.sha256(json.dumps(known).encode())
    if size <= pieces * PIECE_BYTES:
        data.seek(start)
        mark.update(data.read(size))
        return mark.digest()
    for number in range(pieces):
        data.seek(start + number * (size - PIECE_BYTES) // (pieces - 1))
        mark.update(data.read(PIECE_BYTES))
    return mark.digest()


def _cut(file: Path) -> ModelError:
    return ModelError("model", "is not a whole safetensors file; fetch it again", file=str(file))
