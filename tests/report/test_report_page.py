"""The page: valid, inert whatever was answered, readable in both palettes, right without parts."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ftcli.artifacts import RunFolder
from ftcli.stages.report import write_report
from ftcli.stages.report.page import FOLDER
from tests.outline import Outline, outline
from tests.reported import (
    evaluation,
    hostile_run,
    save_evaluation,
    save_run,
    usual_lines,
)


def test_a_whole_page_is_valid_and_says_everything(whole: RunFolder) -> None:
    found = outline(whole)
    for words in (
        "Ship it.",
        "97% 92– to 99%",
        "base with a long prompt",
        "1 other evaluation of this run",
        "number not in the prompt",
        "+2%: nothing shown to be forgotten",
        "All 40 rows of eval/answers/0123456789abcdef.jsonl",
        "Training loss 2.30 → 0.86 over 60 steps",
        "Tokens a second: median",
        "372 rows are enough for a fixed format.",
        "planned 1.8 GB, measured 1.8 GB",
        "within the interval (+3%)",
        "2.13.0",
        "3b3b3b3b",
        "ftcli train runs/shop --fresh",
    ):
        assert words in found.text, words
    assert str(whole.path.parent.parent) not in found.text  # no path of this machine


def test_the_page_can_be_read_with_any_senses(whole: RunFolder) -> None:
    found = outline(whole)
    tags = [tag for tag, _ in found.elements]
    for landmark in ("header", "nav", "main", "footer"):
        assert tags.count(landmark) == 1, landmark
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(each.get("scope") in ("row", "col") for each in found.all("th"))
    assert found.all("html")[0]["lang"] == "en"
    assert found.all("a")[0] == {"class": "skip", "href": "#main"}
    for svg in found.all("svg"):
        assert svg.get("aria-hidden") == "true" or svg.get("aria-labelledby")
    for tag in ("img", "iframe", "form", "object", "embed"):
        assert tag not in tags
    assert not [each for _, each in found.elements if "style" in each]
    assert not [n for _, each in found.elements for n in each if n.startswith("on")]


def test_the_policy_names_the_one_style_and_the_one_script(whole: RunFolder) -> None:
    page = write_report(whole).read_text(encoding="utf-8")
    policy = Outline(page).all("meta")[1]["content"]
    assert policy is not None and policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)""", page)
    assert "http://www.w3.org/2000/svg" in page and page.count("://") == page.count("http://www.w3")


def test_the_same_run_gives_the_same_bytes(whole: RunFolder) -> None:
    first = write_report(whole).read_bytes()
    assert write_report(whole).read_bytes() == first
    assert len(first) < 400_000


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    found = outline(hostile_run(tmp_path))
    assert len(found.all("script")) == len(found.all("style")) == 1
    assert not found.all("img") and not found.all("b")
    for words in ("alert(1)</script>", "onerror=alert(1)>", "{{ run.recipe }}{% for x in y %}"):
        assert words in found.text
    assert "␀␇␛[31m null and bell" in found.text
    assert "half � a character �" in found.text
    assert "user:password" not in found.text and "https://***@example.com" in found.text
    assert "995,999 more characters are not shown here." in found.text


def test_a_secret_is_told_in_no_part_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = 'hf_"<&secret>0123456789'
    monkeypatch.setenv("HF_TOKEN", secret)
    run = hostile_run(tmp_path)
    run.update_manifest(versions={"torch": secret}, hardware={"name": secret})
    page = write_report(run).read_text(encoding="utf-8")
    assert "0123456789" not in page.replace("0123456789abcdef", "")


@pytest.mark.parametrize("state", ["training", "stopped"])
def test_a_run_that_is_not_finished_has_a_page_too(tmp_path: Path, state: str) -> None:
    run = save_run(tmp_path, state=state, result={}, weights={})
    found = outline(run)
    assert "Not finished yet." in found.text
    assert f"({state}); go on: ftcli train runs/shop" in found.text


def test_the_base_was_not_measured(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(base=None, differences={}, forgetting=None), usual_lines(3))
    found = outline(run)
    assert "The base was not measured on these rows: ftcli eval runs/shop" in found.text


