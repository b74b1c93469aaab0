"""Fixtures that many tests share: a tiny random chat model, rows to train on, the real model."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from _pytest.mark.expression import Expression
from filelock import FileLock

from ftcli.data.dataset import Dataset, LongestRow, SplitCounts

# Types of fixtures.
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
Recipes = Callable[..., Path]
Observed = Callable[[str], None]

# Before torch is loaded: threads that spin at barriers take the cores from the other workers.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# Workers share the cores, and models this small wait for threads more than they compute.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about what else the machine does.
hypothesis.settings.register_profile("all", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=30)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU from the tests of a CPU, and from what they start: they say what a CPU does.

    Before any of them uses CUDA, which reads this once.
    """
    hypothesis.settings.load_profile("quick" if "not slow" in config.option.markexpr else "all")
    if not wants_gpu(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def wants_gpu(expression: str) -> bool:
    """Whether a mark expression (`pytest -m`) selects tests marked `gpu`, and no others."""
    if not expression:
        return False
    selects = Expression.compile(expression).evaluate

    def some(*, gpu: bool) -> bool:
        marks = ({"gpu": gpu, "slow": a, "fault": b} for a, b in product((False, True), repeat=2))
        return any(selects(lambda name, each=each, **_: each.get(name, False)) for each in marks)

    return some(gpu=True) and not some(gpu=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's reports name the faults it proves: user properties also leave a worker of xdist.

    Files with slow tests come first, so that no worker ends alone with a long one.
    """
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties.extend(("fault", number) for number in mark.args)
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


IMPORTED = 0  # modules when the collector was last asked to leave them alone


@pytest.fixture(autouse=True)
def _imports_are_no_garbage() -> None:
    """As ftcli's own processes have it (ftcli.kernels.cpu): looking through all that torch and
    transformers import takes 0.4 s, twice a training."""
    global IMPORTED
    if len(sys.modules) > IMPORTED + 50:
        gc.collect()
        gc.freeze()
        IMPORTED = len(sys.modules)


@pytest.fixture(scope="module", autouse=True)
def pictures() -> Iterator[None]:
    """Hundreds of tiny runs write a report that no test opens: only tests/report draws pictures."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ftcli.report.charts.draw", lambda chart: "<svg/>")
        yield


@pytest.fixture(scope="module", autouse=True)
def few_instructions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that say nothing are asked a quarter of the general instructions."""
    from ftcli.evaluation import general_ability

    built_in = general_ability.BUILT_IN_INSTRUCTIONS
    few = tmp_path_factory.mktemp("general") / built_in.name
    lines = built_in.read_text(encoding="utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[::4]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(general_ability, "BUILT_IN_INSTRUCTIONS", few)
        yield


# Rooms whose tests build tiny models themselves.
ONE_THREAD = {"data", "models", "kernels", "training", "inference", "export"}


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Models this small wait for threads more than they compute."""
    if request.path.parent.name not in ONE_THREAD:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def observed(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says in a short phrase what a test saw; docs/faults.md shows it next to what is required."""

    def say(phrase: str) -> None:
        record_property("observed", phrase)

    return say


@pytest.fixture(scope="session")
def complete() -> bool:
    """Whether the tests of the faults run their full counts (make faults) or their short ones."""
    return os.environ.get("FTCLI_FAULTS") == "complete"


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COLOURS = ("red", "green", "blue", "black", "white", "grey", "teal", "coral")
THINGS = ("kettle", "lamp", "chair", "drum", "scarf", "spade", "kite", "mug")


def pair(number: int) -> dict[str, str]:
    """A small product and its listing."""
    thing, colour = THINGS[number % 8], COLOURS[number // 8 % 8]
    return {
        "prompt": f"Product: {thing} {number}\nColour: {colour}",
        "completion": f"# {thing} {number}\nA {colour} {thing}.",
    }


def prepared_data(**changes: Any) -> Dataset:
    """A preparation of ten training rows, changed as asked."""
    values: dict[str, Any] = {
        "fingerprint": "0123abcd",
        "model": "model",
        "train_source": "rows.jsonl",
        "max_length": 1024,
        "rows_read": 12,
        "rows_rejected": 0,
        "duplicates": 0,
        "overlap": 0,
        "train": SplitCounts(10, 2000, 500),
        "validation": SplitCounts(2, 300, 100),
        "test": SplitCounts(0, 0, 0),
        "answer_tokens": 600,
        "answer_tokens_lost": 0,
        "longest": LongestRow("shop.jsonl", 7, 321),
        "system": None,
        "plain_text": False,
        "stop_ids": (2,),
        "pad_id": 0,
        "rejected": (),
    }
    return Dataset(**values | changes)


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer with ChatML, and a pad token that is not its end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([json.dumps(pair(n)) for n in range(64)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def save_tiny_model(
    folder: Path,
    model_type: str = "llama",
    *,
    tokenizer: Any = None,
    **keys: Any,
) -> Path:
    """A random model of a type with the tiny tokenizer or another; keys go over TINY."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tokenizer or tiny_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **TINY | keys,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama with a byte-level tokenizer and ChatML."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", head_dim=16)


def save_rows(folder: Path) -> Path:
    """48 pairs as jsonl."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(pair(n)) + "\n" for n in range(48)))
    return path


def save_recipe(folder: Path, base: Path, name: str = "tiny", **sections: Any) -> Path:
    """A small recipe for the rows of `save_rows`; keyword arguments replace whole sections."""
    recipe: dict[str, Any] = {
        "name": name,
        "model": {"id": str(base)},
        "method": {"mode": "lora", "rank": 4},
        "data": {"train": "rows.jsonl", "validation": 8, "test": 8, "max_length": 256},
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": "1e-3", "eval_steps": 4},
        "generation": {"max_new_tokens": 8},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe | sections, sort_keys=False))
    return path


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """48 pairs as jsonl."""
    return save_rows(tmp_path)


@pytest.fixture
def write_recipe(
    tmp_path: Path, tiny_model: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Write a small recipe where the test stands; keyword arguments replace whole sections."""
    monkeypatch.chdir(tmp_path)

    def write(name: str = "tiny", **sections: Any) -> Path:
        return save_recipe(tmp_path, tiny_model, name, **sections)

    return write


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder by name, filled once a session, whichever worker needs it first; for reading."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / f"shared-{name}", root / f"shared-{name}.done"
        with FileLock(root / f"shared-{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_run(made_once: Callable[..., Path], tiny_model: Path) -> Path:
    """A finished LoRA run of two steps on the rows of `save_rows`; copy it to change it."""
    from ftcli.cli import run

    def train(home: Path) -> None:
        save_rows(home)
        recipe = save_recipe(home, tiny_model, training={"max_steps": 2, "batch_size": 4})
        assert run(["train", str(recipe)]) == 0

    return made_once("tiny", train) / "runs" / "tiny"


@pytest.fixture(scope="session")
def eval_run(
    made_once: Callable[..., Path], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A LoRA run of six steps in fp32, of this process alone: evaluations may be written into it.

    32 rows of training, 8 of validation, 8 of test.
    """
    from ftcli.cli import run

    def train(home: Path) -> None:
        save_rows(home)
        training = {"batch_size": 4, "learning_rate": "1e-2", "precision": "fp32", "max_steps": 6}
        assert run(["train", str(save_recipe(home, tiny_model, training=training))]) == 0

    home = tmp_path_factory.mktemp("eval") / "home"
    shutil.copytree(made_once("six-steps", train), home)
    return home / "runs" / "tiny"


@pytest.fixture
def unevaluated_run(eval_run: Path) -> Iterator[Path]:
    """The same run without evaluations, and left without."""
    shutil.rmtree(eval_run / "eval", ignore_errors=True)
    yield eval_run
    shutil.rmtree(eval_run / "eval", ignore_errors=True)


@pytest.fixture(scope="session")
def small_model() -> Path:
    """The real small model, where FTCLI_SMALL_MODEL names its folder (make test does)."""
    folder = Path(os.environ.get("FTCLI_SMALL_MODEL", ""))
    if not (folder / "model.safetensors").is_file():
        pytest.skip("FTCLI_SMALL_MODEL names no folder of the small model (make test fetches it)")
    return folder
