"""Chat templates by name, for models that have none: a Jinja file each, in chat_templates/.

Nothing is compiled here; transformers' sandboxed environment renders them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ftcli.config.section import is_jinja
from ftcli.errors import DataError, did_you_mean
from ftcli.shell import shown_source

ENDS: dict[str, str | None] = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": None,
    "plain": None,
}
"""Name → the control token that ends its answers; none: the tokenizer's own end of text."""

DEFAULT = "plain"
"""For models without a template, where the recipe names none."""


@dataclass(frozen=True)
class Template:
    """The text of a chat template, and where it is from: a name of ours, a file, or neither."""

    text: str
    name: str | None = None
    file: Path | None = None


def named(name: str) -> Template:
    """A template of ours."""
    file = Path(__file__).with_name("chat_templates") / f"{name}.jinja"
    return Template(file.read_text(encoding="utf-8"), name=name)


def names_file(value: str) -> bool:
    """Whether data.template of a loaded recipe is a file: no name and no Jinja text."""
    return value not in ENDS and not is_jinja(value) and os.path.isfile(value)


def find_template(value: str) -> Template:
    """The chat template of a loaded recipe: by its name, the text itself, or a file's.

    Raises DataError: `template_missing` where it is none of them, `template` where it is empty.
    """
    if value in ENDS:
        return named(value)
    template = Template(value) if is_jinja(value) else _from_file(Path(value))
    if not template.text.strip():
        raise DataError("template", "is empty", file=str(template.file))
    return template


def _from_file(file: Path) -> Template:
    if not os.path.isfile(file):
        near = [path.name for path in file.parent.glob("*.jinja")]
        raise DataError(
            "template_missing",
            f"{shown_source(str(file))!r} is no template's name ({', '.join(ENDS)}), no file, and "
            f"no Jinja text either{did_you_mean(file.name, [*ENDS, *near])}",
        )
    try:
        return Template(file.read_text(encoding="utf-8"), file=file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("template", f"cannot be read: {error}", file=str(file)) from error
