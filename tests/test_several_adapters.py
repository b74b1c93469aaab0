"""`ftcli generate` with several runs on one base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from tests.conftest import pair, save_tiny_model

LORA = {"mode": "lora", "rank": 4}
TRAINING = {"max_steps": 6, "batch_size": 4, "learning_rate": "2e-2"}
PROMPTS = [f"Product: mug {number}" for number in range(6)]
NAMES = ["shop", "sql", "shop", "note", "sql", "shop"]


@pytest.fixture
def runs(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """Three adapters on one base, each made to say something else, with its own system prompt."""
    for name in ("shop", "sql", "note"):
        lines = [json.dumps(pair(n) | {"completion": f"{name} {n % 3}"}) for n in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        recipe = write_recipe(
            name,
            method=LORA,
            data={"train": f"{name}.jsonl", "validation": 0, "system": f"You write {name}."},
            training=TRAINING,
        )
        assert run(["train", str(recipe)]) == 0
    capsys.readouterr()
    return tmp_path / "runs"


def others(runs: Path) -> list[str]:
    return ["--adapter", f"sql={runs / 'sql'}", "--adapter", f"note={runs / 'note'}"]


def file_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answered(arguments: list[Any], source: Path, output: Path) -> list[dict[str, Any]]:
    flags = ["--input", str(source), "--output", str(output)]
    assert run(["generate", *map(str, arguments), *flags]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_every_row_is_answered_as_by_its_adapter_alone(runs: Path, tmp_path: Path) -> None:
    rows = [{"prompt": p, "adapter": n} for p, n in zip(PROMPTS, NAMES, strict=True)]
    found = answered(
        [runs / "shop", *others(runs)],
        file_of(tmp_path / "all.jsonl", rows),
        tmp_path / "together.jsonl",
    )
    assert [row["adapter"] for row in found] == NAMES
    assert [row["prompt"] for row in found] == PROMPTS
    texts = set()
    for name in set(NAMES):
        own = [row for row in rows if row["adapter"] == name]
        alone = answered(
            [runs / name], file_of(tmp_path / "own.jsonl", own), tmp_path / f"{name}-alone.jsonl"
        )
        together = [row for row in found if row["adapter"] == name]
        assert [r["completion"] for r in together] == [r["completion"] for r in alone]
        assert all("adapter" not in row for row in alone)
        texts |= {row["completion"] for row in alone}
    assert len(texts) > 1, "adapters that all say the same would prove nothing"


def test_an_interrupted_file_goes_on(runs: Path, tmp_path: Path) -> None:
    rows = [{"prompt": p, "adapter": n} for p, n in zip(PROMPTS, NAMES, strict=True)]
    source, output = file_of(tmp_path / "all.jsonl", rows), tmp_path / "out.jsonl"
    whole = answered([runs / "shop", *others(runs)], source, output)
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:2]))
    assert answered([runs / "shop", *others(runs)], source, output) == whole


def test_use_names_who_answers(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*arguments: str) -> str:
        capsys.readouterr()
        assert run(["generate", *arguments, PROMPTS[0], "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["completion"])

    alone = {name: answer(str(runs / name)) for name in ("shop", "sql", "note")}
    assert answer(str(runs / "shop"), *others(runs)) == alone["shop"]
    for name in ("sql", "note", "shop"):
        assert answer(str(runs / "shop"), *others(runs), "--use", name) == alone[name]
    mixes = ["--adapter", "all=note:1+sql:0", "--adapter", "other=shop:0.0+note:1.0"]
    # A weight of 0 takes a part out; a sum speaks as its first part was spoken to.
    assert answer(str(runs / "shop"), *others(runs), *mixes, "--use", "all") == alone["note"]
    assert isinstance(answer(str(runs / "shop"), *others(runs), *mixes, "--use", "other"), str)


def test_names_that_are_not_there(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, words in (
        (["--use", "sqll"], "no adapter of this name; did you mean sql? (there is shop, sql, note"),
        (
            ["--adapter", "mix=shop:0.5+nota:0.5"],
            "mix: nota: no adapter of this name; did you mean",
        ),
        (["--adapter", "nothing"], "expected NAME=RUN"),
        (["--adapter", f"sql={runs / 'note'}"], "sql is "),
    ):
        capsys.readouterr()
        assert run(["generate", str(runs / "shop"), *others(runs), *flags, "hello"]) == 2
        assert words in capsys.readouterr().err
    rows = [{"prompt": "a", "adapter": "nobody"}, {"prompt": "b", "adapter": "sql"}]
    found = answered(
        [runs / "shop", *others(runs)],
        file_of(tmp_path / "two.jsonl", rows),
        tmp_path / "two-out.jsonl",
    )
    assert [row["prompt"] for row in found] == ["b"]
    assert "two.jsonl:1: adapter 'nobody': no adapter of this name" in capsys.readouterr().err


def test_what_cannot_share_a_base(
    runs: Path,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strange = save_tiny_model(tmp_path / "strange", initializer_range=0.03)
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "far": ({"model": {"id": str(strange)}, "method": LORA}, "trained on another base"),
        "four": ({"method": {"mode": "qlora", "rank": 4}}, "a 4-bit base cannot share a base"),
        "soft": ({"method": {"mode": "prompt"}}, "prompt and a 16-bit base cannot share"),
        "whole": ({"method": {"mode": "full"}}, "holds a whole model"),
    }
    for name, (sections, words) in cases.items():
        assert run(["train", str(write_recipe(name, training=TRAINING, **sections))]) == 0
        capsys.readouterr()
        flags = ["--adapter", f"other={runs / name}"]
        assert run(["generate", str(runs / "shop"), *flags, "hello"]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    dora = write_recipe("dora", training=TRAINING, method=LORA | {"dora": True})
    assert run(["train", str(dora)]) == 0
    flags = ["--adapter", f"dora={runs / 'dora'}", "--adapter", "mix=shop:0.5+dora:0.5"]
    capsys.readouterr()
    assert run(["generate", str(runs / "shop"), *flags, "hello"]) == 1
    assert "DoRA scales the weight and the update together" in capsys.readouterr().err
