"""Errors found later, at the line of the key that caused them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.errors import DataError, FtcliError, ModelError
from tests.config.shop import SHOP, load, method


def test_a_key_has_its_place(here: Path) -> None:
    loaded = load(method("rank: 8"), "data.max_length=64", "data.max_length=32", "output=a")
    assert loaded.place("model.id") == ("shop.yaml", 3)
    assert loaded.place("method.rank") == ("shop.yaml", 6)
    assert loaded.place("method.alpha") == ("shop.yaml", 4)
    assert loaded.place("training.precision") == ("shop.yaml", None)
    assert loaded.place("data.max_length") == ("--set data.max_length=32", None)
    whole = load(SHOP, "training={epochs: 1, seed: 3}", "training.seed=4")
    assert whole.place("training.epochs") == ("--set training={epochs: 1, seed: 3}", None)
    assert whole.place("training.seed") == ("--set training.seed=4", None)


def test_an_error_of_a_key_gets_its_place(here: Path) -> None:
    loaded = load(SHOP)
    with pytest.raises(ModelError) as caught, loaded.locate():
        raise ModelError("model_missing", "nowhere does not exist")
    assert str(caught.value) == "shop.yaml:3: model.id: nowhere does not exist"
    with pytest.raises(ModelError) as caught, loaded.locate():
        raise ModelError("model_missing", "model.id: nowhere does not exist")
    assert str(caught.value) == "shop.yaml:3: model.id: nowhere does not exist"


@pytest.mark.parametrize(
    "error",
    [
        ModelError("model_missing", "no such folder", file="config.json"),
        DataError("data_missing", "no such file"),
    ],
    ids=["placed already", "no key's fault"],
)
def test_another_error_stays_as_it_is(error: FtcliError) -> None:
    before = str(error)
    with pytest.raises(FtcliError) as caught, load(SHOP).locate():
        raise error
    assert str(caught.value) == before
