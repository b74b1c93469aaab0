"""How memory grows with one size, and names of sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ftcli.errors import UsageError
from ftcli.memory import Choices
from ftcli.memory.fit.limits import size_named, sizes_of, sweep
from ftcli.memory.fit.search import estimate_on
from ftcli.memory.hardware import find_card
from ftcli.models.architectures.find import find_architecture

CARD = find_card("4090").hardware


def test_a_sweep_estimates_each_value_alone() -> None:
    architecture, choices = find_architecture("7b"), Choices("qlora")
    found = sweep(architecture, choices, "max-length", (512, 2048, 65_536), CARD)
    assert [row.value for row in found.rows] == [512, 2048, 65_536]
    for row in found.rows:
        assert row.estimate == estimate_on(architecture, replace(choices, seq_len=row.value), CARD)
    assert [row.fits for row in found.rows] == [True, True, False]
    assert {row.fits for row in sweep(architecture, choices, "rank", (8, 16), None).rows} == {None}


def test_a_sweep_is_read_from_its_text() -> None:
    assert sizes_of("max-length=2048, 512,512") == ("max-length", (512, 2048))
    assert sizes_of("rank=8") == ("rank", (8,))
    for text in (
        "max-length",
        "max-length=",
        "max-length=0",
        "max-length=1k",
        "rank=-4",
        "rank=1.5",
    ):
        with pytest.raises(UsageError, match="expected whole numbers"):
            sizes_of(text)


@pytest.mark.parametrize(
    ("name", "near"), [("maxlen", "max-length"), ("micro_batch", "micro-batch"), ("ranks", "rank")]
)
def test_an_unknown_size_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        size_named(name, "--max")
    assert str(caught.value) == (
        f"--max {name}: no such size; did you mean {near}?; sizes: max-length, micro-batch, rank"
    )
