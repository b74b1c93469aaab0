"""Every recipe under recipes/ loads, finds its data and its model's sizes, and can be planned."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from ftcli.config.loader import RecipeFile, load_recipe
from ftcli.data.example import Example
from ftcli.data.sources import read_examples
from ftcli.errors import MachineError
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.scorer import Question
from ftcli.memory.architecture import Architecture
from ftcli.memory.hardware import Hardware, find_card
from ftcli.models.architectures.find import find_architecture
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.y*ml"))
SMALL_PARAMETERS = 2 * 10**9

every_recipe = pytest.mark.parametrize(
    "path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes"))
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a shipped recipe asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def examples_of(loaded: RecipeFile) -> list[Example]:
    """Training rows, and those of the held-out files, in reading order."""
    data = loaded.recipe.data
    files = [name for name in (data.train, data.validation, data.test) if isinstance(name, str)]
    items = [item for name in files for item in read_examples(name, data)]
    rejects = [item for item in items if not isinstance(item, Example)]
    assert rejects == []
    return [item for item in items if isinstance(item, Example)]


def shape_of(loaded: RecipeFile) -> Architecture:
    return find_architecture(loaded.recipe.model.id, loaded.recipe.model.revision)


def longest_rows(loaded: RecipeFile) -> RowStatistics:
    """An upper bound: every row as long as the recipe allows."""
    rows, longest = len(examples_of(loaded)), loaded.recipe.data.max_length
    return RowStatistics(rows, rows * longest, longest, 1.0, 8 * longest)


def test_recipes_were_found() -> None:
    assert len(RECIPES) >= 6
    methods = {load_recipe(path).recipe.method.mode for path in RECIPES}
    assert methods == {"full", "lora", "qlora"}
    assert len({load_recipe(path).recipe.name for path in RECIPES}) == len(RECIPES)


@every_recipe
def test_it_loads_and_is_named_as_its_file(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.recipe.name == path.stem
    assert loaded.output == ROOT / "runs" / path.stem


@every_recipe
def test_editors_are_pointed_to_the_schema(path: Path) -> None:
    first = path.read_text("utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=../docs/recipe.schema.json"


@every_recipe
def test_its_data_are_read_without_a_reject(path: Path) -> None:
    examples = examples_of(load_recipe(path))
    assert len(examples) >= 40
    assert all(example.answer.strip() for example in examples)


@every_recipe
def test_its_answers_have_the_form_it_asks_for(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.recipe.eval.format is not None
    judge = format_scorer(loaded.recipe.eval.format)
    for example in examples_of(loaded):
        said = judge.score(example.answer, Question("", example.answer, ""))
        assert said.counts["format_rate"] == (1, 1), (str(example.origin), said.findings)


@every_recipe
def test_its_model_is_known_without_a_network(path: Path) -> None:
    architecture = shape_of(load_recipe(path))
    assert architecture.hub_id is not None
    assert architecture.parameters > 10**8


@every_recipe
def test_it_fits_a_24_gb_card(path: Path) -> None:
    loaded, sold = load_recipe(path), find_card("4090")
    free_bytes = sold.usable_bytes - sold.context_bytes
    gpu = Hardware("cuda", sold.name, sold.memory_bytes, free_bytes, (8, 9), True, 16)
    plan = make_plan(loaded.recipe, shape_of(loaded), longest_rows(loaded), gpu)
    assert plan.training.micro_batch_size * plan.accumulation == loaded.recipe.training.batch_size
    assert plan.training.precision == "bf16"
    assert plan.estimate.fits[sold.name]
    assert plan.steps >= 20


@pytest.mark.parametrize(("fast_bf16", "precision"), [(False, "fp32"), (True, "bf16")])
def test_small_models_train_on_two_cores(fast_bf16: bool, precision: str) -> None:
    size = 16 * 10**9
    cpu = Hardware("cpu", "two cores", size, size, None, fast_bf16, 2)
    loaded = [load_recipe(path) for path in RECIPES]
    small = [each for each in loaded if shape_of(each).parameters < SMALL_PARAMETERS]
    assert {each.recipe.method.mode for each in small} >= {"full", "lora"}
    for each in small:
        plan = make_plan(each.recipe, shape_of(each), longest_rows(each), cpu)
        assert plan.training.precision == precision
        assert plan.training.micro_batch_size * plan.accumulation == each.recipe.training.batch_size


@every_recipe
def test_a_stricter_machine_is_refused_in_words(path: Path) -> None:
    loaded = load_recipe(path)
    tiny = Hardware("cpu", "a toaster", 10**8, 10**8, None, False, 1)
    with pytest.raises(MachineError, match=r"a toaster has 0\.1 GiB free; "):
        make_plan(loaded.recipe, shape_of(loaded), replace(longest_rows(loaded)), tiny)
