"""A base's files. Safetensors are written byte by byte: safetensors' README, "Format"."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli.train.train_recipe import plan_recipe
from ftcli.console import Terminal
from ftcli.errors import ModelError
from ftcli.models.architectures.find import find_architecture
from ftcli.models.files import base_files
from ftcli.models.files.base_files import (
    PIECE_BYTES,
    base_fingerprint,
    refuse_pickles,
    require_weights,
    tokenizer_bytes,
    weight_files,
)
from ftcli.runs.atomic import folder_bytes
from tests.conftest import tiny_tokenizer

Tensors = Mapping[str, bytes]
LARGE = 40 * PIECE_BYTES


def tensors(seed: int = 0) -> dict[str, bytes]:
    """Two large tensors and a small one."""
    source = random.Random(seed)
    sizes = {"layers.0.weight": LARGE, "layers.1.weight": LARGE, "norm.weight": 64}
    return {name: source.randbytes(size) for name, size in sizes.items()}


def write(file: Path, held: Tensors, *, dtype: str = "BF16", rows: int = 1) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, data in held.items():
        shape = [rows, len(data) // 2 // rows]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(data)]}
        place += len(data)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(held.values()))


def write_shards(folder: Path, parts: list[Tensors]) -> None:
    folder.mkdir()
    places = {}
    for number, part in enumerate(parts, start=1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        write(folder / name, part)
        places |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def mark_of(folder: Path, held: Tensors, **form: Any) -> str:
    folder.mkdir(exist_ok=True)
    write(folder / "model.safetensors", held, **form)
    mark = base_fingerprint(str(folder))
    assert mark is not None and len(mark) == 32
    return mark


def test_the_same_weights_in_other_shards_are_the_same(tmp_path: Path) -> None:
    held = tensors()
    whole = mark_of(tmp_path / "whole", held)
    names = list(held)
    for number, order in enumerate((names, names[::-1])):
        for cut in (1, 2):
            folder = tmp_path / f"shards-{number}-{cut}"
            write_shards(
                folder, [{n: held[n] for n in part} for part in (order[:cut], order[cut:])]
            )
            assert base_fingerprint(str(folder)) == whole


def test_other_weights_of_the_same_shape_are_others(tmp_path: Path) -> None:
    assert mark_of(tmp_path / "one", tensors(0)) != mark_of(tmp_path / "two", tensors(1))


@pytest.mark.parametrize("place", [0, LARGE // 2, LARGE - 1])
def test_one_byte_at_the_ends_or_in_the_middle_of_a_tensor_is_seen(
    tmp_path: Path, place: int
) -> None:
    held = tensors()
    before = mark_of(tmp_path / "model", held)
    for name in ("layers.1.weight", "norm.weight"):
        changed = bytearray(held[name])
        changed[place % len(changed)] ^= 1
        assert mark_of(tmp_path / "model", {**held, name: bytes(changed)}) != before


def test_names_types_and_shapes_are_seen(tmp_path: Path) -> None:
    held = tensors()
    renamed = {name.replace("layers", "blocks"): data for name, data in held.items()}
    swapped = dict(zip(held, [*list(held.values())[1::-1], held["norm.weight"]], strict=True))
    marks = {
        mark_of(tmp_path / "model", held),
        mark_of(tmp_path / "model", held, dtype="F16"),
        mark_of(tmp_path / "model", held, rows=2),
        mark_of(tmp_path / "model", renamed),
        mark_of(tmp_path / "model", swapped),
    }
    assert len(marks) == 5


def test_a_model_of_15_gb_is_known_by_3_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5-7B's tensors in a sparse file, which takes no disk space."""
    sizes = {"model.embed_tokens.weight": 152064 * 3584, "lm_head.weight": 152064 * 3584}
    for layer in range(28):
        name = f"model.layers.{layer}"
        sizes |= {f"{name}.self_attn.{m}_proj.weight": 3584 * 3584 for m in "qo"}
        sizes |= {f"{name}.self_attn.{m}_proj.weight": 512 * 3584 for m in "kv"}
        sizes |= {f"{name}.mlp.{m}_proj.weight": 18944 * 3584 for m in ("gate", "up", "down")}
        sizes |= {f"{name}.self_attn.{m}_proj.bias": n for m, n in (("q", 3584), ("k", 512))}
        sizes |= {f"{name}.self_attn.v_proj.bias": 512}
        sizes |= {f"{name}.{norm}_layernorm.weight": 3584 for norm in ("input", "post_attention")}
    sizes["model.norm.weight"] = 3584
    header, place = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "BF16", "shape": [size], "data_offsets": [place, place + 2 * size]}
        place += 2 * size
    assert place == 7_615_616_512 * 2  # its parameters, in 16 bits
    file = tmp_path / "model.safetensors"
    file.write_bytes(with_header(json.dumps(header).encode()))
    os.truncate(file, file.stat().st_size + place)
    read: list[int] = []

    class Counted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Counted(path))
    assert base_fingerprint(str(tmp_path)) is not None
    assert sum(read) < 3.2e6


def test_the_files_are_those_that_transformers_opens_without_running_code(tmp_path: Path) -> None:
    assert weight_files(str(tmp_path)) == ()
    (tmp_path / "pytorch_model.bin").write_bytes(b"1")
    write(tmp_path / "consolidated.safetensors", tensors())
    assert weight_files(str(tmp_path)) == ()
    write(tmp_path / "part.safetensors", tensors())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}))
    assert [file.name for file in weight_files(str(tmp_path))] == ["part.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": "gone.safetensors"}}))
    assert weight_files(str(tmp_path)) == (), "not all of it is here"
    for text in ("{", "[" * 100_000):
        index.write_text(text)
        with pytest.raises(ModelError, match="cannot be read"):
            weight_files(str(tmp_path))
    write(tmp_path / "model.safetensors", tensors())
    assert [file.name for file in weight_files(str(tmp_path))] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../part.safetensors", "/part.safetensors"])
