"""Faults 24 to 26: every row of a file is used as it is, or named with the reason why not."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcli.errors import DataError
from tests.faults.bench import Bench, Outcome, asked, bench_in

Observed = Callable[[str], None]


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    return bench_in(tmp_path, tiny_model)


# Values equal the file, byte by byte

WORDS = ("NA", "None", "null", "02139", "1e5", "TRUE", "nan", "1.10", "-0", " a ", "\t", "ﬁ", "é")
SIGNS = ("\r", "\n", "\r\n", '"', '""', ",", ";", "\\", "\u2028", "\x85", "\x0c", "\0", "\ufeff")
characters = st.characters(exclude_categories=["Cs"])
piece = st.sampled_from(WORDS + SIGNS) | st.text(characters, max_size=4)
texts = st.lists(piece, min_size=1, max_size=4).map("".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=12)


def usable(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows that can be used: no part is blank, and no duplicates."""
    return [row for row in dict.fromkeys(rows) if all(part.strip() for part in row)]


def compare(found: Outcome, rows: list[tuple[str, str]], end: str = "<|im_end|>") -> None:
    wanted = usable(rows)
    assert [turns for _, turns in found.rows()] == [asked(*row) for row in wanted]
    assert found.trained() == [completion + end for _, completion in wanted]
    found.require_sum()
    assert found.prepared.rows_read == len(rows)


