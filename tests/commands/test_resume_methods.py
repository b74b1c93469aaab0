"""Every method resumes to the same weights, and a further run starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_training import adapter_digest, stop_at, train
from tests.conftest import Capture, Patch, Recipes

METHODS: dict[str, dict[str, Any]] = {
    "dora": {"mode": "lora", "rank": 4, "dora": True, "dropout": 0.1},
    "modules": {"mode": "lora", "rank": 4, "modules_to_save": ["lm_head"]},
    "bottleneck": {"mode": "bottleneck", "bottleneck": 8},
    "prefix-tuning": {"mode": "prefix-tuning", "virtual_tokens": 4},
    "projection": {"mode": "prefix-tuning", "virtual_tokens": 4, "projection": True},
    "prompt-tuning": {"mode": "prompt-tuning", "virtual_tokens": 4},
    "4-bit adapter": {"mode": "bottleneck", "bottleneck": 8, "quantization": "nf4"},
    "4-bit prompt": {"mode": "prompt-tuning", "virtual_tokens": 4, "quantization": "nf4"},
}
# Another one than the base's own.
TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
TRAINING = {"epochs": 1, "batch_size": 4, "eval_steps": 4, "micro_batch_size": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_resumes_to_the_same_weights(
    name: str, write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    method = METHODS[name]
    whole = write_recipe("whole", method=method, training=TRAINING)
    assert train(whole) == 0
    stopped = write_recipe("stopped", method=method, training=TRAINING)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert train(stopped) == 130
    assert train(stopped) == 0
    runs = tmp_path / "runs"
    assert adapter_digest(runs / "stopped") == adapter_digest(runs / "whole")
    further = write_recipe("further", method=method, training=TRAINING)
    assert train(further, "--from", str(runs / "whole")) == 0
    assert adapter_digest(runs / "further") != adapter_digest(runs / "whole")


def test_a_stopped_run_resumes_whole_where_loading_rules_rename_its_tensors(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    from tests.tiny_models import rename_on_loading

    rename_on_loading(monkeypatch)
    assert train(write_recipe("whole", training=TRAINING)) == 0
    stopped = write_recipe("stopped", training=TRAINING)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert train(stopped) == 130
    assert train(stopped) == 0
    runs = tmp_path / "runs"
    assert adapter_digest(runs / "stopped") == adapter_digest(runs / "whole")


def test_another_kind_of_adapter_is_refused(
    write_recipe: Recipes, tmp_path: Path, capsys: Capture
) -> None:
    assert train(write_recipe("first", method=METHODS["bottleneck"], training=TRAINING)) == 0
    for method, words in (
        ({"mode": "bottleneck", "bottleneck": 4}, "method.bottleneck: 8 → 4"),
        ({"mode": "lora"}, "method.mode: bottleneck → lora"),
        ({"mode": "bottleneck", "bottleneck": 8, "quantization": "nf4"}, "none → nf4"),
    ):
        second = write_recipe("second", method=method, training=TRAINING)
        capsys.readouterr()
        assert train(second, "--from", str(tmp_path / "runs" / "first")) == 2
        assert words in capsys.readouterr().err


def test_a_run_with_a_template_from_a_file_resumes_only_with_that_template(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    data = {"train": "rows.jsonl", "template": file.name, "validation": 8, "max_length": 256}
    assert train(write_recipe("whole", data=data, training=TRAINING)) == 0
    stopped = write_recipe("stopped", data=data, training=TRAINING)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert train(stopped) == 130
    file.write_text(TEMPLATE.replace(": ", " - "))
    capsys.readouterr()
    assert train(stopped) == 1
    assert "was started with another recipe" in capsys.readouterr().err
    file.write_text(TEMPLATE)
    assert train(stopped) == 0
    runs = tmp_path / "runs"
    assert adapter_digest(runs / "stopped") == adapter_digest(runs / "whole")
    assert (runs / "stopped" / "adapter" / "chat_template.jinja").read_text() == TEMPLATE
