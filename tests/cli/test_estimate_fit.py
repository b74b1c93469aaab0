"""`ftcli estimate-vram` with --fit, --write, --max and --sweep, and flags that contradict."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ftcli.config.loader import load_recipe
from ftcli.data.dataset import LongestRow, save_dataset, split_file
from ftcli.memory.hardware import Hardware, find_card
from ftcli.models import device
from ftcli.models.architectures.find import find_architecture
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics
from tests.conftest import prepared_data
from tests.tiers import tiers

RECIPE = """\
# The shop's listings
name: shop
model:
  id: 7b   # Llama 2
method:
  mode: lora
  rank: 16
data:
  train: shop.jsonl
  max_length: 512
training:
  batch_size: 8
  micro_batch_size: 8  # as on the server
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.yaml").write_text(RECIPE)
    return tmp_path


# --fit


def test_without_fit_nothing_is_suggested(ask: Any) -> None:
    found = ask("--model", "7b", "--mode", "full", "--gpu", "4090")
    assert found["suggestions"] == []
    assert not {"fit", "max", "sweep", "written"} & set(found)
    assert found["low_bytes"] < found["device_bytes"] < found["high_bytes"]
    assert found["peak_bytes"] < found["reserved_bytes"] < found["device_bytes"]


def test_fit_names_changes_that_scripts_can_apply(ask: Any) -> None:
    found = ask("--model", "7b", "--mode", "full", "--fit", "20GB")
    usable = find_card("20GB").usable_bytes
    assert found["fits"]["GPU of 20GB"] is False
    (change,) = found["suggestions"]
    assert (change["key"], change["value"]) == ("method.mode", "lora")
    assert change["device_bytes"] < change["high_bytes"] <= usable < found["device_bytes"]
    assert found["fit"]["fits"] is True and found["fit"]["usable_bytes"] == usable
    assert found["fit"]["choices"]["mode"] == "lora"
    assert found["fit"]["high_bytes"] == change["high_bytes"]


def test_suggestions_given_as_set_are_the_fitted_training(ask: Any) -> None:
    found = ask("shop.yaml", "--fit", "12GB")
    assert [each["key"] for each in found["suggestions"]][-1] == "method.mode"
    overrides = [
        part
        for each in found["suggestions"]
        for part in ("--set", f"{each['key']}={each['value']}")
    ]
    applied = ask("shop.yaml", "--gpu", "12GB", *overrides)
    assert applied["fits"]["GPU of 12GB"] is True
    again = ask("shop.yaml", "--fit", "12GB", *overrides)
    assert again["suggestions"] == []
    assert again["fit"]["device_bytes"] == found["fit"]["device_bytes"]


def test_what_fits_as_it_is_needs_no_change(ask: Any, show: Any) -> None:
    assert ask("shop.yaml", "--fit", "A100 80GB")["suggestions"] == []
    text = show("shop.yaml", "--fit", "A100 80GB")
    assert "fits A100 80GB as it is: micro-batch 8 × 1, without gradient" in text


