from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftcli.errors import ModelError, UsageError
from ftcli.memory import Choices, known_models
from ftcli.memory.adapted import last_names
from ftcli.memory.architecture import Architecture, Attention
from ftcli.memory.choices import Targets
from ftcli.memory.known_models import from_here, hub_id_of, model_source
from ftcli.memory.trained import trainable_parameters
from ftcli.models.architectures.find import architecture_of, find_architecture

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def test_sizes_answer_as_models() -> None:
    assert find_architecture("7b").parameters == 6_738_415_616
    assert find_architecture("7B").hub_id == "meta-llama/Llama-2-7b-hf"
    assert find_architecture("Qwen/Qwen2.5-7B-Instruct").parameters == 7_615_616_512
    assert find_architecture("0.5b").hub_id == "Qwen/Qwen2.5-0.5B"
    assert hub_id_of("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M"


def lora_parameters(architecture: Architecture, rank: int, targets: Targets = "all-linear") -> int:
    return trainable_parameters(architecture, Choices("lora", rank=rank, target_modules=targets))


def test_lora_counts_both_matrices_of_every_target() -> None:
    architecture = find_architecture("7b")
    assert lora_parameters(architecture, 16, ("q_proj",)) == 32 * 131_072
    assert lora_parameters(architecture, 16, ("self_attn.q_proj",)) == 32 * 131_072
    assert lora_parameters(architecture, 16) == 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))


def test_all_linear_of_a_mixture_leaves_the_experts_out() -> None:
    architecture = find_architecture("mixtral-8x7b")
    assert last_names(architecture) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert architecture.expert_parameters > 0.9 * architecture.parameters


def test_targets_go_by_the_names_of_the_family() -> None:
    falcon, phi = find_architecture("falcon-7b"), find_architecture("phi-2")
    assert lora_parameters(falcon, 8, ("query_key_value",)) == 32 * 8 * (4544 + 4544 + 2 * 64)
    dense = 4544 + 4544
    assert lora_parameters(falcon, 8, ("self_attention.dense",)) == 32 * 8 * dense
    assert lora_parameters(phi, 4) == 32 * 4 * (4 * 2 * 2560 + 2 * (2560 + 10240))
    with pytest.raises(ModelError, match="falcon-7b has no linear layer 'q_proj'; it has query_"):
        lora_parameters(falcon, 8, ("q_proj",))


@pytest.mark.parametrize(
    ("name", "window", "layers"),
    [
        ("mistral-7b-v0.1", 4096, 32),
        ("mistral-7b", None, 0),
        ("phi-3-mini", 2047, 32),
        ("qwen2.5-7b", None, 0),
        ("gemma-2-2b", 4096, 13),
        ("gemma-3-1b", 512, 22),
        ("olmo-3-7b", 4096, 24),
    ],
)
def test_a_sliding_window_is_of_some_layers(name: str, window: int | None, layers: int) -> None:
    architecture = find_architecture(name)
    found = {kind.window: len(kind.layers) for kind in architecture.kinds if kind.window}
    assert found == ({} if window is None else {window: layers})


def test_an_unknown_target_is_named_with_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"no linear layer 'q_prj'; did you mean q_proj\?"):
        lora_parameters(find_architecture("7b"), 16, ("q_prj",))


def test_a_folder_and_its_config_give_the_same_architecture(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(TINY))
    by_folder, by_file = (
        find_architecture(f"{tmp_path}/tiny"),
        find_architecture(f"{tmp_path}/tiny/config.json"),
    )
    assert by_folder.parameters == by_file.parameters
    (kind,) = by_folder.kinds
    assert kind.attention == (Attention(2, 2, 4, 4),)
    assert model_source(f"{tmp_path}/tiny") == str(tmp_path / "tiny")


@pytest.mark.parametrize("name", ["models/small", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_a_folder_of_the_working_directory_is_not_taken_for_the_hubs_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """transformers would load it in silence; a recipe's paths start at the recipe."""
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for finds in (find_architecture, model_source):
        with pytest.raises(ModelError, match=f"write {tmp_path}/{name}; ") as caught:
            finds(name)
        assert caught.value.code == "model_missing"
    (tmp_path / name / "config.json").write_text(json.dumps(TINY))
    assert from_here(name) == model_source(from_here(name)) == str(tmp_path / name)


def test_an_unknown_hub_id_is_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def hub_file(repo: str, name: str, *, revision: str | None) -> Path:
        asked.append((repo, name, revision))
        (tmp_path / name).write_text(json.dumps(TINY))
        return tmp_path / name

    monkeypatch.setattr(known_models, "hub_file", hub_file)
    assert find_architecture("someone/tiny", "v2").hub_id == "someone/tiny"
    assert asked == [("someone/tiny", "config.json", "v2")]


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("qwen2.5-7bb", "did you mean qwen2.5-7b, qwen2.5-72b or qwen2.5-3b?"),
        ("9b", "did you mean gemma-2-9b, gemma-2-9b-it or yi-9b?"),
        ("qwq", "did you mean qwq-32b?"),
        ("zzzz", "nor a hub id (owner/name); a size is one of 0.5b, 0.6b, 1b, 2b, "),
    ],
)
def test_an_unknown_alias_is_a_usage_error_with_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_architecture(asked)
    assert caught.value.code == "model_unknown"
    assert near in caught.value.message
    assert "; a size is one of 0.5b, 0.6b, 1b, " in caught.value.message
    assert caught.value.message.endswith("answers to its hub id, its folder or its config.json")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "a/b/c", "nowhere/config.json"])
def test_a_path_that_is_not_there_is_a_model_error(path: str) -> None:
    for finds in (find_architecture, model_source):
        with pytest.raises(ModelError, match="does not exist") as caught:
            finds(path)
        assert caught.value.code == "model_missing"


def test_a_folder_without_config_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        find_architecture(f"{tmp_path}/empty")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model_type": "qwen9"}, "model_type_unknown", "'qwen9' is not in transformers 5"),
        ({"model_type": None}, "model_type_unknown", "model_type None is not in transformers"),
        ({"model_type": "bert"}, "not_a_decoder", "bert is not a causal language model"),
        ({"hidden_size": "wide"}, "model", "hidden_size"),
    ],
)
def test_a_config_that_makes_no_decoder_says_why(
    change: dict[str, object], code: str, words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        architecture_of(TINY | change)
    assert caught.value.code == code


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\xff")
    with pytest.raises(ModelError) as caught:
        find_architecture(f"{tmp_path}/model.gguf")
    assert f"{tmp_path}/model.gguf: not a model's config.json: " in str(caught.value)
