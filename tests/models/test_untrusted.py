"""Files of a model's folder that ftcli reads or refuses before transformers opens it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcli.errors import ModelError
from ftcli.models.files.untrusted import refuse_foreign_config
from ftcli.models.load import load_tokenizer
from tests.conftest import tiny_tokenizer

OWN, OTHER = "{{ messages[0].content }}", "{{ messages }}"


@pytest.mark.parametrize("key", ["configuration_files", "transformers_weights", "fusion_config"])
@pytest.mark.parametrize(
    ("config", "path"),
    [
        (lambda key: {key: {"a": 1}}, ""),
        (lambda key: {"text_config": {key: ["adapter_model.bin"]}}, "text_config."),
        (lambda key: {"a": {"b": [{"c": None}, {"d": {key: "x"}}]}}, "a.b.d."),
    ],
)
def test_keys_that_lead_to_other_files_are_refused_in_any_config(
    key: str, config: Any, path: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(key)))
    with pytest.raises(ModelError, match=f"its config.json has {path}{key}, which"):
        refuse_foreign_config(str(tmp_path), None)
    (tmp_path / "config.json").write_text(json.dumps(config("num_hidden_layers")))
    refuse_foreign_config(str(tmp_path), None)


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, None),
        ({"chat_template.json": OWN}, OWN),
        ({"processor_config.json": OWN}, OWN),
        ({"processor_config.json": OWN, "chat_template.json": OTHER}, OWN),
        ({"processor_config.json": None, "chat_template.json": OWN}, OWN),
        ({"tokenizer_config.json": OWN, "chat_template.json": OTHER}, OWN),
        ({"chat_template.jinja": OWN, "processor_config.json": OTHER}, OWN),
    ],
)
def test_the_template_of_a_processor_is_the_tokenizers_if_it_has_none(
    files: dict[str, str | None], template: str | None, tmp_path: Path
) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    for name, text in files.items():
        file = tmp_path / name
        if name.endswith(".jinja"):
            file.write_text(str(text))
            continue
        values = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(values | {"chat_template": text}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.chat_template == template
    tokenizer.save_pretrained(tmp_path / "run")
    assert load_tokenizer(str(tmp_path / "run")).chat_template == template
