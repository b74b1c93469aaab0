"""Safetensors are written here byte by byte: the layout is in safetensors' README, "Format"."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ftcli.errors import ModelError
from ftcli.models.fingerprint import PIECE_BYTES, base_fingerprint, refuse_pickles, weight_files

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
    changed = bytearray(held["layers.1.weight"])
    changed[place] ^= 1
    assert mark_of(tmp_path / "model", {**held, "layers.1.weight": bytes(changed)}) != before


def test_every_byte_of_a_small_tensor_is_seen(tmp_path: Path) -> None:
    held = tensors()
    marks = {mark_of(tmp_path / "model", held)}
    for place in range(64):
        norm = bytearray(held["norm.weight"])
        norm[place] ^= 255
        marks.add(mark_of(tmp_path / "model", {**held, "norm.weight": bytes(norm)}))
    assert len(marks) == 65


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


@contextmanager
def counted_reads(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    original, sizes = Path.open, []

    class Counted:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, place: int) -> int:
            return int(self.file.seek(place))

        def read(self, size: int) -> bytes:
            data: bytes = self.file.read(size)
            sizes.append(len(data))
            return data

    with patch.context() as inside:
        inside.setattr(Path, "open", lambda *a, **k: Counted(original(*a, **k)))
        yield sizes


def test_a_model_of_15_gb_is_known_by_3_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5-7B's tensors in a file of holes, which takes no room on the disk."""
    sizes = {"model.embed_tokens.weight": 152064 * 3584, "lm_head.weight": 152064 * 3584}
    for layer in range(28):
        name = f"model.layers.{layer}"
        sizes |= {f"{name}.self_attn.{m}_proj.weight": 3584 * 3584 for m in "qo"}
        sizes |= {f"{name}.self_attn.{m}_proj.weight": 512 * 3584 for m in "kv"}
        sizes |= {f"{name}.mlp.{m}_proj.weight": 18944 * 3584 for m in ("gate", "up", "down")}
        sizes |= {
            f"{name}.self_attn.{m}_proj.bias": n
            for m, n in zip("qkv", (3584, 512, 512), strict=True)
        }
        sizes |= {f"{name}.{norm}_layernorm.weight": 3584 for norm in ("input", "post_attention")}
    sizes["model.norm.weight"] = 3584
    header, place = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "BF16", "shape": [size], "data_offsets": [place, place + 2 * size]}
        place += 2 * size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    assert place == 7_615_616_512 * 2  # its parameters, in 16 bits
    with counted_reads(monkeypatch) as read:
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
        assert weight_files(str(tmp_path)) == ()
    write(tmp_path / "model.safetensors", tensors())
    assert [file.name for file in weight_files(str(tmp_path))] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../part.safetensors", "/part.safetensors"])
def test_an_index_may_name_safetensors_beside_it_and_nothing_else(
    name: str, tmp_path: Path
) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": name}}))
    with pytest.raises(ModelError, match="of the same folder only") as caught:
        weight_files(str(tmp_path))
    assert repr(name) in caught.value.message and caught.value.file == str(index)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["pytorch_model.bin", "config.json"], r"pickles \(pytorch_model\.bin\).*convert these"),
        (["pytorch_model.bin.index.json", "pytorch_model-1-of-2.bin"], r"\(pytorch_model-1-of-2"),
        (["consolidated.00.pth"], r"pickles \(consolidated\.00\.pth\)"),
        (["model.Q4_0.gguf"], r"holds model\.Q4_0\.gguf, and ftcli opens model\.safetensors"),
        (["shard-00001-model-00001-of-00001.safetensors"], "holds shard-00001"),
    ],
)
def test_weights_in_another_form_are_refused_with_what_to_do(names: list[str], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        refuse_pickles("owner/name", names)
    refuse_pickles("owner/name", [*names, "model.safetensors"])
    refuse_pickles("owner/name", [*names, "model.safetensors.index.json"])


def test_a_folder_without_weights_has_none_to_refuse() -> None:
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
    with pytest.raises(ModelError, match="not a whole safetensors file") as caught:
        base_fingerprint(str(tmp_path))
    assert caught.value.file == str(tmp_path / "model.safetensors")


@pytest.mark.slow
def test_the_small_models_weights_survive_being_cut(small_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(small_model / "model.safetensors")
    names = sorted(held)
    folder, places = tmp_path / "cut", {}
    folder.mkdir()
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: held[name] for name in part}, folder / f"{number}.safetensors")
        places |= dict.fromkeys(part, f"{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert base_fingerprint(str(folder)) == base_fingerprint(str(small_model))
