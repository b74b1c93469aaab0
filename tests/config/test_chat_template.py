from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.config import chat_template
from ftcli.config.chat_template import DEFAULT, ENDS, Template, find_template, named, names_file
from ftcli.errors import DataError

INLINE = ("{{ messages[0].content }}", "{% for m in messages %}{% endfor %}", "a\n{{ b }}\n")


def test_every_name_has_its_file_and_no_file_is_without_a_name() -> None:
    folder = Path(chat_template.__file__).with_name("chat_templates")
    assert DEFAULT in ENDS
    assert {file.stem for file in folder.glob("*.jinja")} == set(ENDS)
    for name, end in ENDS.items():
        assert named(name).name == name
        assert (end or "eos_token") in named(name).text


@pytest.mark.parametrize("name", ENDS)
def test_a_name_goes_before_a_file_or_folder_of_that_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{{ other }}")
    assert find_template(name, tmp_path) == named(name)
    assert not names_file(name, tmp_path)
    assert find_template(f"./{name}", tmp_path).text == "{{ other }}"


@pytest.mark.parametrize("text", INLINE)
def test_a_text_with_jinja_in_it_is_the_template(text: str, tmp_path: Path) -> None:
    assert find_template(text, tmp_path) == Template(text)
    assert not names_file(text, tmp_path)
    assert not names_file(text * 9999, tmp_path), "longer than a file's name may be"


def test_a_file_is_read_from_the_recipes_folder(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ 'Größe' }}", encoding="utf-8")
    assert names_file("chat.jinja", tmp_path) and names_file(str(file), Path("/"))
    assert find_template("chat.jinja", tmp_path) == Template("{{ 'Größe' }}", file=file)


@pytest.mark.parametrize(
    ("value", "meant"),
    [("chatlm", "chatml"), ("gemma3", "gemma"), ("caht.jinja", "chat.jinja")],
)
def test_what_is_neither_names_the_nearest(value: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ a }}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError) as caught:
        find_template(value, tmp_path)
    assert caught.value.code == "template_missing"
    assert caught.value.message == (
        f"{value!r} is no template's name (chatml, llama3, gemma, mistral, plain), no file here, "
        f"and no Jinja text either; did you mean {meant}?"
    )
    with pytest.raises(DataError, match="no file here"):
        find_template("folder", tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"), [(b" \n", "is empty"), (b"\xff{{", "cannot be read")]
)
def test_a_file_that_is_no_template_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        find_template("chat.jinja", tmp_path)
    assert caught.value.file == str(file)
