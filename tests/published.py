"""Chat templates of today's model families, with small tokenizers.

Those with a file in TRL are the published ones, as TRL ships them; the others are written for the
tests to the published structure.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.families import TEMPLATES, byte_level

spec = find_spec("trl")
assert spec is not None and spec.submodule_search_locations
FOLDERS = (TEMPLATES / "published", Path(spec.submodule_search_locations[0], "chat_templates"))

CONTROL = re.compile(
    r"<\|[^|<>\s'\"{}]+\|>|<｜[^｜<>]+｜>|\[/?[A-Z_]{3,}\]|</?s>|<SPECIAL_\d+>|<(?:start|end)_of_turn>"
    r"|<\|?turn\|?>|<\|?channel\|?>|<\|think\|>|<end_of_utterance>|\[e~\[|\]~b\]|\]~!b\[|<sop>"
)


@cache
def tokenizer_named(name: str) -> PreTrainedTokenizerBase:
    """A small tokenizer that knows the control tokens of the template, and <bos> and <eos>."""
    files = (folder / f"{name}.jinja" for folder in FOLDERS)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        pytest.skip(f"trl {version('trl')} has no {name}.jinja")
    text = file.read_text(encoding="utf-8")
    special = dict.fromkeys(["<bos>", "<eos>", *CONTROL.findall(text)])
    added = dict.fromkeys(re.findall(r"</?think>", text))
    backend = byte_level(tuple(special), tuple(added))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )
    tokenizer.chat_template = text
    return tokenizer
