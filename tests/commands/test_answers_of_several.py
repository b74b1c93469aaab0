"""`ftcli generate` with several runs on one base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.errors import ModelError, UsageError
from tests.conftest import save_tiny_model
from tests.several import (
    LORA,
    NAMES,
    PROMPTS,
    QLORA,
    answered,
    copy_of,
    file_of,
    members,
    others,
    three_runs,
    train,
)


@pytest.fixture(scope="module")
def runs(tiny_model: Path, made_once: Callable[..., Path]) -> Path:
    return made_once("several", lambda home: three_runs(home, tiny_model)) / "runs"


def require_each_as_alone(runs: Path, names: list[str], folder: Path) -> None:
    """Rows of one file are answered as by their adapters alone."""
    rows = [{"prompt": p, "adapter": n} for p, n in zip(PROMPTS, names, strict=True)]
    first, *more = dict.fromkeys(names)
    flags = [flag for name in more for flag in ("--adapter", f"{name}={runs / name}")]
    source = file_of(folder / "all.jsonl", rows)
    found = answered([runs / first, *flags], source, folder / "together.jsonl")
    assert [row["adapter"] for row in found] == names
    assert [row["prompt"] for row in found] == PROMPTS
    texts = set()
    for name in set(names):
        own = [row for row in rows if row["adapter"] == name]
        alone = answered(
            [runs / name], file_of(folder / "own.jsonl", own), folder / f"{name}-alone.jsonl"
        )
        together = [row for row in found if row["adapter"] == name]
        assert [r["answer"] for r in together] == [r["answer"] for r in alone]
        texts |= {row["answer"] for row in alone}
    assert len(texts) > 1, "adapters that all say the same would prove nothing"


def test_every_row_is_answered_as_by_its_adapter_alone(runs: Path, tmp_path: Path) -> None:
    require_each_as_alone(runs, NAMES, tmp_path)


def test_prefixes_share_a_base_too(tmp_path: Path) -> None:
    # With smaller weights a random base repeats the last token, whatever stands before it.
    base = save_tiny_model(tmp_path / "lively", initializer_range=0.2)
    for name in ("left", "right"):
        train(tmp_path, base, name, mode="prefix-tuning")
    names = ["left", "right", "right", "left", "left", "right"]
    require_each_as_alone(tmp_path / "runs", names, tmp_path)


def test_use_names_who_answers(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*arguments: str) -> str:
        capsys.readouterr()
        assert run(["generate", *arguments, PROMPTS[0], "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["answer"])

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


def test_a_name_stands_for_one_thing(runs: Path) -> None:
    sql, mix = f"sql={runs / 'sql'}", "mix=shop:0.7+sql:0.3"
    for flags, words in (
        ([f"shop={runs / 'sql'}"], f"shop is {runs / 'shop'} already; give another name"),
        ([sql, f"sql={runs / 'note'}"], f"sql is {runs / 'sql'} already"),
        ([sql, "shop=shop:0.7+sql:0.3"], f"shop is {runs / 'shop'} already"),
        ([sql, "sql=sql:0.5+shop:0.5"], f"sql is {runs / 'sql'} already"),
        ([sql, mix, "mix=shop:0.1+sql:0.9"], "mix is shop:0.7+sql:0.3 already"),
        ([sql, mix, f"mix={runs / 'sql'}"], "mix is shop:0.7+sql:0.3 already"),
    ):
        with pytest.raises(UsageError) as caught:
            members(runs, *flags)
        assert f"--adapter {flags[-1]}: {words}" in str(caught.value)
    assert [m.name for m in members(runs, sql, sql, f"shop={runs / 'shop'}")] == ["shop", "sql"]


@pytest.mark.parametrize(
    ("decision", "value", "words"),
    [
        ("precision", "fp16", "its precision is fp16 (shop: "),
        ("attention", "eager", "its attention is eager (shop: sdpa)"),
    ],
)
def test_what_was_planned_otherwise_cannot_share_a_base(
    decision: str, value: str, words: str, runs: Path, tmp_path: Path
) -> None:
    assert len(members(runs, f"other={copy_of(runs / 'sql', tmp_path / 'same')}")) == 2
    other = copy_of(runs / "sql", tmp_path / "other", **{decision: value})
    with pytest.raises(ModelError) as caught:
        members(runs, f"other={other}")
    message = str(caught.value)
    start = f"--adapter other: it cannot share a base in memory with shop: {words}"
    assert caught.value.code == "adapters_differ" and message.startswith(start)
    assert message.endswith(
        f"; train both the same way, or load them one at a time (ftcli generate {other} '…')"
    )


@pytest.mark.slow
def test_what_cannot_share_a_base(
    runs: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = save_tiny_model(tmp_path / "strange", initializer_range=0.03)
    double = train(tmp_path, tiny_model, "double", mode="qlora")
    cases: dict[str, tuple[Path, Path, dict[str, Any], str]] = {
        "far": (runs / "shop", strange, LORA, "trained on another base than shop"),
        "four": (runs / "shop", tiny_model, QLORA, "base is in 4 bits (shop: not quantised)"),
        "soft": (
            runs / "shop",
            tiny_model,
            {"mode": "prompt-tuning"},
            "method is prompt-tuning (shop: LoRA)",
        ),
        "whole": (runs / "shop", tiny_model, {"mode": "full"}, "is a full model"),
        "single": (
            double,
            tiny_model,
            QLORA | {"double_quantization": False},
            "base is in 4 bits with double_quantization false (double: in 4 bits)",
        ),
    }
    for name, (first, model, method, words) in cases.items():
        other = train(tmp_path, model, name, **method)
        capsys.readouterr()
        assert run(["generate", str(first), "--adapter", f"other={other}", "hello"]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
        assert error.endswith(f"load them one at a time (ftcli generate {other} '…')\n")


def test_a_sum_takes_plain_low_rank_updates_only(
    runs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    dora = train(tmp_path, tiny_model, "dora", **LORA, dora=True)
    with pytest.raises(ModelError) as caught:
        members(runs, f"dora={dora}", "mix=shop:0.5+dora:0.5")
    assert str(caught.value) == (
        "--adapter mix: dora cannot be part of it: DoRA scales the weight and the update together; "
        "leave it out, or use it alone (--use dora)"
    )
