from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest

from ftcli import console
from ftcli.console import (
    Terminal,
    duration,
    print_json,
    print_message,
    print_result,
    print_table,
    print_text,
    shown_path,
    width,
)
from ftcli.shell import gib, shown_size


class OnTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_messages_go_to_stderr_and_results_to_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_message("reading")
    print_result("7 rows")
    print_text("a")
    print_text("b")
    assert capsys.readouterr() == ("7 rows\nab", "reading\n")


def test_json_is_one_line_with_its_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "Größe\n二"})
    out = capsys.readouterr().out
    assert out == '{"name": "Größe\\n二"}\n'
    assert json.loads(out) == {"name": "Größe\n二"}


def test_warnings_are_said_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.note("8 rows are short")
    terminal.warn("[bold] is not markup")
    assert capsys.readouterr().err == "8 rows are short\nwarning: [bold] is not markup\n"


def test_without_a_terminal_a_meter_prints_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    now = [start]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with Terminal().meter("step", 40) as meter:
        for done in range(1, 41):
            now[0] = start + 1.01 * done
            meter.update(done, f"loss {done}")
    assert capsys.readouterr() == (
        "",
        "step 10/40  loss 10\nstep 20/40  loss 20\nstep 30/40  loss 30\nstep 40/40  loss 40\n",
    )


def test_a_fast_meter_prints_its_end_only(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().meter("rows", 1000) as meter:
        for done in range(1, 1001):
            meter.update(done)
    assert capsys.readouterr().err == "rows 1000/1000\n"


def test_a_meter_over_nothing_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().meter("rows", 0) as meter:
        meter.update(0)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = OnTerminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Terminal().meter("rows", 4) as meter:
        meter.update(4, "12 a second")
    assert "rows 4/4" in screen.getvalue()
    assert "12 a second" in screen.getvalue()
    before = len(screen.getvalue())
    Terminal().warn("[bold] is not markup")
    assert screen.getvalue()[before:] == "\x1b[33mwarning: [bold] is not markup\x1b[0m\n"


def test_a_count_without_a_total_is_printed_as_it_grows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    monkeypatch.setattr(console.time, "monotonic", lambda: start + 20)
    with Terminal().meter("read", 0) as meter:
        monkeypatch.setattr(console.time, "monotonic", lambda: start + 40)
        meter.update(7000, "350 rows/s")
    assert capsys.readouterr().err == "read 7000  350 rows/s\n"
    monkeypatch.setenv("TERM", "xterm")
    screen = OnTerminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Terminal().meter("read", 0) as meter:
        meter.update(7000, "350 rows/s")
    assert "read 7000 " in screen.getvalue()
    assert "350 rows/s" in screen.getvalue()
    assert "None" not in screen.getvalue()
    assert "%" not in screen.getvalue()


def test_names_that_are_not_utf_8_are_escaped_in_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", stdout)
    print_json({"file": "Größe-\udcff.yaml"})
    assert json.loads(stdout.buffer.getvalue()) == {"file": "Größe-\udcff.yaml"}


def test_columns_start_at_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["rows", "base", "tuned"], [["loss", "2.31", "0.4"], ["exact match", "0%", "61%"]])
    assert capsys.readouterr().out == (
        "  rows          base   tuned\n  loss          2.31   0.4\n  exact match   0%     61%\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (372, "6 min 12 s"),
        (3599.9, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_gib_is_2_to_the_30_bytes() -> None:
    assert gib(6_400_000_000) == "6.0 GiB"
    assert gib(0) == "0.0 GiB"
    assert shown_size(39_000_000) == "37 MiB"
    assert shown_size(1_200_000_000) == "1.1 GiB"


def test_a_path_is_shown_from_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert shown_path(tmp_path / "here" / "runs" / "a") == "runs/a"
    assert shown_path(Path("runs/a")) == "runs/a"
    assert shown_path(tmp_path / "there") == str(tmp_path / "there")


def test_the_width_is_that_of_the_terminal_or_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert width() == 120
    monkeypatch.delenv("COLUMNS")
    assert width() == 80


def test_a_message_on_a_terminal_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stderr", screen := OnTerminal())
    run = "ftcli train shop.yaml --set training.epochs=2"
    print_message(f"the loss of step 12 is NaN or infinite; lower the rate. Resume: {run}\n  {run}")
    *words, again, whole = screen.getvalue().splitlines()
    assert " ".join(" ".join(words).split()).endswith("lower the rate. Resume:")
    assert max(map(len, words)) <= 40
    assert again == whole == f"  {run}"


def test_colours_need_a_terminal_and_no_veto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert not console.colours()
    monkeypatch.setattr(sys, "stdout", OnTerminal())
    assert console.colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not console.colours()
