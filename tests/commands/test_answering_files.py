"""`ftcli generate` of a file: the adapter of each row, and resuming an output."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.errors import FtcliError
from ftcli.inference.answers_file import (
    AnswersFile,
    PromptFile,
    PromptRow,
    made_with,
    read_prompt_file,
)
from ftcli.inference.generation import Answer
from ftcli.runs.folder import RunFolder
from ftcli.training.opening import weight_digests
from tests.several import (
    NAMES,
    PROMPTS,
    answered,
    copy_of,
    file_of,
    flip_a_bit,
    members,
    others,
    three_runs,
)


@pytest.fixture(scope="module")
def runs(tiny_model: Path, made_once: Callable[..., Path]) -> Path:
    return made_once("several", lambda home: three_runs(home, tiny_model)) / "runs"


def test_an_interrupted_file_resumes(runs: Path, tmp_path: Path) -> None:
    rows = [{"prompt": p, "adapter": n} for p, n in zip(PROMPTS, NAMES, strict=True)]
    source, output = file_of(tmp_path / "all.jsonl", rows), tmp_path / "out.jsonl"
    whole = answered([runs / "shop", *others(runs)], source, output)
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:2]))
    assert answered([runs / "shop", *others(runs)], source, output) == whole


@pytest.mark.fault(6)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_file_reports_what_is_answered_and_resumes(
    number: signal.Signals,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = file_of(tmp_path / "all.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    output = tmp_path / "out.jsonl"
    command = ["generate", str(runs / "shop"), "--input", str(source), "--output", str(output)]
    original = AnswersFile.append

    def stopped(file: AnswersFile, *answered: Any) -> None:
        original(file, *answered)
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(AnswersFile, "append", stopped)
        assert run(command) == 128 + number
    said = capsys.readouterr().err
    assert said.rstrip().endswith(
        f"stopped: 1 of {len(PROMPTS)} rows are answered in {output}; the same command resumes"
    )
    assert run(command) == 0
    assert len(output.read_text().splitlines()) == len(PROMPTS)


def asked(prompts: PromptFile) -> list[tuple[str, str]]:
    return [(row.messages[-1].content, row.adapter) for row in prompts.rows]


def test_a_row_without_a_name_is_for_the_default(runs: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "adapter": None},
        {"prompt": "b", "adapter": ""},
        {"prompt": "c"},
        {"prompt": "d", "adapter": "shop"},
    ]
    both = members(runs, f"sql={runs / 'sql'}")
    for default in ("shop", "sql"):
        found = read_prompt_file(both, default, file_of(tmp_path / "rows.jsonl", rows))
        assert asked(found) == [("a", default), ("b", default), ("c", default), ("d", "shop")]
        assert found.rejected == () and not found.ignores_adapter_column
    table = tmp_path / "rows.csv"
    table.write_text("prompt,adapter\na,\nb,shop\n")
    assert asked(read_prompt_file(both, "sql", table)) == [("a", "sql"), ("b", "shop")]


def test_a_row_with_an_invalid_name_is_skipped(runs: Path, tmp_path: Path) -> None:
    values = [["sql"], {"name": "sql"}, 3, False, "sqll"]
    rows = [{"prompt": str(number), "adapter": v} for number, v in enumerate(values)]
    source = file_of(tmp_path / "rows.jsonl", [*rows, {"prompt": "left", "adapter": "sql"}])
    found = read_prompt_file(members(runs, f"sql={runs / 'sql'}"), "shop", source)
    assert asked(found) == [("left", "sql")]
    expected = "adapter: expected a name (there is shop, sql), found"
    kinds = ("a list", "an object", "the number 3", "false")
    assert found.rejected == (
        *(f"{source}:{n}: {expected} {kind}" for n, kind in enumerate(kinds, start=1)),
        f"{source}:5: adapter 'sqll': no adapter of this name; did you mean sql? "
        "(there is shop, sql)",
    )


def test_rows_on_one_line_are_all_answered(runs: Path, tmp_path: Path) -> None:
    names = ["sql", "shop", "nobody", "sql", None]
    rows = [{"prompt": str(number), "adapter": name} for number, name in enumerate(names)]
    source = tmp_path / "rows.json"
    source.write_text(json.dumps([*rows[:2], "no row", *rows[2:]]))
    found = read_prompt_file(members(runs, f"sql={runs / 'sql'}"), "shop", source)
    assert asked(found) == [("0", "sql"), ("1", "shop"), ("3", "sql"), ("4", "shop")]
    assert [reason.split(": ")[1] for reason in found.rejected] == [
        "text, where an object is expected",
        "adapter 'nobody'",
    ]


def test_names_in_a_file_for_one_run_are_ignored_with_a_note(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, notes in (("sql", 1), ("shop", 0), (None, 0)):
        rows = [{"prompt": p, "adapter": name} for p in PROMPTS[:2]]
        source, output = tmp_path / "rows.jsonl", tmp_path / f"{name}-out.jsonl"
        capsys.readouterr()
        assert len(answered([runs / "shop"], file_of(source, rows), output)) == 2
        assert capsys.readouterr().err.count("`adapter` is ignored") == notes


def test_use_answers_the_rows_that_name_nobody(runs: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": p} for p in PROMPTS]
    rows[1]["adapter"], rows[4]["adapter"] = "shop", "note"
    source = file_of(tmp_path / "rows.jsonl", rows)
    flags = [runs / "shop", *others(runs), "--use", "sql"]
    found = answered(flags, source, tmp_path / "found.jsonl")
    assert [row["adapter"] for row in found] == ["sql", "shop", "sql", "sql", "note", "sql"]
    plain = file_of(tmp_path / "plain.jsonl", [{"prompt": p} for p in PROMPTS])
    for name in ("shop", "sql", "note"):
        alone = answered([runs / name], plain, tmp_path / f"{name}-alone.jsonl")
        texts = {row["prompt"]: row["answer"] for row in alone}
        for row in found:
            assert row["adapter"] != name or row["answer"] == texts[row["prompt"]]


ROWS: list[dict[str, Any]] = [
    {"sku": "10", "prompt": 'one\nline; "quoted"', "tags": ["a", "ü"], "answer": "mine"},
    {"sku": "11", "prompt": "two", "price": 1.5, "line": 7},
    {"sku": "12", "prompt": "three\r", "tags": None},
]
ANSWERS = [
    Answer('A "table",\nwith; stages\r', 5, True),
    Answer("", 0, True),
    Answer("ü" * 9, 9, False),
]


def prompt_rows(columns: list[dict[str, Any]]) -> list[PromptRow]:
    """As they are read from a file of these rows."""
    names = {"answer": "input_answer", "line": "input_line"}
    return [
        PromptRow((), "shop", {names.get(k, k): v for k, v in row.items()} | {"line": line})
        for line, row in enumerate(columns, start=1)
    ]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.tsv"])
def test_a_file_cut_anywhere_is_continued_to_the_byte(name: str, tmp_path: Path) -> None:
    output, rows = tmp_path / name, prompt_rows(ROWS)

    def write_from(count: int) -> bytes:
        for index in range(count, len(rows)):
            AnswersFile(output, rows, tmp_path / "rows.jsonl").append(index, ANSWERS[index])
        return output.read_bytes()

    whole, counts = write_from(0), set()
    for cut in range(len(whole) + 1):
        output.write_bytes(whole[:cut])
        counts.add(found := AnswersFile(output, rows, tmp_path / "rows.jsonl").count())
        assert whole.startswith(output.read_bytes())
        assert write_from(found) == whole
    assert counts == {0, 1, 2, 3}
    for changed in ([*rows[:1], rows[2], rows[1]], rows[:2], prompt_rows([{"prompt": "x"}] * 3)):
        with pytest.raises(FtcliError, match="choose another --output, or delete this file"):
            AnswersFile(output, changed, tmp_path / "rows.jsonl").count()
    assert output.read_bytes() == whole


def test_every_column_of_the_input_is_kept(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = file_of(tmp_path / "rows.jsonl", [*ROWS, {"sku": " ", "prompt": ""}])
    found = answered([runs / "shop"], source, tmp_path / "out.jsonl")
    assert "rows.jsonl:4: the row is empty" in capsys.readouterr().err
    for row, columns in zip(found, prompt_rows(ROWS), strict=True):
        assert isinstance(row.pop("answer"), str) and isinstance(row.pop("stopped"), bool)
        assert row == columns.columns
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]
    turns.append({"role": "user", "content": "two"})
    chat = file_of(tmp_path / "chat.jsonl", [{"messages": turns}])
    assert answered([runs / "shop"], chat, tmp_path / "chat-out.jsonl")[0]["messages"] == turns
    text = tmp_path / "rows.txt"
    text.write_text("one\n\ntwo\n")
    found = answered([runs / "shop"], text, tmp_path / "text.jsonl")
    assert [(row["prompt"], row["line"]) for row in found] == [("one", 1), ("two", 3)]


def test_a_table_is_answered_as_a_table(runs: Path, tmp_path: Path) -> None:
    """With the delimiter and the byte order mark of the input, as Excel wants them."""
    source, output = tmp_path / "rows.csv", tmp_path / "out.csv"
    source.write_text('\ufeffsku;prompt\n7;mug\n;\n9;lamp, "big"\n', encoding="utf-8")
    command = ["generate", str(runs / "shop"), "--input", str(source), "--output", str(output)]
    assert run(command) == 0
    assert output.read_bytes().startswith("\ufeffsku;prompt;line;answer;stopped\r\n".encode())
    with output.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert [(row["sku"], row["prompt"], row["line"]) for row in rows] == [
        ("7", "mug", "2"),
        ("9", 'lamp, "big"', "4"),
    ]
    assert {row["stopped"] for row in rows} <= {"true", "false"}


def test_an_output_resumes_only_with_its_own_settings(runs: Path, tmp_path: Path) -> None:
    sql, mix = f"sql={runs / 'sql'}", "mix=shop:0.7+sql:0.3"
    hot = ("generation.temperature=1",)
    other = copy_of(runs / "sql", tmp_path / "other")
    flip_a_bit(other / "adapter" / "adapter_model.safetensors")
    RunFolder(other).update_manifest(**weight_digests(other / "adapter"))
    output = tmp_path / "out.jsonl"

    def taken(begun: Any, made: Any) -> str:
        output.write_text("an answer\n")
        answers = AnswersFile(output, [], output)
        answers.begin(begun)
        answers.require_made_with(begun)
        with pytest.raises(FtcliError) as caught:
            answers.require_made_with(made)
        assert caught.value.code == "output_taken" and caught.value.file == str(output)
        reason, advice = caught.value.message.split("; ")
        assert advice == "choose another --output, or delete this file"
        return reason.removeprefix("its answers have other settings: ")

    both = made_with(members(runs, sql), None)
    assert made_with(members(runs, sql), 1) == both, "no seed is drawn from where none is used"
    alone, note = (made_with(members(runs, first=name), None) for name in ("shop", "note"))
    assert taken(both, alone) == "with sql"
    assert taken(alone, both) == "without sql"
    assert taken(alone, note) == "without note, with shop"
    cold, drawn = (made_with(members(runs, overrides=hot), seed) for seed in (None, 3))
    assert taken(alone, cold) == "shop with temperature 0.0, now 1.0"
    assert taken(cold, drawn) == "shop with seed null, now 3"
    parts = (made_with(members(runs, sql, m), None) for m in (mix, "mix=shop:0.7+sql:0.4"))
    assert taken(*parts) == "mix with sum shop:0.7+sql:0.3, now shop:0.7+sql:0.4"
    changed = taken(both, made_with(members(runs, f"sql={other}"), None))
    assert re.fullmatch("sql with weights [0-9a-f]{16}, now [0-9a-f]{16}", changed)


def test_no_settings_are_written_next_to_a_pipe(tmp_path: Path) -> None:
    for name, expected in (("pipe", False), ("new.jsonl", True), ("deep/new.jsonl", True)):
        output = tmp_path / name
        if name == "pipe":
            os.mkfifo(output)
        AnswersFile(output, [], output).begin({})
        assert output.with_name(f"{output.name}.meta.json").is_file() == expected


def test_answers_of_others_are_refused_before_a_model_is_loaded(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = file_of(tmp_path / "rows.jsonl", [{"prompt": p} for p in PROMPTS])
    output = tmp_path / "out.jsonl"
    output.touch()  # there is nothing in it to be mixed up
    answered([runs / "note"], source, output)
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:2]))
    begun = output.read_text()
    unloadable = copy_of(runs / "shop", tmp_path / "unloadable")
    (unloadable / "adapter" / "adapter_config.json").unlink()
    RunFolder(unloadable).update_manifest(weights=None)  # or it would be missed at once
    flags = ["--input", str(source), "--output", str(output)]
    for words in (
        "other settings: without shop, with note",
        "without out.jsonl.meta.json the settings",
    ):
        capsys.readouterr()
        assert run(["generate", str(unloadable), *flags]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{output}: ") and words in error and error.count("\n") == 1
        (tmp_path / "out.jsonl.meta.json").unlink(missing_ok=True)
    assert output.read_text() == begun


ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys, time
from pathlib import Path
from ftcli.runs.locks import exclusive_file_lock
with exclusive_file_lock(Path(sys.argv[1]), "output_locked", "take another --output"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.fault(7)
@pytest.mark.parametrize("there", [False, True])
def test_an_output_has_an_exclusive_lock(
    there: bool,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    observed: Callable[[str], None],
) -> None:
    source = file_of(tmp_path / "rows.jsonl", [{"prompt": p} for p in PROMPTS])
    output, other_name = tmp_path / "new" / "out.jsonl", tmp_path / "link.jsonl"
    other_name.symlink_to(output)
    if there:
        answered([runs / "shop"], source, output)
        output.write_text("".join(output.read_text().splitlines(keepends=True)[:2]))
    before = output.read_text() if there else None
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "held\n"
        for name in (output, other_name):
            capsys.readouterr()
            command = ["generate", runs / "shop", "--input", source, "--output", name]
            assert run([*map(str, command)]) == 1
            said = capsys.readouterr().err
            holder = f"process {writer.pid} on {socket.gethostname()}, since "
            assert said.startswith(f"{name}: {holder}")
            assert said.endswith("is writing here; wait for it, or take another --output\n")
            assert (output.read_text() if output.exists() else None) == before
    finally:
        writer.kill()
        writer.wait()
    answered([runs / "shop"], source, output)
    assert len(output.read_text().splitlines()) == len(PROMPTS)
    assert {file.name for file in output.parent.iterdir()} == {
        "out.jsonl",
        "out.jsonl.meta.json",
    }
    observed("a second generate on one output: exit 1, naming process and host; free after a kill")


def test_a_refusal_leaves_nothing_where_the_output_would_be(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    command = ["generate", str(runs / "shop"), "--input", str(tmp_path / "none.jsonl")]
    assert run([*command, "--output", str(output)]) != 0
    assert not output.parent.exists()
