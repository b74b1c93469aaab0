"""The page: valid, inert whatever was answered, in the words of the terminal."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import pairwise
from pathlib import Path

import pytest

from ftcli.evaluation.verdicts import summary_of, verdict_of
from ftcli.report import charts, tables
from ftcli.report.figures import read_figures
from ftcli.report.page import CLEAR, FOLDER
from ftcli.runs.folder import RunFolder
from tests.outline import outline
from tests.reported import evaluation, hostile_run, save_evaluation, save_run


def test_a_whole_page_is_valid_and_says_everything(whole: RunFolder) -> None:
    found = outline(whole)
    for words in (
        "Check before use Better: format valid, finished (EOS) and loss.",
        "Scores on 40 held-out rows (test)",
        "base with a prompt",
        "The prompt of the base: prompt.txt, and 2 examples from the training rows.",
        "1 other evaluation of this run",
        "Nothing checked whether the answers are correct: read some, or",
        "Read these five",
        "number not in the prompt: “1.7 litres” is not in the facts",
        "All 40 rows of eval/answers/0123456789abcdef.jsonl",
        "reference answer",
        "372 rows are enough for a fixed format.",
        "1.6 GiB (1.6 to 1.8) 1.7 GiB within the interval (+3%)",
        "peak of the whole process, libraries and loading included 2.3 GiB",
        "bf16 this CPU supports it",
        "2.13.0",
        "3b3b3b3b",
        "ftcli train runs/shop --fresh",
    ):
        assert words in found.text, words
    assert str(whole.path.parent.parent) not in found.text  # no path of this machine


def test_it_has_the_words_of_table_and_verdict(whole: RunFolder) -> None:
    result = read_figures(whole).evaluation
    assert result is not None
    page, shown = outline(whole).text, tables.scores(result)
    assert len(shown) == 3
    assert all(cell in page for table in shown for cells in table.rows for cell in cells)
    assert all(sentence in page for sentence in summary_of(result))
    assert verdict_of(result).sentence in page


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
    assert len(found.all("img")) == 4 and all(each.get("alt") for each in found.all("img"))
    assert not {"svg", "iframe", "form", "object", "embed"} & set(tags)
    names = [name for _, each in found.elements for name in each]
    assert not [name for name in names if name == "style" or name.startswith("on")]


def test_the_policy_names_the_one_style_and_the_one_script(whole: RunFolder) -> None:
    found = outline(whole)
    page = whole.report.read_text(encoding="utf-8")
    policy = found.all("meta")[1]["content"]
    assert policy is not None and policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.findall(r"""(?:src|href|srcset)=["'](?!#|data:)""", page)
    assert "://" not in page


def test_the_same_run_gives_the_same_bytes(whole: RunFolder) -> None:
    outline(whole)
    first = whole.report.read_bytes()
    outline(whole)
    assert whole.report.read_bytes() == first and len(first) < 400_000


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    found = outline(run)
    assert len(found.all("script")) == len(found.all("style")) == 1
    assert not found.all("b") and all(each["src"] != "x" for each in found.all("img"))
    for words in ("alert(1)</script>", "onerror=alert(1)>", "{{ run.recipe }}{% for x in y %}"):
        assert words in found.text
    assert "␀␇␛[31m null and bell" in found.text
    assert "user:password" not in found.text and "https://***@example.com" in found.text
    assert "995,999 more characters are not shown here." in found.text
    card = run.card.read_text(encoding="utf-8")
    assert (
        "<script" not in card and "<img" not in card.partition("## Recipe")[0].partition("\n# ")[2]
    )


def test_what_a_page_cannot_hold_is_shown_as_something_else() -> None:
    assert "a\x00\x1b\x7f\tb\n".translate(CLEAR) == "a␀␛␡\tb\n"
    assert "half \ud800 a character \ufffe\x85".translate(CLEAR) == "half � a character ��"


def test_a_secret_is_in_no_part_of_page_and_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = 'hf_"<&secret>9876543210'
    monkeypatch.setenv("HF_TOKEN", secret)
    run = save_run(tmp_path, versions={"torch": secret, secret: "1"})
    save_evaluation(run, evaluation(notes=(f"said {secret}",), flags=(secret,)))
    outline(run)
    for file in (run.report, run.card):
        assert "9876543210" not in file.read_text(encoding="utf-8")


def test_the_base_was_not_measured(tmp_path: Path) -> None:
    run = save_run(tmp_path)
    alone = [
        row.model_copy(update={"base": None, "tuned_vs_base": None}) for row in evaluation().scores
    ]
    save_evaluation(run, evaluation(scores=alone, forgetting=()))
    found = outline(run)
    assert "The base was not measured on these rows: ftcli eval runs/shop" in found.text
    assert "difference (95%)" not in found.text


def test_no_page_says_that_answers_are_true(whole: RunFolder) -> None:
    page, card = outline(whole).text, whole.card.read_text(encoding="utf-8")
    text = page.partition("Recipe, every default")[0] + card.partition("## Recipe")[0]
    for found in re.finditer(r"\b(true|correct|right|faithful|invented)\b", text):
        before = text[max(0, found.start() - 40) : found.start()]
        assert "Whether the answers are" in before or "whether the answers are" in before, before


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


def inverted(colour: str) -> str:
    """As page.css shows it on a dark page: invert(1) hue-rotate(180deg) (CSS Filter Effects 1)."""
    red, green, blue = (255 - int(colour[i : i + 2], 16) for i in (1, 3, 5))
    turned = (
        -0.574 * red + 1.43 * green + 0.144 * blue,
        0.426 * red + 0.43 * green + 0.144 * blue,
        0.426 * red + 1.43 * green - 0.856 * blue,
    )
    return "#" + "".join(f"{round(min(max(part, 0), 255)):02x}" for part in turned)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(name: str) -> None:
    colours = palettes()[name]
    grounds = [each for each in colours if each in ("paper", "card", "mark") or "ground" in each]
    pairs = [("ink", ground) for ground in grounds]
    pairs += [
        (text, each) for text in ("muted", "first", "good", "bad") for each in ("paper", "card")
    ]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line in ("first", "second", "muted"):  # success criterion 1.4.11
        assert contrast(colours[line], colours["paper"]) >= 3, line
    for line in charts.COLOURS:
        assert contrast(inverted(line) if name == "dark" else line, colours["paper"]) >= 3, line


def test_the_curves_have_the_colours_of_the_page() -> None:
    assert (palettes()["light"]["first"], palettes()["light"]["second"]) == charts.COLOURS


def test_every_colour_of_the_style_is_of_the_palettes() -> None:
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    rules = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
    assert not re.findall(r"#[0-9a-f]{3,8}\b|rgba?\(", rules)
    assert set(re.findall(r"var\(--([\w-]+)\)", rules)) == set(palettes()["light"])
    for kept in ("prefers-color-scheme: dark", "prefers-reduced-motion", "@media print"):
        assert kept in style


def test_script_and_template_mark_no_text_as_markup() -> None:
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacent", "eval(", "document.write", "fetch("):
        assert unsafe not in script
    (template,) = FOLDER.glob("*.jinja")
    text = template.read_text(encoding="utf-8")
    assert not re.findall(r"\|\s*(safe|e|escape)\b|autoescape", text)