def test_each_change_is_shown_with_its_cost(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    text = show("--model", "7b", "--mode", "full", "--fit", "20GB")
    start = text.index("to fit GPU of 20GB, the cheapest changes:\n  full fine-tuning → LoRA: ")
    assert "(method.mode)\n    costs quality on new knowledge" in text[start:]
    assert "\nthen: micro-batch 1 × 1, with gradient checkpointing, " in text[start:]


def test_where_nothing_fits_an_alternative_is_named(ask: Any, show: Any) -> None:
    arguments = ("--model", "70b", "--mode", "qlora", "--fit", "12GB")
    found = ask(*arguments)
    assert found["suggestions"] == []
    instead = found["fit"]["instead"]
    assert found["fit"]["fits"] is False and instead["card"] and instead["model"]
    text = " ".join(show(*arguments).split())
    assert "no change of `ftcli train` makes it fit GPU of 12GB" in text
    assert f"{instead['card']} takes it" in text
    assert f"--model {instead['model']} fits with nothing else changed" in text
    larger = ask("--model", "70b", "--mode", "qlora", "--fit", instead["card"])
    assert larger["fit"]["fits"] is True
    smaller = ask("--model", instead["model"], "--mode", "qlora", "--fit", "12GB")
    assert smaller["fit"]["fits"] is True and smaller["suggestions"] == []


def test_auto_takes_the_gpu_of_this_machine(
    ask: Any, refuse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = find_card("3060").hardware
    monkeypatch.setattr(device, "find_hardware", lambda _: card)
    found = ask("--model", "7b", "--mode", "lora", "--fit", "auto")
    assert found == ask("--model", "7b", "--mode", "lora", "--fit", "3060")
    cpu = Hardware("cpu", "two cores", 8 * 10**9, 4 * 10**9, None, False, 2)
    monkeypatch.setattr(device, "find_hardware", lambda _: cpu)
    assert refuse("--model", "7b", "--fit", "auto") == (
        "--fit auto: this machine has no CUDA GPU (two cores); name one, as --fit 4090 or "
        "--fit 24GB",
        1,
    )


def prepare(here: Path, lengths: list[int], max_length: int) -> None:
    """The data folder of shop.yaml, as `ftcli prepare` leaves it."""
    folder = here / "runs" / "shop" / "data"
    folder.mkdir(parents=True)
    schema = pa.schema({"input_ids": pa.list_(pa.int32())})
    with pa.ipc.new_stream(str(split_file(folder, "train")), schema) as stream:
        stream.write_table(pa.table({"input_ids": [[1] * n for n in lengths]}, schema))
    prepared = prepared_data(
        model=find_architecture("7b").hub_id,
        train_source=str(here / "shop.jsonl"),
        max_length=max_length,
        longest=LongestRow("shop.jsonl", 7, max(lengths)),
    )
    save_dataset(prepared, folder)


def test_prepared_rows_say_what_a_shorter_length_cuts(ask: Any, here: Path) -> None:
    lengths = [100, 300, 1000, 6000]
    (here / "shop.yaml").write_text(RECIPE.replace("512", "8192"))
    prepare(here, lengths, 8192)
    found = ask("shop.yaml", "--fit", "6GB")
    assert found["assumptions"]["choices"]["seq_len"] == 6000
    last = found["suggestions"][-1]
    assert last["key"] == "data.max_length" and last["value"] < 6000
    share = sum(length > last["value"] for length in lengths) / len(lengths)
    assert last["cost"].startswith(f"the ends of {share:.1%} of the prepared rows; ")


# --write


def test_the_written_recipe_keeps_comments_and_plans_the_same(ask: Any, here: Path) -> None:
    found = ask("shop.yaml", "--fit", "12GB", "--write", "fits.yaml")
    assert found["written"] == "fits.yaml"
    old, new = RECIPE.splitlines(), (here / "fits.yaml").read_text().splitlines()
    gone = {line.split(":")[0].strip() for line in old if line not in new}
    assert gone == {each["key"].split(".")[1] for each in found["suggestions"]} >= {"mode"}
    for comment in ("# The shop's listings", "# Llama 2", "# as on the server"):
        assert comment in "\n".join(new)
    loaded = load_recipe(here / "fits.yaml")
    profile = RowStatistics.of(prepared_data(longest=LongestRow("shop.jsonl", 7, 512)))
    plan = make_plan(loaded.recipe, find_architecture("7b"), profile, find_card("12GB").hardware)
    choices = found["fit"]["choices"]
    assert plan.training.micro_batch_size == choices["micro_batch"]
    assert plan.training.gradient_checkpointing == choices["gradient_checkpointing"]
    assert plan.estimate.high_bytes <= found["fit"]["usable_bytes"]


def test_the_recipe_may_be_written_in_place(ask: Any, here: Path) -> None:
    found = ask("shop.yaml", "--fit", "16GB", "--write", "./shop.yaml")
    assert found["suggestions"]
    assert ask("shop.yaml", "--fit", "16GB")["suggestions"] == []


def test_flags_and_set_are_written_too(ask: Any, here: Path) -> None:
    flags = ("--rank", "8", "--set", "training.seed=7")
    ask("shop.yaml", *flags, "--fit", "16GB", "--write", "fits.yaml")
    recipe = load_recipe(here / "fits.yaml").recipe
    assert recipe.method.rank == 8 and recipe.training.seed == 7  # type: ignore[union-attr]


def test_another_folder_gets_paths_that_hold(ask: Any, here: Path) -> None:
    (here / "shop.jsonl").write_text("{}")
    ask("shop.yaml", "--fit", "16GB", "--write", "new/fits.yaml")
    assert load_recipe(here / "new" / "fits.yaml").recipe.data.train == str(here / "shop.jsonl")
    assert "train: ../shop.jsonl" in (here / "new" / "fits.yaml").read_text()


def test_another_file_is_never_written_over(refuse: Any, here: Path) -> None:
    (here / "mine.yaml").write_text("mine")
    assert refuse("shop.yaml", "--fit", "16GB", "--write", "mine.yaml") == (
        "--write mine.yaml: the file exists, and only shop.yaml itself may be changed in "
        "place; name a new file",
        1,
    )
    assert (here / "mine.yaml").read_text() == "mine"


def test_nothing_is_written_where_nothing_fits(refuse: Any, here: Path) -> None:
    text, code = refuse("shop.yaml", "--fit", "2GB", "--write", "new.yaml")
    assert text.startswith("no change makes it fit 2GB (RTX ")
    assert text.endswith(" would): nothing is written")
    assert code == 1
    assert not (here / "new.yaml").exists()


# --max and --sweep


@pytest.mark.parametrize("size", ["max-length", "micro-batch", "rank"])
def test_the_largest_fits_and_one_more_does_not(ask: Any, size: str) -> None:
    base = ("--model", "7b", "--mode", "qlora")
    found = ask(*base, "--gpu", "3060", "--max", size)["max"]
    usable = find_card("3060").usable_bytes
    assert found["size"] == size and found["high_bytes"] <= usable
    flags = ("activation_offload", "tiled_mlp", "embedding_offload")
    assert all(found[each] for each in flags)
    base = (*base, *(f"--{each.replace('_', '-')}" for each in flags), "--gpu", "3060")
    exact = ask(*base, f"--{size}", str(found["value"]))
    assert exact["high_bytes"] == found["high_bytes"]
    more = ask(*base, f"--{size}", str(found["value"] + 1))
    assert more["high_bytes"] > usable


def test_a_size_of_which_not_even_one_fits(ask: Any, show: Any) -> None:
    arguments = ("--model", "7b", "--mode", "full", "--gpu", "3060", "--max", "max-length")
    assert ask(*arguments)["max"] == {"size": "max-length", "value": None}
    assert "not even max-length 1 fits RTX 3060 12GB" in show(*arguments)


def test_a_sweep_is_a_table_that_grows(ask: Any, show: Any) -> None:
    arguments = ("--model", "7b", "--mode", "qlora", "--sweep", "max-length=512,1024,2048")
    rows = ask(*arguments)["sweep"]["rows"]
    assert [row["value"] for row in rows] == [512, 1024, 2048]
    assert [row["fits"] for row in rows] == [None] * 3
    sizes = [row["device_bytes"] for row in rows]
    assert sizes == sorted(set(sizes))
    lines = show(*arguments, "--gpu", "4090").splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("  max-length "))
    assert lines[head].split()[-1] == "fits"
    assert [line.split()[0] for line in lines[head + 1 :]] == ["512", "1024", "2048"]
    assert all("  yes " in line and "█" in line for line in lines[head + 1 :])


# What contradicts


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--mode full --rank 8", "--rank: the inner width of LoRA's update, and full fine-tuning"),
        ("--mode full --dora", "--dora: LoRA with a trained magnitude"),
        ("--mode full --target-modules q_proj", "--target-modules: the modules that get"),
        ("--mode full --modules-to-save lm_head", "--modules-to-save: modules trained in full"),
        ("--mode lora --virtual-tokens 8", "take --mode prefix-tuning or --mode prompt-tuning"),
        ("--mode lora --bottleneck 8", "--bottleneck: the inner width of a bottleneck adapter"),
        ("--mode prompt-tuning --projection", "take --mode prefix-tuning"),
        (
            "--mode prefix-tuning --gradient-checkpointing",
            "are in the cache, which a recomputed layer",
        ),
        ("--mode qlora --precision fp32", "has the base in 4 bits, computes in 16 bits"),
        ("--mode lora --placement mlp", "--placement: the blocks that get a bottleneck adapter"),
        (
            "--mode prompt-tuning --modules-to-save lm_head",
            "modules trained in full next to LoRA's updates",
        ),
        ("--mode full --four-bit-base", "4-bit weights cannot be trained: take --mode qlora"),
        ("--mode lora --four-bit-base", "LoRA on a 4-bit base is a mode: take --mode qlora"),
        ("--mode qlora --no-four-bit-base", "QLoRA on a 16-bit base is a mode: take --mode lora"),
        (
            "--mode bottleneck --four-bit-base --precision fp32",
            "bottleneck adapters with --four-bit-base has the base in 4 bits",
        ),
        ("--packing --fit 24GB", "supports, which --packing is not"),
        ("--fit 24GB --gpu 4090", "--gpu 4090 and --fit 24GB name two GPUs"),
        ("--fit auto --gpu 4090", "--gpu 4090 and --fit auto name two GPUs"),
        ("--fit 4091", "no GPU '4091' is known; did you mean RTX 4090"),
        ("--max max-length", "--max max-length needs a GPU: add --gpu 4090 or 24GB"),
        ("--max maxlen --gpu 4090", "--max maxlen: no such size; did you mean max-length?"),
        ("--mode full --max rank --gpu 4090", "--max rank: full fine-tuning has none"),
        ("--sweep max_length=1,2", "--sweep max_length: no such size; did you mean max-length?"),
        (
            "--sweep max-length=a",
            "--sweep max-length=a: expected whole numbers from 1 to 1048576, e.g.",
        ),
        ("--write new.yaml", "--write writes what --fit finds: add --fit 24GB, 4090 or auto"),
        ("--write new.yaml --fit 24GB", "--write changes a recipe, and none is given: "),
    ],
)
def test_flags_that_contradict_are_explained(refuse: Any, flags: str, words: str) -> None:
    text, code = refuse("--model", "7b", *flags.split())
    assert words in text
    assert code == 2


