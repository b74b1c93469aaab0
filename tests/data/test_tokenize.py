"""The second pass writes the rows of the first, or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.data.dataset import RowsOf, load_dataset
from ftcli.data.splits import SplitRows
from ftcli.data.tokenizing import tokenize
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.data.tokenizing.prefix_tree import SHARED_TOKENS
from ftcli.errors import DataError
from tests.conftest import pair, save_tiny_model
from tests.faults.bench import Bench, bench_in

ROWS = [json.dumps(pair(number)) for number in range(6)]


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    return bench_in(tmp_path, tiny_model)


@pytest.mark.parametrize(
    "after",
    [[*ROWS, json.dumps(pair(6))], ROWS[:-1], [*ROWS[:-1], json.dumps(pair(7))]],
    ids=["a row more", "a row less", "another row"],
)
def test_a_file_that_changes_while_it_is_read_is_an_error(
    after: list[str], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bench.folder / "rows.jsonl"
    file.write_text("\n".join(ROWS))
    first: Callable[..., SplitRows] = tokenize.find_splits

    def changing(*arguments: Any) -> SplitRows:
        found = first(*arguments)
        file.write_text("\n".join(after))
        return found

    monkeypatch.setattr(tokenize, "find_splits", changing)
    with pytest.raises(DataError) as caught:
        bench.prepare(train="rows.jsonl")
    assert str(caught.value) == "rows.jsonl: has changed while it was read; run the command again"
    assert caught.value.code == "data_changed"
    assert [path.name for path in bench.folder.iterdir()] == ["rows.jsonl"]


SYSTEM = "You write a listing for the shop, short and true."
"""Of rows that have it, all begin alike."""


@pytest.mark.parametrize(
    ("system", "replayed"),
    [(SYSTEM, False), (None, False), (SYSTEM, True)],
    ids=["a system prompt", "none", "replayed rows without one"],
)
def test_what_all_rows_begin_with_is_counted(
    system: str | None, replayed: bool, bench: Bench
) -> None:
    rows = [pair(number) for number in range(12)]
    general = [{"prompt": f"Why is {name} so?", "completion": "It is."} for name in "abcdefgh"]
    for name, some in {"rows": rows, "general": general}.items():
        lines = (json.dumps(row) + "\n" for row in some)
        (bench.folder / f"{name}.jsonl").write_text("".join(lines))
    more = {"replay": {"source": "general.jsonl", "ratio": 0.3}} if replayed else {}
    words = {"system": system} if system is not None else {}
    found = bench.prepare(train="rows.jsonl", **words, **more)
    kinds: list[RowsOf] = ["train", "replay"] if replayed else ["train"]
    ids = [row for kind in kinds for row in read_split(found.folder, kind)["input_ids"].to_pylist()]
    columns = enumerate(zip_longest(*ids))
    expected = next(place for place, column in columns if len(set(column)) > 1)
    assert found.prepared.common_tokens == (expected if expected >= SHARED_TOKENS else 0)
    assert (found.prepared.common_tokens > len(SYSTEM) / 5) == (system is not None and not replayed)


def test_a_held_out_file_gives_the_recipes_words_no_other_meaning(bench: Bench) -> None:
    """`persona` is a column of the training rows, so a row without it is rejected."""
    row = {"prompt": "a", "completion": "b"}
    (bench.folder / "rows.jsonl").write_text(json.dumps(row | {"persona": "Be brief."}))
    (bench.folder / "held.jsonl").write_text(json.dumps(row | {"prompt": "c"}))
    found = bench.prepare(train="rows.jsonl", validation="held.jsonl", system="persona")
    assert found.prepared.validation.rows == 0
    assert found.problems() == {
        1: "data.system: no column persona; the columns are prompt, completion"
    }


@pytest.fixture(scope="module")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base without a chat template, so that the plain one is taken."""
    base = save_tiny_model(tmp_path_factory.mktemp("model") / "plain")
    (base / "chat_template.jinja").unlink()
    return base


@pytest.fixture
def prepare(
    plain_base: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> Callable[[], dict[str, Any]]:
    recipe = write_recipe(model={"id": str(plain_base)})

    def ask() -> dict[str, Any]:
        capsys.readouterr()
        assert run(["prepare", str(recipe), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return ask


@pytest.mark.parametrize(
    ("role", "token"),
    [("eos_token", "<|im_start|>"), ("pad_token", "<|im_start|>"), ("bos_token", "<|im_start|>")],
)
def test_a_token_with_another_role_prepares_again(
    role: str, token: str, plain_base: Path, prepare: Callable[[], dict[str, Any]]
) -> None:
    """tokenizer.json, the tokens themselves, stays as it is."""
    before = prepare()
    assert prepare() == before
    config = plain_base / "tokenizer_config.json"
    kept = config.read_text()
    try:
        config.write_text(json.dumps(json.loads(kept) | {role: token}))
        after = prepare()
    finally:
        config.write_text(kept)
    assert after["fingerprint"] != before["fingerprint"]
    if role == "eos_token":
        stops = json.loads((Path(after["run_dir"], "data") / "prepared.json").read_text())[
            "stop_ids"
        ]
        labels = read_split(Path(after["run_dir"], "data"), "train").column("labels").to_pylist()
        assert {row[-1] for row in labels} <= set(stops)
    assert prepare()["fingerprint"] == before["fingerprint"]


def test_the_parts_of_a_fingerprint_say_what_has_changed(
    write_recipe: Callable[..., Path], rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()

    def parts(*flags: str) -> dict[str, str]:
        capsys.readouterr()
        assert run(["prepare", str(recipe), "--json", *flags]) == 0
        folder = Path(json.loads(capsys.readouterr().out)["run_dir"], "data")
        prepared = load_dataset(folder)
        assert prepared is not None
        return dict(prepared.parts)

    def changed(*flags: str) -> set[str]:
        now = parts(*flags)
        assert now.keys() == before.keys()
        return {name for name in now if now[name] != before[name]}

    before = parts()
    assert changed() == set()
    assert changed("--set", "training.seed=1") == {"seed"}
    assert changed("--set", "data.template=chatml") == {"chat template", "data keys of the recipe"}
    rows_file.write_text(rows_file.read_text() + json.dumps(pair(50)) + "\n")
    assert changed() == {"rows of data.train"}