@pytest.mark.fault(24)
def test_values_of_csv_are_byte_equal(bench: Bench, complete: bool, observed: Observed) -> None:
    fields = 0

    @settings(max_examples=1000 if complete else 60, deadline=None)
    @given(
        rows=pairs,
        delimiter=st.sampled_from(",;\t"),
        end=st.sampled_from(["\n", "\r\n", "\r"]),
        quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    )
    def check(
        rows: list[tuple[str, str]], delimiter: str, end: str, quoting: int, mark: bytes
    ) -> None:
        nonlocal fields
        if quoting == csv.QUOTE_MINIMAL:
            end = "\r\n"  # or Python's writer leaves the other line ends in values unquoted
        written = io.StringIO(newline="")
        writer = csv.writer(written, delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writerows([("prompt", "completion"), *rows, ("the last", "row")])
        content = mark + written.getvalue().encode()
        compare(bench.of("any.csv", content), [*rows, ("the last", "row")])
        fields += 2 * len(rows)

    check()
    observed(f"{fields:,} random CSV values, in 24 dialects, are trained on byte by byte")


@pytest.mark.fault(25)
def test_values_of_jsonl_are_byte_equal(bench: Bench, complete: bool, observed: Observed) -> None:
    fields = 0

    @settings(max_examples=1000 if complete else 60, deadline=None)
    @given(
        rows=pairs,
        escaped=st.booleans(),
        end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
        mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    )
    def check(rows: list[tuple[str, str]], escaped: bool, end: bytes, mark: bytes) -> None:
        nonlocal fields
        rows = [*rows, ("the last", "row")]
        lines = [
            json.dumps({"prompt": prompt, "completion": answer}, ensure_ascii=escaped).encode()
            for prompt, answer in rows
        ]
        compare(bench.of("any.jsonl", mark + end.join(lines)), rows)
        fields += 2 * len(rows)

    check()
    observed(f"{fields:,} random JSONL values are trained on byte by byte")


@pytest.mark.fault(24)
def test_numbers_in_a_template_are_the_files_own(bench: Bench) -> None:
    keys = {"prompt": "{name}: {price}", "completion": "{price} EUR"}
    numbers = ["1.10", "02139", "1e5", "-0", "1E400", "0.1234567890123456789", "12"]
    table = "name,price\n" + "".join(f"NA,{number}\n" for number in numbers)
    found = bench.of("prices.csv", table, **keys)
    assert found.trained() == [f"{number} EUR<|im_end|>" for number in numbers]
    numbers.remove("02139")  # is no JSON
    lines = "".join(f'{{"name": "NA", "price": {number}}}\n' for number in numbers)
    found = bench.of("prices.jsonl", lines, **keys)
    assert found.trained() == [f"{number} EUR<|im_end|>" for number in numbers]


# Rejected rows are named


CSV = {
    "1,2,3": "3 values, where the header has 2",
    "1": "1 value, where the header has 2",
    '"x"y,2': "not CSV: ',' expected after '\"'",
    "caf\udce9,2": "not UTF-8: byte 0xe9; save it as UTF-8 (in Excel: Save as → CSV UTF-8)",
    ",2": "prompt is empty",
    '" ",2': "prompt is empty",
    "1,": "completion is empty",
}


@pytest.mark.fault(24)
def test_rows_of_csv_that_cannot_be_used_are_named(bench: Bench, observed: Observed) -> None:
    lines = ["prompt,completion", "NA,None", *CSV, "02139,TRUE", ""]
    content = "\r\n".join(lines).encode("utf-8", "surrogateescape")
    found = bench.of("shop.csv", content)
    assert found.problems() == dict(enumerate(CSV.values(), 3))
    assert [turns for _, turns in found.rows()] == [asked("NA", "None"), asked("02139", "TRUE")]
    found.require_sum()
    with pytest.raises(DataError) as caught:
        bench.of("open.csv", 'prompt,completion\n1,2\n"open,2\n3,4\n')
    assert str(caught.value).startswith("open.csv:3: a quote opened in this row")
    observed(f"{len(CSV)} of {len(CSV)} bad CSV rows named with their line")


PAIR = '{"prompt": "a", "completion": "b"'
JSONL: dict[bytes, str] = {
    b'{"prompt": "\xff", "completion": "b"}': "not UTF-8: byte 0xff at position 13",
    PAIR.encode(): "not JSON: Expecting ',' delimiter at column",
    b'{"prompt": "cut': "not JSON: Unterminated string",
    b"null": "null, where an object is expected",
    b"[1]": "a list, where an object is expected",
    b"5": "the number 5, where an object is expected",
    b'{"prompt": null, "completion": "b"}': "prompt is null, where text is expected",
    b'{"prompt": "a", "completion": 5}': "completion is the number 5, where text is expected",
    b'{"prompt": "a", "completion": 1e999}': "completion is the number 1e999, where text",
    b'{"prompt": true, "completion": "b"}': "prompt is true, where text is expected",
    b'{"prompt": ["a"], "completion": "b"}': "prompt is a list, where text is expected",
    b'{"prompt": "a"}': "no pair of columns such as prompt/completion in prompt",
    b'{"late": "a"}': "no pair of columns such as prompt/completion in late",
    b'{"\\ud800": "a"}': "no pair of columns such as prompt/completion in \\ud800",
    b'{"prompt": "a", "prompt": "c", "completion": "b"}': "duplicate key prompt in one object",
    b'{"prompt": "a", "completion": NaN}': "not JSON: NaN is not a JSON value",
    b'{"prompt": "a", "completion": "\\ud800"}': "completion contains half of a character",
    b'{"prompt": "a", "completion": "\x07"}': "not JSON: Invalid control character",
    b'\xef\xbb\xbf{"prompt": "a"}': "not JSON: Expecting value at column 1; it begins with",
    b'{"prompt": "a", "completion": "b"}\r{"prompt": "c", "completion": "d"}': "not JSON: Extra da",
    b"[" * 100_000: "nested too deeply",
    b'{"prompt": "a", "completion": ' + b"9" * 5000 + b"}": "a number of 5000 digits",
    b'{"prompt": "a", "completion": " "}': "completion is empty",
}


@pytest.mark.fault(25)
def test_lines_that_cannot_be_used_are_named(bench: Bench, observed: Observed) -> None:
    good = [b'{"prompt": "%d\xe2\x80\xa8", "completion": "late", "more": 1}' % n for n in range(2)]
    found = bench.of("shop.jsonl", b"\n".join([good[0], *JSONL, b"", good[1]]))
    problems = found.problems()
    assert list(problems) == list(range(2, len(JSONL) + 2))
    for said, reason in zip(problems.values(), JSONL.values(), strict=True):
        assert said.startswith(reason)
    assert found.rows() == [
        (1, asked("0\u2028", "late")),
        (len(JSONL) + 3, asked("1\u2028", "late")),
    ]
    found.require_sum()
    observed(f"{len(JSONL)} of {len(JSONL)} bad JSONL lines named with line and reason")


@pytest.mark.fault(25)
def test_files_that_cannot_be_read_are_errors(bench: Bench, observed: Observed) -> None:
    rows = "".join(f'{{"prompt": "{n}", "completion": "b"}}\n' for n in range(5000)).encode()
    broken = {
        "empty.jsonl": (b"", "data_empty", "holds no rows"),
        "blank.jsonl": (b"\n \n\r\n", "data_empty", "holds no rows"),
        "none.jsonl": (
            b"null\n{\n",
            "data_empty",
            "none of 2 rows can be used: none.jsonl:1",
        ),
        "cut.jsonl.gz": (gzip.compress(rows)[:-9], "data_cut", "cut or damaged gzip file"),
        "no.jsonl.gz": (rows, "data_cut", "cut or damaged gzip file"),
    }
    for name, (content, code, message) in broken.items():
        with pytest.raises(DataError) as caught:
            bench.of(name, content)
        assert (caught.value.code, Path(caught.value.file or "").name) == (code, name)
        assert caught.value.message.startswith(message)
        assert caught.value.line is not None or code == "data_empty"
    observed(f"{len(broken)} of {len(broken)} empty, cut and damaged files end with their name")


@pytest.mark.fault(25)
def test_a_row_longer_than_any_context_is_named(bench: Bench) -> None:
    long = json.dumps({"prompt": "a", "completion": "x" * 40_000_000})
    found = bench.of("long.jsonl", f"{PAIR}}}\n{long}\n{PAIR} }}\n", deduplicate=False)
    assert found.problems() == {2: "40,000,001 characters; a row has at most 5,000,000"}
    assert [line for line, _ in found.rows()] == [1, 3]


TURNS: dict[str, tuple[list[list[str]], str | None]] = {
    "human and gpt": ([["human", "a"], ["gpt", "b"]], None),
    "system": ([["system", "s"], ["human", "c"], ["gpt", "d"]], None),
    "other names": ([["user", "e"], ["assistant", "f"], ["human", "g"], ["chatgpt", "h"]], None),
    "unknown role": (
        [["human", "a"], ["narrator", "b"]],
        "turn 2 has the unknown role 'narrator'; known are system, developer, user, human,",
    ),
    "tools": ([["human", "a"], ["function_call", "b"]], "turn 2 (function_call) belongs to a tool"),
    "empty answer": ([["human", "a"], ["gpt", ""]], "turn 2 (gpt) is empty"),
    "blank answer": ([["human", "a"], ["gpt", " \n"]], "turn 2 (gpt) is empty"),
    "user last": ([["human", "a"], ["gpt", "b"], ["human", "c"]], "the conversation ends with a"),
    "answer first": ([["gpt", "a"]], "an assistant turn comes first, without a prompt"),
    "twice": ([["human", "a"], ["human", "b"], ["gpt", "c"]], "turns 1 and 2 are both user"),
    "nothing": ([], "no assistant turn"),
}


@pytest.mark.fault(26)
@pytest.mark.parametrize("words", [("from", "value"), ("role", "content")])
def test_conversations_are_mapped_or_named(
    words: tuple[str, str], bench: Bench, observed: Observed
) -> None:
    def line(turns: list[list[str]]) -> str:
        return json.dumps(
            {"conversations": [dict(zip(words, turn, strict=True)) for turn in turns]}
        )

    found = bench.of("chat.jsonl", "\n".join(line(turns) for turns, _ in TURNS.values()))
    rejected = {n: why for n, (_, why) in enumerate(TURNS.values(), 1) if why}
    assert found.problems().keys() == rejected.keys()
    for number, said in found.problems().items():
        assert said.startswith(rejected[number])
    assert [turns for _, turns in found.rows()] == [
        [["user", "a"], ["assistant", "b"]],
        [["system", "s"], ["user", "c"], ["assistant", "d"]],
        [["user", "e"], ["assistant", "f"], ["user", "g"], ["assistant", "h"]],
    ]
    assert found.trained() == ["b<|im_end|>", "d<|im_end|>", "f<|im_end|>h<|im_end|>"]
    found.require_sum()
    observed(f"{words[0]}/{words[1]}: 3 mapped, {len(rejected)} of {len(rejected)} bad ones named")
