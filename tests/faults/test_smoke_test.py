"""`ftcli train --smoke-test` finds what would have failed late, and leaves nothing but the data."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.data.dataset import load_dataset
from ftcli.runs.folder import RunFolder
from tests.conftest import TINY, Capture, Observed, Patch, Recipes, pair

pytestmark = pytest.mark.slow

METHODS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "lora": {"mode": "lora", "rank": 4, "dropout": 0.1, "modules_to_save": ["embed_tokens"]},
    "qlora": {"mode": "qlora", "rank": 4},
    "bottleneck": {"mode": "bottleneck", "bottleneck": 8},
    "prefix-tuning": {"mode": "prefix-tuning", "projection": True},
    "prompt-tuning": {"mode": "prompt-tuning", "init_text": "Product"},
}
DATA = {"prepared.json", "train.arrow", "validation.arrow", "test.arrow"}
STAGES = [
    "look",
    "prepare",
    "plan",
    "tiny model",
    "longest batch",
    "train",
    "resume",
    "eval",
    "merge",
]
STAGES.append("generate")

Finds = Callable[..., str]


def rows_of(count: int = 48) -> str:
    return "".join(json.dumps(pair(number)) + "\n" for number in range(count))


def left_behind(folder: Path) -> set[str]:
    """Files below `runs`, without their folders; locks are the run folder's own."""
    files = (path for path in folder.rglob("runs/**/*") if path.is_file())
    return {path.name for path in files if path.name != ".lock"}


