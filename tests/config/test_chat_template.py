from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.config import data
from ftcli.config.data import DEFAULT, ENDS, Template, builtin_template, find_template, names_file
from ftcli.errors import DataError, UsageError
from tests.config.shop import SHOP, load


def template_of(value: str) -> str:
    """data.template of a loaded recipe."""
    found = load(SHOP + f"  template: {value!r}\n").recipe.data.template
    assert found is not None
    return found


def test_every_name_has_its_file_and_no_file_is_without_a_name() -> None:
    folder = Path(data.__file__).with_name("chat_templates")
    assert DEFAULT in ENDS
    assert {file.stem for file in folder.glob("*.jinja")} == set(ENDS)
    for name, end in ENDS.items():
        assert (end or "eos_token") in builtin_template(name).text


@pytest.mark.parametrize("name", ENDS)
def test_a_name_goes_before_a_file_or_folder_of_that_name(name: str, here: Path) -> None:
    (here / name).write_text("{{ other }}")
    assert find_template(template_of(name)) == builtin_template(name)
    assert not names_file(template_of(name))
    assert find_template(template_of(f"./{name}")).text == "{{ other }}"


@pytest.mark.parametrize("text", ["{{ a.b }}", "{% for m in a %}{% endfor %}", "{{ b }}" * 9999])
def test_a_text_with_jinja_in_it_is_the_template(text: str) -> None:
    assert find_template(text) == Template(text)
    assert not names_file(text)


def test_a_file_is_read_from_the_recipes_folder(here: Path) -> None:
    file = here / "chat.jinja"
    file.write_text("{{ 'Größe' }}", encoding="utf-8")
    assert names_file(template_of("chat.jinja"))
    assert find_template(template_of("chat.jinja")) == Template("{{ 'Größe' }}", file=file)


@pytest.mark.parametrize(
    ("value", "meant"),
    [("chatlm", "chatml"), ("gemma3", "gemma"), ("caht.jinja", "chat.jinja")],
)
def test_what_is_neither_names_the_nearest(value: str, meant: str, here: Path) -> None:
    (here / "chat.jinja").write_text("{{ a }}")
    (here / "folder").mkdir()
    for asked, near in ((value, f"did you mean {meant}?"), ("folder", "nor a file")):
        with pytest.raises(UsageError, match=near) as caught:
            find_template(template_of(asked))
        assert caught.value.code == "template_missing"


@pytest.mark.parametrize(
    ("content", "reason"), [(b" \n", "is empty"), (b"\xff{{", "cannot be read")]
)
def test_a_file_that_is_no_template_is_named(content: bytes, reason: str, here: Path) -> None:
    (here / "chat.jinja").write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        find_template(template_of("chat.jinja"))
    assert caught.value.file == str(here / "chat.jinja")
