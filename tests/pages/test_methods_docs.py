"""docs/methods.md is current and true to the code; its figures can be read in light and dark."""

from __future__ import annotations

import itertools
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
import yaml
from matplotlib.font_manager import findfont, get_font
from pydantic import TypeAdapter

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import build_methods_docs as docs  # noqa: E402
from method_figures import HEIGHT, MODES, WIDTH, figures_of, in_words, share  # noqa: E402
from svg_drawing import DARK, LIGHT, RULES, Drawing, style  # noqa: E402

from ftcli.config.recipe import Method, Recipe  # noqa: E402
from ftcli.memory.choices import Mode  # noqa: E402
from tests.commands.test_overfitting import BY_HEART  # noqa: E402
from tests.commands.test_small_model import MARGINS  # noqa: E402

FIX = "make docs"
SVG = "{http://www.w3.org/2000/svg}"
METHODS: TypeAdapter[Any] = TypeAdapter(Method)
HEADINGS: dict[Mode, str] = {
    "full": "Full fine-tuning",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "adapter": "Bottleneck adapters",
    "prefix": "Prefix tuning",
    "prompt": "Prompt tuning",
}
Sides = tuple[float, float, float, float]


@cache
def page() -> str:
    return (docs.DOCS / "methods.md").read_text(encoding="utf-8")


def section(mode: Mode) -> str:
    return section_named(HEADINGS[mode])


def section_named(heading: str) -> str:
    return page().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def figure(mode: Mode) -> ElementTree.Element:
    return ElementTree.parse(docs.DOCS / "figures" / f"{mode}.svg").getroot()


def test_page_and_figures_are_current() -> None:
    for path, text in docs.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: {FIX}"
    assert docs.main(check=True) == 0


def test_a_file_that_is_not_current_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "default_rate", lambda mode: 0.123)
    assert docs.main(check=True) == 1
    assert "docs/methods.md is not current" in capsys.readouterr().err


def test_the_page_is_short_enough_to_read() -> None:
    assert len(page().splitlines()) <= 340


