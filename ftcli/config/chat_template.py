"""Chat templates by name, for models that have none: a Jinja file each, in chat_templates/.

Nothing is compiled here; transformers' sandboxed environment renders them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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


def names_file(value: str, base: Path) -> bool:
    """Whether data.template is a file's path: neither a name of ours nor a template itself."""
    return value not in ENDS and not _is_inline(value) and os.path.isfile(base / value)


def find_template(value: str, base: Path) -> Template:
    """What data.template means: a name, the text itself, or a file below `base`.

    Raises DataError: `template_missing` where it is none of them, `template` where it is empty.
    """
    if value in ENDS:
        return named(value)
    template = Template(value) if _is_inline(value) else _from_file(value, base)
    if not template.text.strip():
        raise DataError("template", "is empty", file=str(template.file))
    return template


def _is_inline(value: str) -> bool:
    return "{{" in value or "{%" in value


def _from_file(value: str, base: Path) -> Template:
    file = base / value
    if not os.path.isfile(file):
        near = [path.name for path in file.parent.glob("*.jinja")]
        raise DataError(
            "template_missing",
            f"{shown_source(value)!r} is no template's name ({', '.join(ENDS)}), no file, and no "
            f"Jinja text either{did_you_mean(file.name, [*ENDS, *near])}",
        )
    try:
        return Template(file.read_text(encoding="utf-8"), file=file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("template", f"cannot be read: {error}", file=str(file)) from error