def test_all_contradictions_are_named_together(refuse: Any) -> None:
    text, _ = refuse("--model", "7b", "--mode", "full", "--rank", "8", "--bottleneck", "4")
    assert [line.split(":")[0] for line in text.splitlines()] == ["--rank", "--bottleneck"]


def test_a_micro_batch_that_does_not_divide_is_not_written(refuse: Any) -> None:
    flags = ("--micro-batch", "3", "--fit", "A100 80GB", "--write", "new.yaml")
    text, code = refuse("shop.yaml", *flags)
    assert (text, code) == ("micro_batch_size 3 does not divide batch_size 8", 2)


# What fits the screen


@pytest.mark.parametrize("columns", tiers([80, 120], 80))
@pytest.mark.parametrize(
    "flags",
    [
        "--model 7b --mode full --gpu 4090",
        "--model 7b --mode full --optimizer paged-adamw-8bit --gpu H200",
        "--model qwen2.5-7b --mode qlora --max-length 2048 --gpu 4090",
        "--model smollm2-135m --mode lora --fit 24GB",
        "--model 13b --mode lora --rank 64 --max-length 8192 --attention eager --micro-batch 16 "
        "--no-gradient-checkpointing --fit 12GB",
        "--model 70b --mode full --fit 8GB --max max-length",
        "--model 7b --mode prefix-tuning --gpu 3060 --max micro-batch --sweep max-length=1,1048576",
        "--model deepseek-r1-distill-qwen-1.5b --mode qlora --sweep rank=8,16 --gpu T4",
        "--model llama-3.3-70b-instruct --mode lora",
        "shop.yaml --fit 8GB --write a-rather-long-name-of-a-recipe-that-fits.yaml",
    ],
)
def test_no_line_is_longer_than_the_terminal_is_wide(
    show: Any, monkeypatch: pytest.MonkeyPatch, flags: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = show(*flags.split()).splitlines()
    assert [line for line in lines if len(line) > columns] == []
    assert not any(line != line.rstrip() for line in lines)


def test_the_gpu_is_one_bar_with_its_legend(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = show("--model", "7b", "--mode", "qlora", "--gpu", "4090").splitlines()
    bar = next(line for line in lines if line.startswith("|"))
    assert len(bar) == 100 and bar.endswith("·|")
    legend = " ".join(lines[lines.index(bar) + 1 :])
    assert all(f" {sign} " in legend for sign in set(bar) - {"|"})
    over = show("--model", "7b", "--mode", "full", "--gpu", "4090").splitlines()
    full = next(line for line in over if line.startswith("|"))
    assert full.count("|") == 2 and full.index("|", 1) < 30 and "·" not in full


def test_the_peak_is_marked_among_the_phases(show: Any) -> None:
    lines = show("--model", "7b", "--mode", "qlora").splitlines()
    (peak,) = [line for line in lines if line.endswith("█ peak")]
    (said,) = [line for line in lines if line.startswith("peak ")]
    assert said.endswith(f"at the {peak[2:26].strip()}")


def test_an_estimate_whose_upper_end_does_not_fit_says_so(ask: Any, show: Any) -> None:
    arguments = ("--model", "13b", "--mode", "qlora", "--gpu")
    gib = ask(*arguments, "4090")["device_bytes"] * 1.05 / 2**30 + 0.5
    text = show(*arguments, f"{gib / 0.98:.2f}GB")
    assert re.match(r"May not fit: [\d.]+, upper bound [\d.]+ of [\d.]+ GiB \(GPU of ", text)
