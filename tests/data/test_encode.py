"""The preparation is made anew where anything that shapes its rows has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.data.prepared import load_prepared
from ftcli.data.tokenizing.rows import read_split
from tests.conftest import pair, save_tiny_model


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
def test_a_token_with_another_role_prepares_anew(
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
        stops = json.loads((Path(after["folder"]) / "prepared.json").read_text())["stop_ids"]
        labels = read_split(Path(after["folder"]), "train").column("labels").to_pylist()
        assert {row[-1] for row in labels} <= set(stops)
    assert prepare()["fingerprint"] == before["fingerprint"]


def test_the_parts_of_a_fingerprint_say_what_has_changed(
    write_recipe: Callable[..., Path], rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe()

    def parts(*flags: str) -> dict[str, str]:
        capsys.readouterr()
        assert run(["prepare", str(recipe), "--json", *flags]) == 0
        folder = Path(json.loads(capsys.readouterr().out)["folder"])
        prepared = load_prepared(folder)
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
