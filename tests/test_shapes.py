from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftcli.errors import ModelError, UsageError
from ftcli.shapes import find_shape, hub_id_of, known, model_source, shape_from_config

HERE = Path()
TABLE = json.loads(Path(known.__file__).with_name("known_models.json").read_text())["models"]
IDS = [next(iter(model["hub_ids"])) for model in TABLE]

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


@pytest.mark.parametrize("model", TABLE, ids=IDS)
def test_a_known_model_has_its_published_count(model: dict[str, Any]) -> None:
    assert shape_from_config(model["config"]).parameters == model["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("model", TABLE, ids=IDS)
def test_a_known_model_has_the_layers_that_transformers_builds(model: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = shape_from_config(model["config"])
    config = AutoConfig.for_model(**model["config"], pad_token_id=0)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == built.num_parameters()
    assert shape.linear_modules() == {
        name.rsplit(".", 1)[-1]: (module.in_features, module.out_features)
        for name, module in built.model.layers[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def test_no_name_means_two_models() -> None:
    names = [name for model in TABLE for name in model["hub_ids"]]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)


def test_sizes_answer_as_models() -> None:
    assert find_shape("7b", HERE).parameters == 6_738_415_616
    assert find_shape("7B", HERE).hub_id == "meta-llama/Llama-2-7b-hf"
    assert find_shape("Qwen/Qwen2.5-7B-Instruct", HERE).parameters == 7_615_616_512
    assert hub_id_of("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M"


def test_lora_counts_both_matrices_of_every_target() -> None:
    shape = find_shape("7b", HERE)
    assert shape.lora_parameters(16, ("q_proj",)) == 32 * 131_072
    assert shape.lora_parameters(16, ("self_attn.q_proj",)) == 32 * 131_072
    assert shape.lora_parameters(16) == 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))


def test_all_linear_of_a_mixture_leaves_the_experts_out() -> None:
    shape = find_shape("mixtral-8x7b", HERE)
    assert set(shape.linear_modules()) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert shape.expert_parameters > 0.9 * shape.parameters


def test_an_unknown_target_is_named_with_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"no linear layer 'q_prj'; did you mean q_proj\?"):
        find_shape("7b", HERE).lora_parameters(16, ("q_prj",))


def test_a_folder_and_its_config_give_the_same_shape(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(TINY))
    by_folder, by_file = find_shape("tiny", tmp_path), find_shape("tiny/config.json", tmp_path)
    assert by_folder.parameters == by_file.parameters
    assert by_folder.kv_heads == 2
    assert by_folder.head_dim == 4
    assert model_source("tiny", tmp_path) == str(tmp_path / "tiny")


def test_an_unknown_hub_id_is_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def hub_file(repo: str, name: str, *, revision: str | None) -> Path:
        asked.append((repo, name, revision))
        (tmp_path / name).write_text(json.dumps(TINY))
        return tmp_path / name

    monkeypatch.setattr(known, "hub_file", hub_file)
    assert find_shape("someone/tiny", tmp_path / "elsewhere", "v2").hub_id == "someone/tiny"
    assert asked == [("someone/tiny", "config.json", "v2")]


def test_an_unknown_alias_is_a_usage_error_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        find_shape("qwen2.5-7bb", HERE)
    assert caught.value.code == "model_unknown"
    assert "; did you mean qwen2.5-7b?; a size is one of 1b, " in caught.value.message


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "a/b/c", "nowhere/config.json"])
def test_a_path_that_is_not_there_is_a_model_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(ModelError, match="does not exist") as caught:
        find_shape(path, tmp_path)
    assert caught.value.code == "model_missing"


def test_a_folder_without_config_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        find_shape("empty", tmp_path)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model_type": "bloom"}, "model_type_unknown", "it knows llama, mistral"),
        ({"hidden_size": None}, "config_incomplete", "hidden_size should be a positive number"),
        ({"vocab_size": True}, "config_incomplete", "found True"),
    ],
)
def test_a_config_that_gives_no_shape_says_why(
    change: dict[str, object], code: str, words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        shape_from_config(TINY | change)
    assert caught.value.code == code


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\xff")
    with pytest.raises(ModelError) as caught:
        find_shape("model.gguf", tmp_path)
    assert f"{tmp_path}/model.gguf: not a model's config.json: " in str(caught.value)