def test_rows_that_flatter_are_told_on_the_page(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(rows_trained_on=5, rows_chose_checkpoint=True), None)
    found = outline(run)
    assert "5 of 120 rows ask what the run was trained on, which flatters the tuned" in found.text
    assert "These rows chose the checkpoint, which flatters the tuned model" in found.text


def palettes() -> dict[str, dict[str, str]]:
    """The colours of page.css by name, light and dark."""
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks[:2])
    assert light.keys() == dark.keys()
    return {"light": light, "dark": dark}


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(name: str) -> None:
    colours = palettes()[name]
    grounds = [each for each in colours if each in ("paper", "card") or each.endswith("-ground")]
    pairs = [("ink", ground) for ground in [*grounds, *(c for c in colours if "mark-" in c)]]
    pairs += [(text, ground) for text in ("muted", "first") for ground in ("paper", "card")]
    pairs += [(text, ground) for text in ("good", "bad") for ground in ("paper", "card")]
    pairs += [("good", "good-ground"), ("bad", "bad-ground"), ("warn", "warn-ground")]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    # Lines of a picture and borders of controls (success criterion 1.4.11).
    for line in ("first", "second", "third", "muted"):
        assert contrast(colours[line], colours["paper"]) >= 3, line


def test_every_colour_of_the_style_is_of_the_palettes() -> None:
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    rules = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
    assert not re.findall(r"#[0-9a-f]{3,8}\b|rgba?\(", rules)
    used = set(re.findall(r"var\(--([\w-]+)\)", rules))
    assert used == set(palettes()["light"])
    for kept in ("prefers-color-scheme: dark", "prefers-reduced-motion", "@media print"):
        assert kept in style
    assert ":focus-visible" in rules and "outline: none" not in rules.replace(
        "main:focus { outline: none; }", ""
    )


def test_the_script_parses_no_text() -> None:
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacent", "eval(", "document.write", "fetch("):
        assert unsafe not in script


def test_no_value_is_marked_safe_in_the_templates() -> None:
    for file in FOLDER.glob("*.jinja"):
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r"\|\s*(safe|e|escape)\b|autoescape", text), file.name


def test_leaves_of_any_kind(tmp_path: Path) -> None:
    """Numbers too great, too small or none at all in an evaluation."""
    run = save_run(tmp_path)
    report: dict[str, Any] = evaluation()
    report["tuned"] |= {"chrf": 1e308, "loss": float("nan"), "answer_tokens": -5}
    report["base"] |= {"chrf": 10**400, "loss": float("inf")}
    save_evaluation(run, report, [])
    outline(run)


def test_no_way_is_said_of_scores_that_have_none(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    report = evaluation()
    kinds = {"tested": {"label": "rows whose result tells", "unit": "share", "better": None}}
    report["scores"] |= kinds | {"odd": {"label": "odd", "unit": "share", "better": "sideways"}}
    for name in ("base", "tuned"):
        report[name] |= {"tested": 0.9, "odd": 0.5}
    save_evaluation(run, report, None)
    found = outline(run)
    assert "in the format higher is better" in found.text
    assert "rows whose result tells 90%" in found.text and "odd 50%" in found.text


def test_no_change_has_neither_sign(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    report = evaluation()
    for words in ("+0%: nothing shown to be forgotten", "-0%: nothing shown to be forgotten"):
        report["forgetting"]["text"]["words"] = words
        report["differences"]["tuned_vs_base"]["format_rate"]["difference"] = -0.001
        save_evaluation(run, report, None)
        found = outline(run)
        assert "±0%: nothing shown" in found.text and "±0 (" in found.text
        assert not re.findall(r"[+−-]0%", found.text)


def test_each_figure_of_memory_says_what_it_is(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    found = outline(run)
    tiles = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", run.report.read_text(encoding="utf-8"))
    assert ("peak of the whole process, libraries and loading included", "2.4 GB") in tiles
    assert "in the steps, beyond what was held before the model" in found.text
    card = save_run(tmp_path, name="card", memory={"device": "cuda"})
    assert "most that tensors held on the card, loading included" in outline(card).text
