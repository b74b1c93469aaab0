"""The page: valid, inert whatever was answered, readable in both palettes, right without parts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ftcli.artifacts import RunFolder
from ftcli.stages.report import write_report
from ftcli.stages.report.page import FOLDER
from tests.reported import (
    BASE,
    TUNED,
    answer,
    evaluation,
    hostile_run,
    save_evaluation,
    save_run,
    side,
    usual_lines,
)

VOID = {"meta", "link", "input", "br", "hr", "img"}
SVG_LEAVES = {"path", "use", "rect", "circle", "line", "text", "g", "svg", "defs", "clippath"}


class Outline(HTMLParser):
    """Reads a page strictly: every tag that opens closes, in order; ids are one of a kind."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.faults: list[str] = []
        self.feed(page)
        self.close()
        self.faults += [f"<{tag}> never closes" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.faults.append(f"<{tag}> has an attribute twice")
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID | SVG_LEAVES:
            self.faults.append(f"<{tag}/> closes itself, which HTML does not know")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else, at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def outline(run: RunFolder) -> Outline:
    """Of the page of a run, which must be valid."""
    found = Outline(write_report(run).read_text(encoding="utf-8"))
    assert found.faults == []
    ids = [each["id"] for _, each in found.elements if "id" in each]
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby", "for"):
        for _, each in found.elements:
            assert set((each.get(name) or "").split()) <= set(ids), each
    links = {(each.get("href") or "")[1:] for each in found.all("a")}
    assert links <= set(ids)
    return found


@pytest.fixture
def whole(tmp_path: Path) -> RunFolder:
    """A run with everything: two other sides, findings, advice, a second evaluation."""
    run = save_run(tmp_path)
    lines = usual_lines(40)
    for line in lines:
        line["sides"]["prompted"] = answer("A prompted answer.")
        line["facts"] = "facts of their own"
    differences = evaluation()["differences"]
    differences["tuned_vs_prompted"] = differences["tuned_vs_base"]
    prompted = side(BASE, prompt_tokens=812.0)
    save_evaluation(run, evaluation(rows=40, prompted=prompted, differences=differences), lines)
    save_evaluation(run, evaluation(data="other.jsonl", rows=12), None, key="f" * 16)
    advice = {"sentences": ["372 rows are enough for a fixed format."]}
    (run.data / "advice.json").write_text(json.dumps(advice))
    return run


def test_a_whole_page_is_valid_and_says_everything(whole: RunFolder) -> None:
    found = outline(whole)
    for words in (
        "Look before you ship it.",
        "97% 92– to 99%",
        "base with a long prompt",
        "1 other evaluation of this run",
        "invented number",
        "+2%: nothing shown to be forgotten",
        "All 40 rows of eval/answers/0123456789abcdef.jsonl",
        "Training loss 2.30 → 0.86 over 60 steps",
        "Tokens a second: median",
        "372 rows are enough for a fixed format.",
        "planned 1.8 GB, measured 1.8 GB",
        "within the interval (+3%)",
        "2.13.0",
        "3b3b3b3b",
        "ftcli train runs/shop/recipe.yaml --fresh",
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


MISSING = {
    "eval": ("Not measured yet: ftcli eval runs/shop", "Not looked at yet: ftcli eval runs/shop"),
    "plan.json": ("No plan is kept in the run.",),
    "metrics.jsonl": ("No step was recorded",),
    "data": ("No preparation is kept in the run: ftcli prepare runs/shop/recipe.yaml",),
    "speed.jsonl": ("Gradient norm before clipping",),
    "contract.json": ("adapter_model.safetensors (sha256)",),
    "recipe.yaml": ("unknown model · unknown method",),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_page_without_a_part_says_what_brings_it(whole: RunFolder, name: str) -> None:
    path = whole.path / name
    path.rename(path.with_name("elsewhere"))
    found = outline(whole)
    for words in MISSING[name]:
        assert words in found.text
    assert "could be read" not in found.text


@pytest.mark.parametrize("written", ["", "{", "[1, 2]", "null", '{"a": [', "\x00\xff"])
def test_files_that_are_broken_are_named_and_the_rest_is_shown(
    whole: RunFolder, written: str
) -> None:
    files = ["plan.json", "contract.json", "data/prepared.json", "data/advice.json"]
    files += ["eval/0123456789abcdef.json", "eval/answers/0123456789abcdef.jsonl", "metrics.jsonl"]
    for name in files:
        (whole.path / name).write_text(written, encoding="utf-8")
    found = outline(whole)
    assert "Not everything could be read" in found.text
    assert "plan.json: cannot be read" in found.text


def wrong(value: object) -> object:
    """The same shape with every leaf of another type."""
    match value:
        case dict():
            return {key: wrong(inner) for key, inner in value.items()}
        case list():
            return [wrong(inner) for inner in value]
        case str():
            return 7
        case _:
            return "words"


def test_figures_of_other_types_are_left_out(whole: RunFolder) -> None:
    for file in whole.evaluations.glob("*.json"):
        file.write_text(json.dumps(wrong(json.loads(file.read_text()))))
    whole.update_manifest(**{"memory": 3, "result": [], "versions": "x", "weights": None})
    whole.metrics.write_text('{"step": "x", "loss": []}\n[]\n3\n')
    whole.plan.write_text(json.dumps(wrong(json.loads(whole.plan.read_text()))))
    outline(whole)


@pytest.mark.parametrize("state", ["training", "stopped"])
def test_a_run_that_is_not_finished_has_a_page_too(tmp_path: Path, state: str) -> None:
    run = save_run(tmp_path, state=state, result={}, weights={})
    found = outline(run)
    assert "Not finished yet." in found.text
    assert f"({state}): go on with ftcli train runs/shop/recipe.yaml" in found.text


def test_the_base_was_not_measured(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(base=None, differences={}, forgetting=None), usual_lines(3))
    found = outline(run)
    assert "The base was not measured on these rows: ftcli eval runs/shop" in found.text


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


def test_intervals_that_look_like_certainty_are_not_shown(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    alike = evaluation(tuned=side(TUNED | {"chrf": (0.5, 0.5, 0.5)}))
    alike["differences"]["tuned_vs_base"]["chrf"] |= {"difference": 0.0, "interval": [0.0, 0.0]}
    save_evaluation(run, alike, None)
    found = outline(run)
    assert "0.50 (all rows alike)" in found.text and "±0.00 (all rows alike)" in found.text
    assert "too few rows" not in found.text and "0.88 0.84– to 0.93" in found.text
    save_evaluation(run, evaluation(rows=9), None)
    found = outline(run)
    assert "0.88 (too few rows)" in found.text and "−1.43 (too few rows)" in found.text
    assert "97% 92– to 99%" in found.text  # Wilson's interval stays wide with few rows
    counted = evaluation()
    counted["differences"]["tuned_vs_base"]["chrf"]["rows"] = 4
    save_evaluation(run, counted, None)
    found = outline(run)
    assert "0.50 (too few rows)" in found.text and "0.88 0.84– to 0.93" in found.text


@pytest.mark.parametrize("left", [0, 7, None])
def test_rows_that_are_gone_are_told_and_nothing_is_shipped(
    tmp_path: Path, left: int | None
) -> None:
    run = save_run(tmp_path)
    lines = usual_lines(4) * 30
    kept = {"prompt": "p", "reference": "r", "file": "f.jsonl", "line": 3, "tuned": answer("t")}
    save_evaluation(run, evaluation(samples=[kept]), lines)
    assert "Ship it." in outline(run).text
    save_evaluation(run, evaluation(samples=[kept]), lines[:left] if left else [])
    file = run.evaluations / "answers" / "0123456789abcdef.jsonl"
    if left is None:
        file.unlink()
    found = outline(run)
    gone = f"eval/answers/0123456789abcdef.jsonl: {left or 0} of 120 rows are there"
    assert "Not everything could be read" in found.text
    assert found.text.count(gone) == 3  # reason, list of problems, answers
    assert "Look before you ship it." in found.text
    assert f"{gone}: what is wrong with the answers is not known" in found.text
    assert "kept only its first answers" not in found.text


def test_rows_without_the_tuned_answers_are_gone_too(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(rows=3), [*usual_lines(2), {"file": "f", "line": 3}])
    assert "2 of 3 rows are there" in outline(run).text


def test_figures_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    report = evaluation()
    report["tuned"]["loss"] = "abc"
    report["base"]["chrf_interval"] = [0.1]
    save_evaluation(run, report, None)
    found = outline(run)
    what = "no figures, and left out: base.chrf_interval, tuned.loss"
    assert f"eval/0123456789abcdef.json: {what}" in found.text
    assert "eval/0123456789abcdef.json is damaged: not all of its figures" in found.text
    report["differences"]["tuned_vs_base"] |= {"loss": 3, "perplexity": None}
    save_evaluation(run, report, None)
    assert "tuned.loss, differences.tuned_vs_base.loss and 1 more" in outline(run).text


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
