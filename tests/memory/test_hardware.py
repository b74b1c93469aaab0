from __future__ import annotations

import os

import pytest

from ftcli.errors import UsageError
from ftcli.memory.hardware import GIB, KNOWN_CARDS, context_bytes, find_card
from tests.conftest import wants_gpu


@pytest.mark.parametrize("name", ["4090", "rtx 4090", "RTX4090", "NVIDIA GeForce RTX 4090 24GB"])
def test_a_card_is_found_by_what_people_call_it(name: str) -> None:
    assert find_card(name).name == "RTX 4090 24GB"


@pytest.mark.parametrize("card", KNOWN_CARDS, ids=lambda card: card.name)
def test_a_card_is_found_by_its_own_name(card) -> None:  # type: ignore[no-untyped-def]
    assert find_card(card.name) == card


def test_a_name_with_two_sizes_means_the_smaller() -> None:
    assert find_card("3080").sold_gib == 10
    assert find_card("3080 12GB").sold_gib == 12
    assert find_card("a100").sold_gib == 40


@pytest.mark.parametrize("size", ["24GB", "24 gb", "24GiB", "24g", "24"])
def test_a_size_is_a_desktop_card(size: str) -> None:
    card = find_card(size)
    assert card.memory_bytes == 24 * GIB
    assert card.usable_bytes == pytest.approx(find_card("4090").usable_bytes, rel=0.01)


def test_an_unknown_gpu_is_an_error_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no GPU 'rtx 4091' is known; did you mean RTX 4090"):
        find_card("rtx 4091")


@pytest.mark.parametrize("card", KNOWN_CARDS, ids=lambda card: card.name)
def test_usable_memory_is_what_cuda_shows_less_the_display(card) -> None:  # type: ignore[no-untyped-def]
    assert 0.86 * card.memory_bytes < card.usable_bytes < card.memory_bytes


def test_an_unknown_capability_takes_the_largest_context() -> None:
    assert context_bytes((99, 0)) == context_bytes(None)
    assert context_bytes((7, 5)) < context_bytes(None)


@pytest.mark.parametrize("expression", ["gpu", "slow and gpu", "gpu and not slow", "(gpu)"])
def test_tests_that_are_all_for_a_gpu_may_use_it(expression: str) -> None:
    assert wants_gpu(expression)


@pytest.mark.parametrize(
    "expression",
    ["", "not gpu", "not slow and not gpu", "slow", "not slow", "gpu or slow", "fault"],
)
def test_all_other_tests_run_on_the_cpu_of_a_machine_with_a_gpu(expression: str) -> None:
    assert not wants_gpu(expression)


def test_the_gpu_is_hidden_from_this_test() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
