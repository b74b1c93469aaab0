"""Every known model, and every model type, against its published count and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcli.memory import known_models
from ftcli.memory.architecture import write_architecture
from ftcli.memory.known_models import known_architecture, known_configs

FILE: dict[str, Any] = json.loads(
    Path(known_models.__file__).with_suffix(".json").read_text(encoding="utf-8")
)
KNOWN = FILE["models"]


def ids(models: list[dict[str, Any]]) -> list[str]:
    return [next(iter(model["hub_ids"])) for model in models]


IDS = ids(KNOWN)


@pytest.mark.parametrize("model", KNOWN, ids=IDS)
def test_a_known_model_has_its_published_count(model: dict[str, Any]) -> None:
    hub_id = next(iter(model["hub_ids"].values()))
    found = known_architecture(hub_id)
    if found is None:
        pytest.skip("not measured yet: it is when it is first asked for")
    assert found.parameters == model["parameters"]
    assert_as_published(model["parameters"] + model.get("left_out", 0), model["published"])


def test_the_counts_of_an_architecture_add_up() -> None:
    for hub_id in known_configs():
        found = known_architecture(hub_id)
        if found is None:
            continue
        layers = sum(len(kind.layers) * kind.parameters for kind in found.kinds)
        head = found.vocab if found.head_bias else 0
        outside = sum(found.outer) + found.embedding_parameters + found.tower_parameters + head
        assert layers + outside == found.parameters, hub_id


def assert_as_published(count: int, published: str) -> None:
    """Equal, or equal as rounded there."""
    if published[-1] not in "BM":
        assert count == int(published.replace(",", ""))
        return
    figure, unit = published[:-1], {"B": 1e9, "M": 1e6}[published[-1]]
    digits = len(figure.partition(".")[2])
    assert round(count / unit, digits) == float(figure)


@pytest.mark.slow
@pytest.mark.parametrize("hub_id", known_configs())
def test_a_known_model_is_measured_again_as_it_is_shipped(hub_id: str) -> None:
    from ftcli.models.architectures.measure import config_of, measure

    if hub_id.startswith("google/gemma-3n"):  # its vision tower is timm's
        pytest.importorskip("timm", reason="gemma3n is built with timm, which is not installed")
    shipped = known_architecture(hub_id)
    assert shipped is not None
    found = json.loads(write_architecture(measure(config_of(known_configs()[hub_id]))))
    wanted = json.loads(write_architecture(shipped))
    assert found | {"ways": []} == wanted | {"ways": []}


ONE_OF_EACH_TYPE = {config["model_type"]: hub_id for hub_id, config in known_configs().items()}


@pytest.mark.slow
@pytest.mark.parametrize("hub_id", sorted(ONE_OF_EACH_TYPE.values()))
def test_a_way_of_computing_is_measured_again_as_it_is_shipped(hub_id: str) -> None:
    from ftcli.models.architectures.measure import config_of
    from ftcli.models.architectures.ways import Measurer

    shipped = known_architecture(hub_id)
    if shipped is None:
        pytest.skip("its class needs a package that is not installed")
    first = shipped.ways[0]
    assert Measurer(config_of(known_configs()[hub_id])).way(first.way) == first


def test_no_name_means_two_models() -> None:
    names = [name for model in KNOWN for name in model["hub_ids"]]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)
    configs: dict[str, str] = {}
    for model in KNOWN:
        for hub_id in model["hub_ids"].values():
            assert configs.setdefault(hub_id, str(model["config"])) == str(model["config"])


def test_every_entry_says_where_it_can_be_checked() -> None:
    checked = {key for model in KNOWN for key in model.get("checked", [])}
    counted = {model["counted_by"] for model in KNOWN if "counted_by" in model}
    assert checked | counted == FILE["references"].keys()
    for model in KNOWN:
        assert model["source"].endswith(tuple(model["hub_ids"].values()))
        if "checked" not in model:
            assert any(name in FILE["source"] for name in model["hub_ids"])