def test_an_index_may_name_safetensors_next_to_it_and_nothing_else(
    name: str, tmp_path: Path
) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": name}}))
    with pytest.raises(ModelError, match="in the same folder") as caught:
        weight_files(str(tmp_path))
    assert repr(name) in caught.value.message and caught.value.file == str(index)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["pytorch_model.bin", "config.json"], r"pickles \(pytorch_model\.bin\).*convert these"),
        (["pytorch_model.bin.index.json", "pytorch_model-1-of-2.bin"], r"\(pytorch_model-1-of-2"),
        (["consolidated.00.pth"], r"pickles \(consolidated\.00\.pth\)"),
        (["model.Q4_0.gguf"], r"has model\.Q4_0\.gguf, and ftcli opens model\.safetensors"),
        (["shard-00001-model-00001-of-00001.safetensors"], "has shard-00001"),
    ],
)
def test_weights_in_another_form_are_refused_with_what_to_do(names: list[str], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        refuse_pickles("owner/name", names)
    refuse_pickles("owner/name", [*names, "model.safetensors"])
    refuse_pickles("owner/name", [*names, "model.safetensors.index.json"])
    refuse_pickles("owner/name", ["config.json", "tokenizer.json", "README.md"])


def test_a_hub_model_is_looked_for_in_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert base_fingerprint("owner/tiny") is None
    assert base_fingerprint("not a hub id at all//") is None
    cache = tmp_path / "models--owner--tiny"
    for commit, seed in (("a" * 40, 0), ("b" * 40, 1)):
        snapshot = cache / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        if commit[0] == "a":
            (cache / "refs").mkdir()
            (cache / "refs" / "main").write_text(commit)
            assert base_fingerprint("owner/tiny") is None, "only its config is here yet"
        write(snapshot / "model.safetensors", tensors(seed))
    main, other = base_fingerprint("owner/tiny"), base_fingerprint("owner/tiny", "b" * 40)
    assert main == mark_of(tmp_path / "folder", tensors(0))
    assert other == mark_of(tmp_path / "folder", tensors(1))


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def one_tensor(offsets: list[Any]) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 9) + b"{}",
        with_header(b"[]"),
        with_header(b"{\xff"),
        with_header(one_tensor([0, 4]), b"\0\0\0"),
        with_header(one_tensor([4, 0]), b"\0\0\0\0"),
        with_header(one_tensor(["", 4]), b"\0\0\0\0"),
        with_header(one_tensor([4]), b"\0\0\0\0"),
    ],
)
def test_a_file_that_is_not_whole_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a complete safetensors file") as caught:
        base_fingerprint(str(tmp_path))
    assert caught.value.file == str(tmp_path / "model.safetensors")


# Before a training


SHAPE = find_architecture("smollm2-135m")


def test_missing_weight_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelError, match="has no weights"):
        require_weights(str(folder), None, SHAPE)
    folder.rmdir()
    held = list(tensors().items())
    write_shards(folder, [dict(held[:2]), dict(held[2:])])
    assert require_weights(str(folder), None, SHAPE).startswith("weights complete (")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"1 of 2 weight files are missing, model-00002-of-0"):
        require_weights(str(folder), None, SHAPE)


def test_weights_that_are_to_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    held = ["config.json", "model.safetensors"]
    monkeypatch.setattr(base_files, "weight_files", lambda *_: ())
    monkeypatch.setattr(base_files, "hub_files", lambda *_, **__: held)
    assert require_weights("owner/name", None, SHAPE) == (
        "weights on the hub, to be downloaded (about 257 MiB)"
    )
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 9 * 10**8, 10**8))
    with pytest.raises(ModelError, match=r"about 257 MiB, and the disk of .* has 95 MiB free"):
        require_weights("owner/name", None, SHAPE)
    held.remove("model.safetensors")
    with pytest.raises(ModelError, match="the repository has no weights"):
        require_weights("owner/name", None, SHAPE)


# What is saved with the weights


@pytest.mark.parametrize("texts", [False, True], ids=["merges as lists", "merges as texts"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_tokenizer_takes_no_more_than_was_counted(
    texts: bool, indent: int | None, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base, saved = tmp_path / "base", tmp_path / "saved"
    tiny_tokenizer().save_pretrained(base)
    file = base / "tokenizer.json"
    values = json.loads(file.read_text("utf-8"))
    if texts:
        values["model"]["merges"] = [" ".join(merge) for merge in values["model"]["merges"]]
    separators = None if indent else (",", ":")
    file.write_text(
        json.dumps(values, indent=indent, separators=separators, ensure_ascii=False), "utf-8"
    )
    AutoTokenizer.from_pretrained(base).save_pretrained(saved)
    counted, taken = tokenizer_bytes(str(base)), folder_bytes(saved)
    assert taken <= counted + 1000 <= 3 * taken + 1000
    for name in ("picture.png", "model.safetensors.index.json", "pytorch_model.bin"):
        (base / name).write_bytes(b"0" * 100_000)
    assert tokenizer_bytes(str(base)) == counted
    assert tokenizer_bytes("nobody/has-this-model") == 0


def test_what_is_saved_with_the_weights_is_part_of_a_run(write_recipe: Callable[..., Path]) -> None:
    plan = plan_recipe(write_recipe(), (), init_from=None, reporter=Terminal()).plan
    assert plan.run_bytes(3_500_000) == plan.run_bytes() + 3_500_000
