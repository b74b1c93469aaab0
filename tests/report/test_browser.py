"""The page in a real Chromium: nothing to complain of, nothing asked for, and it can be used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftcli.report.page import write_report
from tests.chromium import Tab, browser, program
from tests.reported import evaluation, hostile_run, save_evaluation, save_run, usual_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="no Chromium is installed"),
]
WIDTHS = (400, 700, 800, 1400)
# Elements that stick out of the window to the right, without those inside a box that scrolls.
STICKING_OUT = """
[...document.querySelectorAll("body *")].filter((each) =>
  each.getBoundingClientRect().right > innerWidth + 1 && !each.closest("pre, .skip")
).map((each) => each.outerHTML.slice(0, 80))
"""
# Smallest computed size of a text that is shown, in px of the screen; those of a picture scale.
SMALLEST = """
Math.min(...[...document.querySelectorAll("body *")].filter((each) =>
  each.offsetParent !== null &&
  [...each.childNodes].some((part) => part.nodeType === 3 && part.data.trim())
).map((each) => parseFloat(getComputedStyle(each).fontSize)),
...[...document.images].map((each) => 12 * each.getBoundingClientRect().width / each.naturalWidth))
"""
UNDRAWN = "[...document.images].filter((each) => !each.complete || !each.naturalWidth).length"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a run with everything, of one without an evaluation, and of hostile answers."""
    folder = tmp_path_factory.mktemp("pages")
    whole = save_run(folder / "whole")
    lines = tuple(usual_lines(60))
    save_evaluation(whole, evaluation(rows=60, samples=lines[:5]), lines)
    runs = {"whole": whole, "bare": save_run(folder / "bare")}
    runs["hostile"] = hostile_run(folder / "hostile")
    for run in runs.values():
        write_report(run)
    return {name: run.report for name, run in runs.items()}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["whole", "bare", "hostile"])
def test_quiet_alone_and_readable(
    tab: Tab, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    tab.open(pages[name], width=width, dark=dark)
    time.sleep(0.2)  # a late request or complaint would come in this time
    tab.run("1")
    assert tab.complaints() == []
    sent = [each for each in tab.requests() if not each.startswith("data:")]
    assert sent == [pages[name].as_uri()]
    assert tab.run(UNDRAWN) == 0
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert tab.run(STICKING_OUT) == []
    assert tab.run(SMALLEST) >= 10
    ground = tab.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")


def test_a_page_that_breaks_its_policy_is_caught_by_this_test(tab: Tab, tmp_path: Path) -> None:
    """The test above can fail."""
    page = tmp_path / "page.html"
    policy = "default-src 'none'"
    page.write_text(
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<p style="color: red">x</p><script>alert(1)</script><img src="http://localhost:9/x.png">'
    )
    tab.open(page)
    tab.run("1")
    found = " ".join(tab.complaints())
    assert "style-src" in found and "script-src" in found and "img-src" in found


def shown(tab: Tab) -> int:
    count: int = tab.run("document.querySelectorAll('#rows > .sample:not([hidden])').length")
    return count


def test_rows_are_filtered_by_words_and_by_what_is_wrong(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["whole"])
    assert shown(tab) == 60
    tab.run("document.querySelector('#filter [value=terms]').click()")
    assert shown(tab) == 12
    assert tab.run("document.getElementById('shown-rows').textContent") == "12 of 60 rows"
    tab.run("document.getElementById('words').focus()")
    tab.ask("Input.insertText", text="KETTLE")
    deadline = time.monotonic() + 5
    while shown(tab) == 12 and time.monotonic() < deadline:
        time.sleep(0.05)
    rows = tab.run("document.querySelector('#rows > .sample:not([hidden])').textContent")
    assert 0 < shown(tab) < 12 and "kettle" in rows and "not in the prompt" in rows
    tab.run("document.getElementById('open-all').click()")
    assert tab.run("document.querySelectorAll('.sample[open]:not([hidden])').length") == shown(tab)
    assert tab.complaints() == []


def test_all_of_it_is_reached_by_the_keyboard(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["whole"])
    reached = []
    for _ in range(60):
        tab.press("Tab")
        reached.append(tab.run("document.activeElement.outerHTML.slice(0, 60)"))
        outline = tab.run("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
    assert reached[0].startswith('<a class="skip"')
    for part in ('<a href="#scores"', '<input id="words"', "<button", "<summary>Row"):
        assert [each for each in reached if each.startswith(part)], part


def test_without_the_script_the_rows_are_a_plain_list(tab: Tab, pages: dict[str, Path]) -> None:
    tab.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(pages["whole"])
        tree = tab.ask("Accessibility.getFullAXTree")["nodes"]
    finally:
        tab.ask("Emulation.setScriptExecutionDisabled", value=False)
    words = [node.get("name", {}).get("value", "") for node in tree if not node.get("ignored")]
    assert not [each for each in words if "Rows with these words" in each]
    assert len([each for each in words if each.startswith("Row 2 ")]) >= 1
    assert [each for each in words if each.startswith("Loss: Training 2.30 → 0.86")]


def test_many_rows_stay_usable(tab: Tab, tmp_path: Path) -> None:
    run = save_run(tmp_path)
    save_evaluation(run, evaluation(rows=3000))
    write_report(run)
    assert run.report.stat().st_size < 4_000_000
    tab.open(run.report)
    assert shown(tab) == 500
    assert "500 of 3,000 rows" in tab.run("document.getElementById('samples').textContent")
    tab.run("document.querySelector('#filter [value=terms]').click()")
    assert 0 < shown(tab) < 500
