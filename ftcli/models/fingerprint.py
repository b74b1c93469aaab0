"""A base model known again by its weights, without reading them whole.

Of each tensor its name, type, shape and three pieces of its bytes are hashed: a 7B of 15 GB costs
3 MB of reading. How the tensors are spread over files plays no part. Another training moves every
piece; a change of a few rows of one large matrix may go unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from ftcli.errors import ModelError

PIECE_BYTES = 4096  # a page: less is not read from a disk
PIECES = 3  # of a tensor: its beginning, its middle and its end
LARGEST_HEADER = 100_000_000  # safetensors 0.6, tensor.rs: MAX_HEADER_SIZE

# What transformers 5.24 opens without running code, in its order (modeling_utils.py,
# _get_resolved_checkpoint_files).
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What PyTorch's own files are called; torch.load unpickles them.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


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
    """The files that a model is loaded from; none where they are not all on this machine.

    Raises ModelError for an index that names anything but safetensors beside it.
    """
    folder = model_folder(source, revision)
    if folder is None:
        return ()
    if (folder / WHOLE).is_file():
        return (folder / WHOLE,)
    return shard_files(folder / INDEX) if (folder / INDEX).is_file() else ()


def refuse_pickles(source: str, names: Collection[str]) -> None:
    """Raise ModelError where a model's files hold weights, but none in safetensors."""
    if WHOLE in names or INDEX in names:
        return
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise ModelError(
            "model",
            f"{source}: its weights are pickles ({pickles[0]}), which run code when they are "
            "opened, and ftcli opens safetensors only; take a copy of the model that has them, or "
            "convert these where there is nothing to lose (transformers: from_pretrained, then "
            "save_pretrained)",
        )
    others = sorted(name for name in names if name.endswith((".gguf", ".safetensors")))
    if others:
        raise ModelError(
            "model",
            f"{source}: holds {others[0]}, and ftcli opens {WHOLE} or {INDEX}; take the model in "
            "the form that transformers saves",
        )


def model_folder(source: str, revision: str | None = None) -> Path | None:
    """The folder itself, or that of a hub model in the local cache."""
    if os.path.isdir(source):
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(source, "config.json", revision=revision)
    except ValueError:  # not a hub id
        return None
    return Path(config).parent if isinstance(config, str) else None


def shard_files(index: Path) -> tuple[Path, ...]:
    """The files that an index names; none where one is missing, or where it cannot be read.

    Raises ModelError where it names anything but safetensors beside it.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()
    strange = [name for name in names if not _is_beside(name)]
    if strange:
        raise ModelError(
            "model",
            f"names {strange[0]!r}, and ftcli opens safetensors files of the same folder only",
            file=str(index),
        )
    files = tuple(index.with_name(name) for name in sorted(names))
    return files if all(file.is_file() for file in files) else ()


def _is_beside(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _marks(file: Path) -> Iterator[tuple[str, bytes]]:
    """For each tensor of a file its name and a digest."""
    size = file.stat().st_size
    with file.open("rb", buffering=0) as data:
        yield from _tensor_marks(file, data, size)


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _cut(file) from error
    if not whole:
        raise _cut(file)
    for name, dtype, shape, begin, end in tensors:
        known = [name, dtype, shape]
        yield name, _digest(known, data, start + begin, end - begin)


def _digest(known: list[object], data: BinaryIO, start: int, size: int) -> bytes:
    """sha256 of what is known of some bytes of a file and of evenly spread pieces of them."""
    mark = hashlib.sha256(json.dumps(known).encode())
    if size <= PIECES * PIECE_BYTES:
        data.seek(start)
        mark.update(data.read(size))
        return mark.digest()
    for number in range(PIECES):
        data.seek(start + number * (size - PIECE_BYTES) // (PIECES - 1))
        mark.update(data.read(PIECE_BYTES))
    return mark.digest()


def _cut(file: Path) -> ModelError:
    return ModelError("model", "is not a whole safetensors file; fetch it again", file=str(file))