@pytest.mark.parametrize("mode", MODES)
def test_every_method_has_its_figure_its_keys_and_a_recipe_that_loads(mode: Mode) -> None:
    text = section(mode)
    assert f"(figures/{mode}.svg)" in text
    (snippet,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    values = {"name": "x", "model": {"id": "7b"}, "data": {"train": "x"}, **yaml.safe_load(snippet)}
    recipe = Recipe.model_validate(values)
    assert recipe.method.mode == mode
    assert recipe.training.learning_rate == docs.default_rate(mode)
    named = section("lora") + text if mode == "qlora" else text
    for key in type(recipe.method).model_fields:
        assert key == "mode" or f"`{key}`" in named, key


def test_every_mode_of_the_recipe_is_there() -> None:
    known = {
        get_args(each.model_fields["mode"].annotation)[0] for each in get_args(get_args(Method)[0])
    }
    assert known == set(get_args(Mode)) == set(MODES) == set(HEADINGS)


def test_loras_arithmetic_is_the_one_that_everybody_checks() -> None:
    for words in ("4,096 × 4,096 = 16,777,216", "together 131,072", "**0.78%**"):
        assert words in page()
    assert 2 * 16 * 4096 == 131_072 and 131_072 / 4096**2 == 0.0078125
    rows = {row.split(" | ")[0].strip("| "): row for row in section("lora").splitlines()}
    whole = rows["**Llama 2 7B**"]
    assert "6,738,415,616" in whole and f"{32 * 16 * (4 * 8192 + 3 * 15104):,}" in whole


def test_what_each_reaches_is_what_the_slow_tests_demand() -> None:
    said = section_named("What each reaches at least")
    names = {**docs.ROWS, "lora": "LoRA", "qlora": "QLoRA"}
    for mode in MODES:
        rate, margin = MARGINS[mode]
        shown = docs.short_rate(docs.default_rate(mode) if rate == "auto" else rate)
        assert f"| {names[mode]} | {shown} | {margin} |" in said
    steps, rate, _ = BY_HEART["prompt"]
    assert f"{steps} steps at {docs.short_rate(rate)} for prompt tuning" in said.replace("\n", " ")


def test_what_is_saved_is_as_large_as_the_files_of_the_base() -> None:
    """tests/commands/test_saved_types.py has the types of real runs."""
    for model, weight in (("7b", 2), (docs.QWEN, 2), (docs.SMALL, 4)):
        found = figures_of(model)
        assert found.saved("full") == in_words(found.parameters * weight)
        assert found.saved("lora") == in_words(found.trained["lora"] * 4)
    assert "6,738,415,616 (100%), 13.5 GB" in page()
    assert "13.5 GB in 16 bits" in [text_of(each) for each in figure("full").iter(f"{SVG}text")]


def test_shares_and_sizes_in_words() -> None:
    assert [share(part, 10_000) for part in (10_000, 593, 78, 1)] == [
        "100%",
        "5.93%",
        "0.78%",
        "0.01%",
    ]
    assert share(78, 100_000) == "0.078%"
    assert [in_words(each) for each in (26.95e9, 159.9e6, 19.54e6, 46_080)] == [
        "26.9 GB",
        "160 MB",
        "19.5 MB",
        "46 KB",
    ]


def test_what_the_page_says_of_memory_holds() -> None:
    cards = figures_of("7b").card_bytes
    assert cards["qlora"] < min(cards[mode] for mode in MODES if mode != "qlora")
    assert cards["prefix"] > cards["lora"] > cards["prompt"]
    assert cards["full"] > 80e9, "several cards' worth"
    assert abs(cards["adapter"] / cards["lora"] - 1) < 0.05, "about as much as LoRA"


@pytest.mark.parametrize("mode", MODES)
def test_no_words_overlap_or_leave_the_figure(mode: Mode) -> None:
    boxes = [(text_of(each), sides(each)) for each in figure(mode).iter(f"{SVG}text")]
    assert len(boxes) > 20
    for words, (left, top, right, bottom) in boxes:
        assert left > 8 and top > 8 and right < WIDTH - 8 and bottom < HEIGHT - 8, words
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not overlap(first, second), f"{one} / {other}"


@pytest.mark.parametrize("mode", MODES)
def test_words_stand_in_a_box_or_beside_it(mode: Mode) -> None:
    root = figure(mode)
    solid = [each for each in root.iter(f"{SVG}rect") if each.get("class") in ("frozen", "trained")]
    for text in root.iter(f"{SVG}text"):
        for box in solid:
            x, y, width, height = (
                float(box.get(name, 0)) for name in ("x", "y", "width", "height")
            )
            edges, words = (x, y, x + width, y + height), sides(text)
            inside = edges[0] <= words[0] and words[2] <= edges[2]
            assert inside or not overlap(edges, words), text_of(text)


@pytest.mark.parametrize("mode", MODES)
def test_a_figure_is_self_contained(mode: Mode) -> None:
    """No script, no link, no date, no id: the same wherever and whenever it is drawn."""
    root = figure(mode)
    tags = {each.tag.removeprefix(SVG) for each in root.iter()}
    shapes = {"rect", "polygon", "circle", "polyline"}
    assert tags <= {"svg", "title", "style", "text", "tspan"} | shapes
    names = {name for each in root.iter() for name in each.attrib}
    assert not names & {"id", "href", "onload", "style"}
    assert {each.get("class") for each in root.iter()} - {None} <= set(RULES)
    assert root.findtext(f"{SVG}title", "").startswith(HEADINGS[mode])


def test_full_leaves_nothing_frozen_and_the_others_nearly_everything() -> None:
    for mode in MODES:
        kinds = [each.get("class") for each in figure(mode).iter() if each.tag != f"{SVG}text"]
        frozen, trained = kinds.count("frozen") - 1, kinds.count("trained") - 1  # the legend
        assert (frozen == 0) == (mode == "full")
        assert trained > 1


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_words_and_what_is_trained_stand_out(colours: dict[str, str]) -> None:
    assert set(colours) == set(LIGHT)
    grounds = {"ink": ("paper", "card"), "muted": ("paper", "card")}
    grounds |= {"on-trained": ("trained",), "on-frozen": ("frozen",)}
    for kind, under in grounds.items():
        colour = re.sub(r"fill:\{(.*)\}", r"\1", RULES[kind])
        for ground in under:
            assert contrast(colours[colour], colours[ground]) >= 4.5, f"{kind} on {ground}"
    assert contrast(colours["trained"], colours["frozen"]) >= 3
    assert contrast(colours["trained"], colours["card"]) >= 3
    assert all(colour in style() for colour in colours.values())


def test_subscripts_stand_below_and_the_line_comes_back() -> None:
    drawing = Drawing(100, 100, "x")
    drawing.text("y = W_up h", (10, 10), size=12)
    (text,) = ElementTree.fromstring(drawing.svg()).iter(f"{SVG}text")
    assert [each.text for each in (text, *text)] == ["y = W", "up", "h"]
    assert [(each.get("dx"), each.get("dy")) for each in text] == [(None, "3"), ("3.6", "-3")]
    with pytest.raises(ValueError, match="no such class"):
        drawing.text("x", (0, 0), "pink")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_counts_are_those_of_peft_on_the_small_model(mode: Mode, small_model: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ftcli.models.methods import attach

    with torch.device("meta"):  # sizes without weights
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(small_model))
    adapted = attach(base, method_of(mode), seed=0)
    counted = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    assert counted == figures_of(docs.SMALL).trained[mode]
    rows = [line for line in page().splitlines() if line.startswith(f"| {docs_row(mode)} |")]
    assert any(f"{counted:,} (" in row for row in rows)


@pytest.mark.slow
def test_a_prefix_begins_near_the_base_and_lora_at_it(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.models import methods

    base, lora, prefix = (first_loss(small_model, mode) for mode in ("full", "lora", "prefix"))
    monkeypatch.setattr(methods, "begin_as", lambda *_: None)
    noise = first_loss(small_model, "prefix")
    assert lora == base
    said = "4.0 without a prefix, 3.9 behind such words, and 10.0 behind noise (measured)"
    assert said in page().replace("\n", " ")
    assert (base, prefix, noise) == pytest.approx((4.0, 3.9, 10.0), abs=0.05)


def first_loss(folder: Path, mode: Mode) -> float:
    """Of a short text, before the first step."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftcli.models.methods import attach
    from ftcli.models.virtual_tokens import backbone_inputs, causal_model

    text = (
        "The kettle is made of brushed steel and holds one and a half litres. It boils water in "
        "three minutes, and a light shows when it is ready. The handle stays cool, and the lid "
        "opens with one finger."
    )
    ids: Any = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = attach(base, method_of(mode), seed=0).eval()
    network: Any = causal_model(model)
    with torch.no_grad():
        states = network.model(**backbone_inputs(model, ids)).last_hidden_state
        logits = network.lm_head(states[:, -ids.shape[1] :])
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))


def method_of(mode: Mode) -> Any:
    return METHODS.validate_python({"mode": mode})


def docs_row(mode: Mode) -> str:
    return docs.ROWS["lora" if mode == "qlora" else mode]


def text_of(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def sides(text: ElementTree.Element) -> Sides:
    """Left, top, right, bottom of words in DejaVu Sans, wider than what viewers take."""
    size = float(text.get("font-size", 0))
    bold = text.get("class") == "title"
    width = word_width(text_of(text), size, bold)
    x, y = float(text.get("x", 0)), float(text.get("y", 0))
    left = x - {"middle": width / 2, "end": width}.get(text.get("text-anchor", ""), 0)
    return left, y - 0.76 * size, left + width, y + 0.24 * size


def word_width(words: str, size: float, bold: bool) -> float:
    font = get_font(findfont("DejaVu Sans:bold" if bold else "DejaVu Sans"))
    font.set_size(size, 72)
    font.set_text(words)
    return float(font.get_width_height()[0]) / 64


def overlap(one: Sides, other: Sides) -> bool:
    across = one[0] < other[2] and other[0] < one[2]
    return across and one[1] < other[3] and other[1] < one[3]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
