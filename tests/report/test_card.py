"""The model card: what the hub reads of it, and that it says no more than the report."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from ftcli.artifacts import RunFolder
from ftcli.prepared import Fault, Replayed, load_prepared, save_prepared
from ftcli.stages.card import write_card
from ftcli.stages.report import write_report
from tests.reported import (
    BASE,
    SCORES,
    TUNED,
    answer,
    evaluation,
    save_evaluation,
    save_run,
    side,
    usual_lines,
)


def front_matter(run: RunFolder) -> dict[str, Any]:
    """As the hub's own library reads it."""
    found: dict[str, Any] = metadata_load(write_card(run))
    return found


def test_the_hub_reads_base_relation_and_scores(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(), None)
    found = front_matter(run)
    assert found["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert found["base_model_relation"] == "adapter"
    assert (found["library_name"], found["pipeline_tag"]) == ("peft", "text-generation")
    assert found["tags"] == ["ftcli", "sft", "lora"]
    assert "license" not in found
    card = ModelCard.load(run.card)
    name, results = model_index_to_eval_results(found["model-index"])
    assert name == "shop" and card.data.eval_results == results
    by_type = {result.metric_type: result for result in results}
    assert set(by_type) == set(SCORES)
    assert by_type["format_rate"].metric_value == 0.97
    assert by_type["loss"].metric_name == "loss"
    assert by_type["loss"].metric_value == TUNED["loss"][0]
    assert {(r.dataset_split, r.dataset_name) for r in results} == {
        ("test", "120 held-out rows of the task")
    }
    for words in (
        "**Ship it.** 93% (84–97) in “no new number”, measured by you. Better than the base",
        "| in the format | 2% (0–9) | 97% (92–99) | better: +95 (+83 to +99) points |",
        "| loss | 2.31 (2.25–2.38) | 0.88 (0.84–0.93) | better: −1.43 (−1.54 to −1.32) |",
        "| general text, perplexity | 14.2 | 14.5 | +2%: nothing shown to be forgotten |",
        "licence: that of the base and that of the data decide it",
    ):
        assert words in card.text, words


def test_without_an_evaluation_no_scores_are_claimed(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    assert "model-index" not in front_matter(run)
    text = run.card.read_text(encoding="utf-8")
    assert "Not evaluated yet: `ftcli eval runs/shop`" in text
    assert "`model-index`: no scores on held-out rows yet" in text


def test_scores_on_other_rows_are_told_and_not_claimed_to_the_hub(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(data="other.jsonl"), None)
    assert "model-index" not in front_matter(run)
    assert "120 rows of other.jsonl" in run.card.read_text(encoding="utf-8")


def test_a_base_in_a_local_folder_is_no_hub_id(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    run = save_run(tmp_path, model=str(tmp_path / "models" / "tiny"))
    found = front_matter(run)
    assert "base_model" not in found and "base_model_relation" not in found
    text = run.card.read_text(encoding="utf-8")
    assert "`models/tiny`, tuned with ftcli" in text
    assert "`base_model`: the run began from a local folder" in text
    assert str(tmp_path) not in text


def replaying(run: RunFolder, source: str) -> None:
    replayed = Replayed(
        source=source,
        share=0.15,
        wanted=66,
        rows=65,
        tokens=20_111,
        trained_tokens=19_222,
        **dict.fromkeys(
            ("rows_read", "rejected", "duplicates", "held_out", "too_long", "texts_cut"), 0
        ),
        tokens_cut=0,
    )
    prepared = load_prepared(run.data)
    assert prepared is not None
    save_prepared(replace(prepared, replay=replayed), run.data)


def test_replayed_rows_are_named(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    plain = write_card(run).read_text(encoding="utf-8")
    assert "(lora) on 372 rows." in plain and "replayed" not in plain
    replaying(run, "general.jsonl")
    card = write_card(run).read_text(encoding="utf-8")
    assert "(lora) on 372 rows and 65 replayed ones." in card
    assert "| replayed, from general.jsonl | 65 | 20,111 | 19,222 |" in card
    page = write_report(run).read_text(encoding="utf-8")
    assert '<th scope="row">replayed, from general.jsonl</th><td>65</td><td>20,111</td>' in page


@pytest.mark.parametrize("far", ["/srv/clients/Acme & Co", "../../clients/acme"])
def test_a_card_has_the_names_alone_of_files_elsewhere(tmp_path: Path, far: str) -> None:
    """It is published; the report, which goes to colleagues, has the whole paths."""
    run = save_run(tmp_path, model=f"{far}/models/tiny")
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["data"] |= {
        "train": f"{far}/rows.jsonl",
        "test": f"{far}/{'a long way ' * 20}/test.jsonl",
        "system": "/srv/clients is a path that the model is to know",
        "replay": {"source": f"{far}/general.jsonl", "share": 0.15},
    }
    recipe["eval"] = {"format": {"type": "sql", "table": f"{far}/tables.csv", "words": {"max": 9}}}
    run.recipe.write_text(yaml.safe_dump(recipe))
    replaying(run, f"{far}/general.jsonl")
    prepared = load_prepared(run.data)
    assert prepared is not None
    save_prepared(replace(prepared, train_source=f"{far}/rows.jsonl"), run.data)
    save_evaluation(run, evaluation(data=f"{far}/other.jsonl"), None)
    card = write_card(run).read_text(encoding="utf-8")
    assert "cme" not in card and "a long way" not in card
    for words in (
        "`tiny`, tuned with ftcli",
        "Measured on 120 rows of other.jsonl.",
        "120 rows of other.jsonl, each score",
        "`rows.jsonl`",
        "replayed, from general.jsonl",
        "train: rows.jsonl",
        "test: test.jsonl",
        "source: general.jsonl",
        "table: tables.csv",
        "id: tiny",
        "system: /srv/clients is a path",
    ):
        assert words in card, words
    page = html.unescape(write_report(run).read_text(encoding="utf-8"))
    for name in ("rows.jsonl", "general.jsonl", "other.jsonl", "tables.csv"):
        assert f"{far}/{name}" in page, name


def test_a_whole_model_is_a_finetune(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    recipe = yaml.safe_load(run.recipe.read_text())
    run.recipe.write_text(yaml.safe_dump(recipe | {"method": {"mode": "full"}}))
    found = front_matter(run)
    assert (found["base_model_relation"], found["library_name"]) == ("finetune", "transformers")


def test_strange_names_break_neither_yaml_nor_table(tmp_path: Path) -> None:
    strange = "a: b | <script>\n--- ``` 'x' \"y\" # {z} \udcff"
    run = save_run(tmp_path)
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["name"] = recipe["data"]["system"] = strange.replace("\udcff", "")
    run.recipe.write_text(yaml.safe_dump(recipe))
    report = evaluation(data=strange)
    report["scores"] = SCORES | {"chrf": SCORES["chrf"] | {"label": strange}}
    save_evaluation(run, report, None)
    assert front_matter(run)["library_name"] == "peft"
    text = run.card.read_text(encoding="utf-8")
    assert "<script>" not in ModelCard.load(run.card).text.partition("## Recipe")[0]
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert any(line.startswith("| a: b \\| &lt;script>") for line in table)
    assert "````yaml" in text


def test_the_folder_to_train_again_from_is_named(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    card = write_card(run).read_text(encoding="utf-8")
    told = card.partition("To train it again, ")[2]
    assert told.startswith("from the folder that holds `runs/`:\n\n```sh\nftcli train runs/shop ")
    spaced = save_run(tmp_path, name="of mine/my shop")
    card = write_card(spaced).read_text(encoding="utf-8")
    assert "the folder that holds `of mine/`:" in card
    assert "ftcli train 'of mine/my shop' --fresh" in card
    page = html.unescape(write_report(spaced).read_text(encoding="utf-8"))
    assert "the folder that holds <code>of mine/</code>" in page


def test_paths_around_the_recipe_are_told_from_it(tmp_path: Path) -> None:
    """Of rows and of a prompt that the command line names too, on page and card."""
    run = save_run(tmp_path)
    run.update_manifest(recipe=str(tmp_path / "recipes" / "shop.yaml"))
    lines = usual_lines(12)
    for line in lines:
        line["file"] = str(tmp_path / "other.jsonl")
        line["sides"]["prompted"] = answer("A prompted answer.")
    own_text = f"{tmp_path}/in the prompt is what was asked"
    lines[0]["prompt"] = own_text
    prompted = {"prompted": side(BASE), "shots": 2, "instruction": str(tmp_path / "told.txt")}
    report = evaluation(rows=12, data=str(tmp_path / "other.jsonl"), **prompted)
    save_evaluation(run, report, lines)
    prepared = load_prepared(run.data)
    assert prepared is not None
    far = str(tmp_path / "recipes" / "far.jsonl")
    prepared = replace(
        prepared,
        train_source=far,
        longest=replace(prepared.longest, file=far),
        problems=(Fault(far, 3, "holds no prompt"),),
    )
    save_prepared(prepared, run.data)
    page = html.unescape(write_report(run).read_text(encoding="utf-8"))
    card = write_card(run).read_text(encoding="utf-8")
    assert own_text in page and str(tmp_path) not in page.replace(own_text, "")
    assert str(tmp_path) not in card
    for words in (
        "../other.jsonl:6",
        "12 rows of ../other.jsonl",
        "the instruction of ../told.txt",
    ):
        assert words in page, words
    assert "far.jsonl:3 holds no prompt" in page and "(far.jsonl:" in page
    assert "Measured on 12 rows of ../other.jsonl" in card and "`far.jsonl`" in card
