from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.errors import DataError
from ftcli.evaluation.general_text import OWN_TEXT, general_text


def test_the_built_in_text_has_the_size_it_should_have() -> None:
    found = general_text(None)
    words = [len(passage.split()) for passage in found.passages]
    assert 1200 <= sum(words) <= 1900
    assert len(found.passages) >= 20 and max(words) < 200
    assert sum(passage.startswith("Question: ") for passage in found.passages) >= 4
    assert len(set(found.passages)) == len(found.passages)
    assert "#" not in "".join(found.passages) and "How it was made" in OWN_TEXT.read_text()


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeff# a note\nOne\nmore\n \t\n\n\nTwo ü\n".encode())
    found = general_text(file)
    assert found.passages == ("One\nmore", "Two ü")
    assert found.name == str(file)


def test_the_digest_changes_with_the_passages_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("One\n\nTwo")
    second.write_text("# a note\nOne\n\n\nTwo\n")
    assert general_text(first).digest == general_text(second).digest
    second.write_text("One\nTwo")
    assert general_text(first).digest != general_text(second).digest


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"# only a note\n", "no passage"), (b"\xff\xfe", "not UTF-8")],
)
def test_a_file_without_text_says_so(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        general_text(file)
    assert caught.value.file == str(file)
