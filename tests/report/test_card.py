"""The model card: what the hub reads of it, and that no path of this machine is in it."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from ftcli.data.dataset import Replayed, load_dataset, save_dataset
from ftcli.data.example import Origin, RejectedRow
from ftcli.report.figures import name_alone, shown_from
from ftcli.report.page import write_report
from ftcli.runs.folder import RunFolder
from tests.reported import answer, evaluation, prompted, save_evaluation, save_run, usual_lines


def card(run: RunFolder) -> str:
    write_report(run)
    return run.card.read_text(encoding="utf-8")


def front_matter(run: RunFolder) -> dict[str, Any]:
    """As the hub's own library reads it."""
    write_report(run)
    found: dict[str, Any] = metadata_load(run.card)
    return found


def test_the_hub_reads_base_relation_and_scores(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation())
    found = front_matter(run)
    assert found["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert found["base_model_relation"] == "adapter"
    assert (found["library_name"], found["pipeline_tag"]) == ("peft", "text-generation")
    assert found["tags"] == ["ftcli", "sft", "lora"] and "license" not in found
    text = ModelCard.load(run.card)
    name, results = model_index_to_eval_results(found["model-index"])
    assert name == "shop" and text.data.eval_results == results
    values = {result.metric_type: result.metric_value for result in results}
    assert values == {"format_rate": 0.97, "stop_rate": 1.0, "loss": 0.88}
    assert {(each.dataset_split, each.dataset_name) for each in results} == {
        ("test", "120 held-out rows of the task")
    }
    for words in (
        "**Check before use.** Better: format valid, finished (EOS) and loss.",
        "- Nothing checked whether the answers are correct: read some, or",
        "| format valid | – | 2% | 97% | better | +95 (+91 to +99) | 100 / 4 |",
        "| general text perplexity | 14.2 | 14.4 | not significant | +2% (−2% to +6%) | 100 / 4 |",
        "licence: it depends on base and data",
    ):
        assert words in text.text, words


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    assert "model-index" not in front_matter(run)
    assert "was not measured: ftcli eval ." in card(run)
    assert "`model-index`: no scores on held-out rows yet" in card(run)
    save_evaluation(run, evaluation(data="other.jsonl"))
    assert "model-index" not in front_matter(run)
    assert "120 rows of other.jsonl" in card(run)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    local = save_run(tmp_path, "local", model=str(tmp_path / "models" / "tiny"))
    assert not {"base_model", "base_model_relation"} & set(front_matter(local))
    assert "`models/tiny`, tuned with ftcli" in card(local)
    assert "`base_model`: the base is a local folder" in card(local)


def test_a_whole_model_is_a_finetune(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    recipe = yaml.safe_load(run.recipe.read_text())
    run.recipe.write_text(yaml.safe_dump(recipe | {"method": {"mode": "full"}}))
    found = front_matter(run)
    assert (found["base_model_relation"], found["library_name"]) == ("finetune", "transformers")
    assert 'AutoModelForCausalLM.from_pretrained("model")' in run.card.read_text()


def test_the_card_says_how_to_load_the_adapter_without_ftcli(tmp_path: Path) -> None:
    text = card(save_run(tmp_path))
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert 'AutoPeftModelForCausalLM.from_pretrained("adapter")' in code
    assert "hf upload your-name/shop adapter ." in text


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_model_with_towers_is_loaded_by_its_own_class(mode: str, tmp_path: Path) -> None:
    run = save_run(tmp_path)
    recipe = yaml.safe_load(run.recipe.read_text())
    run.recipe.write_text(yaml.safe_dump(recipe | {"method": {"mode": mode}}))
    run.prompt_manifest.write_text(json.dumps({"base": "0", "config": {"text_config": {}}}))
    code = card(run).partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert "AutoModelForMultimodalLM.from_pretrained" in code and "CausalLM" not in code
    assert ('PeftModel.from_pretrained(base, "adapter")' in code) == (mode == "lora")


def with_data(run: RunFolder, far: str) -> None:
    """Rows, replayed rows and rejected ones of files in a folder."""
    counts = dict.fromkeys(
        ("rows_read", "rejected", "duplicates", "held_out", "too_long", "texts_cut", "tokens_cut"),
        0,
    )
    replayed = Replayed(f"{far}/general.jsonl", 0.15, 66, 65, 20_111, 19_222, **counts)
    prepared = load_dataset(run.data)
    assert prepared is not None
    changed = replace(
        prepared,
        replay=replayed,
        train_source=f"{far}/rows.jsonl",
        longest=replace(prepared.longest, file=f"{far}/rows.jsonl"),
        rejected=(RejectedRow(Origin(f"{far}/rows.jsonl", 3), "holds no prompt"),),
    )
    save_dataset(changed, run.data)


@pytest.mark.parametrize("far", ["/srv/clients/Acme & Co", "/acme"])
def test_a_model_card_has_only_the_names_of_files_elsewhere(tmp_path: Path, far: str) -> None:
    """A card is published; the report, for colleagues, has full paths."""
    run = save_run(tmp_path, model=f"{far}/models/tiny")
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["data"] |= {
        "train": f"{far}/rows.jsonl",
        "test": f"{far}/test.jsonl",
        "system": "/srv/clients is a path that the model is to know",
        "replay": {"source": f"{far}/general.jsonl", "ratio": 0.15},
    }
    recipe["eval"] = {"format": {"type": "sql", "table": f"{far}/tables.csv"}}
    run.recipe.write_text(yaml.safe_dump(recipe))
    with_data(run, far)
    save_evaluation(run, evaluation(data=f"{far}/other.jsonl"))
    text = card(run)
    assert "cme" not in text and str(tmp_path) not in text
    for words in (
        "`tiny`, tuned with ftcli (lora) on 372 rows and 65 replayed rows.",
        "Measured on 120 rows of other.jsonl.",
        "## Splits of rows.jsonl",
        "| replayed, from general.jsonl | 65 | 20,111 | 19,222 |",
        "train: rows.jsonl",
        "table: tables.csv",
        "system: /srv/clients is a path",
    ):
        assert words in text, words
    page = html.unescape(run.report.read_text(encoding="utf-8"))
    for name in ("rows.jsonl", "general.jsonl", "other.jsonl", "tables.csv"):
        assert f"{far}/{name}" in page, name


def test_paths_around_the_recipe_are_seen_from_it(tmp_path: Path) -> None:
    """Also paths of rows and prompts from the command line, in report and card."""
    run = save_run(tmp_path)
    run.update_manifest(recipe=str(tmp_path / "recipes" / "shop.yaml"))
    own_text = f"{tmp_path}/in the prompt is what was asked"
    sides = usual_lines(1)[0].sides | {"prompted": answer("A prompted answer.")}
    changes = {"file": str(tmp_path / "other.jsonl"), "prompt": own_text, "sides": sides}
    lines = [line.model_copy(update=changes) for line in usual_lines(12)]
    result = evaluation(
        rows=12, data=str(tmp_path / "other.jsonl"), scores=prompted("better"),
        instruction=str(tmp_path / "prompt.txt"), samples=tuple(lines[:5]),
    )  # fmt: skip
    save_evaluation(run, result, lines)
    with_data(run, str(tmp_path / "recipes"))
    assert str(tmp_path) not in card(run)
    page = html.unescape(run.report.read_text(encoding="utf-8"))
    assert own_text in page and str(tmp_path) not in page.replace(own_text, "")
    for words in (
        "../other.jsonl:6",
        "12 rows of ../other.jsonl",
        "../prompt.txt",
        "(rows.jsonl:7)",
    ):
        assert words in page, words
    assert "rows.jsonl:3 holds no prompt" in page


def test_paths_of_other_places() -> None:
    shown = shown_from("/home/ann/shop/recipes/a.yaml")
    assert shown("/home/ann/shop/rows.jsonl") == "../rows.jsonl"
    assert shown("/home/ann/shop-2/rows.jsonl") == "/home/ann/shop-2/rows.jsonl"
    assert shown("test") == "test" and shown_from(None)("/a/b") == "/a/b"
    assert shown_from("/a.yaml")("/b.jsonl") == "/b.jsonl"
    assert [name_alone(each) for each in ("/a/b", "../b", "b/c", "Qwen/Qwen2")] == [
        "b", "b", "b/c", "Qwen/Qwen2"
    ]  # fmt: skip