@pytest.fixture
def finds(tmp_path: Path, capsys: Capture) -> Finds:
    """Smoke-test, and check that it ends in this stage with this exit code, in words and tidily."""

    def smoke_test(recipe: Path, stage: str, *, code: int = 1) -> str:
        assert run(["train", str(recipe), "--smoke-test"]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        *_, said = err.partition("smoke test, ")
        assert said.startswith(f"{stage}: ")
        assert left_behind(tmp_path) <= DATA
        assert not list(tmp_path.rglob(".tmp-*"))
        return said.removeprefix(f"{stage}: ").rstrip()

    return smoke_test


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change_json(file: Path, **values: object) -> None:
    """Set keys of a JSON object; none takes a key away."""
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


# What must pass


@pytest.mark.parametrize("mode", METHODS)
def test_every_method_passes_and_the_data_stay_for_the_training(
    mode: str, write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    recipe = write_recipe(method=METHODS[mode])
    assert run(["train", str(recipe), "--smoke-test", "--json"]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found) == {"smoke_test", "seconds", "stages", "data", "plan"}
    assert found["smoke_test"] == "passed"
    assert [stage["name"] for stage in found["stages"]] == STAGES
    assert all(set(stage) == {"name", "seconds", "detail"} for stage in found["stages"])
    assert err.count("\nsmoke test ") == len(STAGES) - 1
    assert left_behind(tmp_path) == DATA and not list(tmp_path.rglob(".tmp-*"))
    details = {stage["name"]: stage["detail"] for stage in found["stages"]}
    assert details["train"] == "validated, saved, stopped by SIGTERM after step 2"
    assert details["resume"].startswith("from step 2 to 4; ")
    assert details["eval"] == "base and tuned on 2 test rows"
    data = tmp_path / "runs" / "tiny" / "data"
    assert found["data"] == str(data)
    # What the training would do, not the smoke test.
    assert found["plan"]["steps"] == 8
    mark = load_dataset(data)
    assert run(["train", str(recipe), "--dry-run"]) == 0
    assert "prepare " not in capsys.readouterr().err
    assert load_dataset(data) == mark


def test_a_person_reads_the_legs_and_then_the_command_whatever_a_killed_one_has_left(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    write_recipe()
    left = tmp_path / "runs" / ".tmp-smoke-test-tiny" / "run"
    left.mkdir(parents=True)
    (left / "run.json").write_text('{"state": "finished"}')
    monkeypatch.chdir(tmp_path)
    assert run(["train", "tiny.yaml", "--smoke-test", "--set", "training.seed=7"]) == 0
    out, err = capsys.readouterr()
    stages = [line for line in err.splitlines() if line.startswith("smoke test")]
    assert stages[0].startswith("smoke test  1/10  look           llama on ")
    assert stages[-1].startswith("smoke test 10/10  generate       up to 8 tokens (")
    verdict, plan, *rest = out.splitlines()
    assert verdict.startswith("smoke test passed in ")
    assert verdict.endswith(" s: nothing failed on the way")
    assert plan.startswith("plan   ") and plan.endswith(" 8 steps")
    assert rest == ["data   runs/tiny/data", "next   ftcli train tiny.yaml --set training.seed=7"]
    assert left_behind(tmp_path) == DATA and not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.fault(32)
def test_the_longest_row_goes_first_though_it_comes_last(
    write_recipe: Recipes, rows_file: Path, capsys: Capture, observed: Observed
) -> None:
    longest = {"prompt": "Product: " + "kettle " * 30, "completion": "# kettle"}
    rows_file.write_text(rows_of() + json.dumps(longest) + "\n")
    recipe = write_recipe(data={"train": rows_file.name, "validation": 0, "max_length": 256})
    assert run(["train", str(recipe), "--smoke-test", "--json"]) == 0, capsys.readouterr().err
    details = {
        stage["name"]: stage["detail"] for stage in json.loads(capsys.readouterr().out)["stages"]
    }
    tokens = int(details["prepare"].partition("the longest has ")[2].split()[0])
    assert details["prepare"].endswith(f"has {tokens} tokens (rows.jsonl:49)")
    assert details["longest batch"] == f"2 × 1 rows, {tokens} tokens"
    observed(f"a smoke test begins with row 49 of 49, of {tokens} tokens")


def test_an_existing_run_is_not_touched(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    recipe = write_recipe()
    assert run(["train", str(recipe), "--set", "training.max_steps=1"]) == 0
    folder = tmp_path / "runs" / "tiny"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(["train", str(recipe), "--smoke-test"]) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.slow
def test_the_small_models_recipe_passes(small_model: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "ecommerce-qlora.yaml"
    values = [f"model.id={small_model}", f"output={tmp_path / 'runs' / 'shop'}"]
    flags = [word for value in values for word in ("--set", value)]
    assert run(["train", str(recipe), "--smoke-test", "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in found["stages"]] == STAGES
    assert found["plan"]["steps"] == 76  # a tenth is replayed
    assert left_behind(tmp_path) == DATA | {"replay.arrow"}


def test_no_model_of_an_earlier_leg_is_held_when_the_next_begins(
    write_recipe: Recipes, monkeypatch: Patch
) -> None:
    from ftcli.cli.train import smoke_test
    from ftcli.training import train as training

    models: list[weakref.ref[Any]] = []
    alive: dict[str, int] = {}
    build = training.build_trainer

    def counted(*args: Any) -> Any:
        alive[f"sitting {len(models) + 1}"] = sum(model() is not None for model in models)
        trainer = build(*args)
        models.append(weakref.ref(trainer.model))
        return trainer

    def evaluating(*args: Any) -> str:
        alive["eval"] = sum(model() is not None for model in models)
        return ""

    monkeypatch.setattr(training, "build_trainer", counted)
    monkeypatch.setattr(smoke_test, "_evaluate", evaluating)
    assert run(["train", str(write_recipe()), "--smoke-test"]) == 0
    assert alive == {"sitting 1": 0, "sitting 2": 0, "eval": 0}


# What must be found


def test_a_template_without_an_end_token_where_the_tokenizer_has_none(
    own_model: Path, write_recipe: Recipes, tmp_path: Path, finds: Finds
) -> None:
    change_json(own_model / "tokenizer_config.json", eos_token=None)
    (tmp_path / "endless.jinja").write_text(
        "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    )
    keys = {"train": "rows.jsonl", "template": "endless.jinja"}
    said = finds(write_recipe(model={"id": str(own_model)}, data=keys), "look")
    assert said.endswith("model.id: the tokenizer has no end-of-text token (eos_token)")


def test_a_template_whose_end_token_the_model_has_not(write_recipe: Recipes, finds: Finds) -> None:
    said = finds(write_recipe(data={"train": "rows.jsonl", "template": "llama3"}), "look")
    assert (
        "data.template: llama3 ends answers with <|eot_id|>, which is not a token of this" in said
    )


def test_a_disk_that_is_too_small(write_recipe: Recipes, finds: Finds, monkeypatch: Patch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 * 10**9, 10**9, 100_000))
    said = finds(write_recipe(), "plan")
    assert said.startswith("this run with its checkpoints needs 432 KiB on the disk of ")
    assert "98 KiB are free; make room" in said


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of so many bytes, below the recipe's folder."""
    folder = tmp_path / "runs"
    folder.mkdir()
    size = f"size={request.param}"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("small_disk", "stage"),
    [(200_000, "plan"), (500_000, "tiny model")],
    indirect=["small_disk"],
    ids=["before any work", "in its middle"],
)
def test_a_disk_that_is_really_full(
    small_disk: Path, stage: str, write_recipe: Recipes, finds: Finds
) -> None:
    said = finds(write_recipe(), stage)
    assert "needs 432 KiB" in said if stage == "plan" else "is full" in said
    assert [path.name for path in small_disk.iterdir()] == ["tiny"]


def test_a_row_longer_than_the_context(
    own_model: Path, write_recipe: Recipes, finds: Finds
) -> None:
    change_json(own_model / "config.json", max_position_embeddings=32)
    said = finds(write_recipe(model={"id": str(own_model)}), "prepare")
    assert said.startswith("rows.jsonl:1: 37 tokens, and ")
    assert said.endswith(
        "(max_position_embeddings); lower data.max_length to 32 or less, or shorten the row"
    )


def test_answers_that_go_beyond_the_context(write_recipe: Recipes, finds: Finds) -> None:
    recipe = write_recipe(generation={"max_new_tokens": TINY["max_position_embeddings"] - 10})
    said = finds(recipe, "prepare")
    assert said.startswith("rows.jsonl:")
    assert "its prompt of 28 tokens and generation.max_new_tokens 502 are more than " in said
    assert "lower generation.max_new_tokens to 484" in said


def test_virtual_tokens_take_part_of_the_context(write_recipe: Recipes, finds: Finds) -> None:
    said = finds(write_recipe(method={"mode": "prompt-tuning", "virtual_tokens": 480}), "prepare")
    assert "37 tokens behind 480 virtual tokens, and " in said
    assert "lower data.max_length to 32 or less" in said


def test_a_validation_file_that_is_cut(write_recipe: Recipes, tmp_path: Path, finds: Finds) -> None:
    whole = gzip.compress(rows_of(200).encode())
    (tmp_path / "held.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    recipe = write_recipe(data={"train": "rows.jsonl", "validation": "held.jsonl.gz"})
    assert finds(recipe, "prepare").startswith("held.jsonl.gz")


def test_a_base_whose_weights_are_cut(own_model: Path, write_recipe: Recipes, finds: Finds) -> None:
    weights = own_model / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1000)
    said = finds(write_recipe(model={"id": str(own_model)}), "look")
    assert said == f"model/{weights.name}: is not a whole safetensors file; fetch it again"


def test_a_tokenizer_with_more_tokens_than_the_model(
    own_model: Path, write_recipe: Recipes, rows_file: Path, finds: Finds
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(own_model)
    tokenizer.add_tokens(["<kettle>"])
    tokenizer.save_pretrained(own_model)
    row = {"prompt": "Which?", "completion": "The <kettle>."}
    rows_file.write_text(rows_of() + json.dumps(row) + "\n")
    said = finds(write_recipe(model={"id": str(own_model)}), "prepare")
    assert "the tokenizer has token 400 ('<kettle>'), and the embeddings of the model end" in said


def test_an_output_folder_that_cannot_be_written(
    write_recipe: Recipes, rows_file: Path, finds: Finds
) -> None:
    said = finds(write_recipe(output=f"{rows_file.name}/run"), "look")
    assert said.startswith(str(rows_file)) and "directory" in said


def test_a_template_that_refuses_every_row(
    write_recipe: Recipes, tmp_path: Path, finds: Finds
) -> None:
    (tmp_path / "strict.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    keys = {"train": "rows.jsonl", "template": "strict.jinja", "system": "Be short."}
    said = finds(write_recipe(data=keys), "prepare")
    assert said.startswith("rows.jsonl: none of 48 rows can be used: rows.jsonl:1 ")
    assert "no system turn" in said


def test_a_machine_with_too_little_memory(
    write_recipe: Recipes, finds: Finds, monkeypatch: Patch
) -> None:
    from ftcli.models import device

    small = replace(device.find_hardware("auto"), free_bytes=1_000_000)
    monkeypatch.setattr(device, "find_hardware", lambda _: small)
    said = finds(write_recipe(), "plan")
    assert said.startswith("one row of 37 tokens needs ") and "GB free; take method.mode" in said


def test_checkpointing_that_a_prefix_cannot_have(write_recipe: Recipes, finds: Finds) -> None:
    recipe = write_recipe(
        method={"mode": "prefix-tuning"}, training={"gradient_checkpointing": True, "batch_size": 4}
    )
    said = finds(recipe, "look", code=2)
    assert "training.gradient_checkpointing: keys and values of a prefix stand in the" in said


def test_a_merge_that_is_not_what_was_trained(
    write_recipe: Recipes, finds: Finds, monkeypatch: Patch
) -> None:
    """What only the last stages can see; a head with its sign turned while it is written."""
    from ftcli.export import merged_model

    right = merged_model.merge_adapter

    def wrong(adapted: Any, *rest: Any) -> Any:
        merged = right(adapted, *rest)
        merged.get_output_embeddings().weight.data *= -1
        return merged

    monkeypatch.setattr(merged_model, "merge_adapter", wrong)
    said = finds(write_recipe(), "merge")
    assert "not merged, because the merged model is not what was measured before it was" in said


@pytest.mark.parametrize("where", ["a step", "the evaluation"])
def test_a_signal_of_the_user_ends_it_and_nothing_stays(
    where: str, write_recipe: Recipes, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    from ftcli.cli.train import smoke_test

    def interrupt(*_: object, **__: object) -> None:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:  # a second one would kill
            signal.raise_signal(signal.SIGINT)

    if where == "a step":
        monkeypatch.setattr(smoke_test.Quiet, "update", interrupt)
    else:
        monkeypatch.setattr(smoke_test, "evaluate_run", interrupt)
    assert run(["train", str(write_recipe()), "--smoke-test"]) == 130
    assert capsys.readouterr().err.endswith(
        "smoke test stopped; of it no more than the prepared data stays\n"
    )
    assert left_behind(tmp_path) == DATA and not list(tmp_path.rglob(".tmp-*"))


def test_two_smoke_tests_of_one_output(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    recipe = write_recipe()
    with RunFolder(tmp_path / "runs" / ".tmp-smoke-test-tiny").lock():
        assert run(["train", str(recipe), "--smoke-test"]) == 1
    assert "smoke test, look: " in (said := capsys.readouterr().err) and "is writing here" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dry-run"], "--smoke-test shows the plan too: leave --dry-run out"),
        (["--resume"], "--smoke-test touches no run, so that --resume means nothing"),
        (["--fresh"], "--smoke-test touches no run, so that --fresh means nothing"),
        (
            ["--from", "runs/x"],
            "--smoke-test begins with a tiny random model, on which the weights of",
        ),
    ],
)
def test_flags_that_mean_nothing_beside_it(
    flags: list[str], message: str, write_recipe: Recipes, capsys: Capture
) -> None:
    assert run(["train", str(write_recipe()), "--smoke-test", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_failure_is_one_json_object(write_recipe: Recipes, capsys: Capture) -> None:
    recipe = write_recipe(method={"mode": "lora", "target_modules": ["q_prj"]})
    assert run(["train", str(recipe), "--smoke-test", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "target_modules"
    assert error["message"].startswith("smoke test, look: ")
    assert error["file"].endswith("tiny.yaml") and error["line"] == 6
