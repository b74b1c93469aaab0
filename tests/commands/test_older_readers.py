"""What ftcli saves is the same model in transformers 4.57 and in what is converted by older names.

Versions before transformers 5 look for other names in config.json, and take a default in silence.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
)

from ftcli.cli import run
from ftcli.models.files.older_readers import write_for_older_readers
from tests.architectures import MODEL_TYPES, SIZES
from tests.conftest import pair, save_recipe, save_rows, tiny_tokenizer

# transformers 4.57 with what it pins; torch, peft and the rest are this environment's own.
OLDER = ["transformers>=4.57,<4.58", "huggingface_hub>=0.36,<1", "tokenizers>=0.22,<0.23"]
# These load without an error and compute something else in 4.57: sdpa there leaves the cap of
# Gemma 2's scores out, and Apertus' activation is another.
OTHERWISE = {"gemma2", "apertus"}
SCALED = {"factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {
    "short_factor": [1 + n / 10 for n in range(6)],
    "long_factor": [2 + n for n in range(6)],
}
STRETCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, llama3": ("llama", {"rope_theta": 5e5, **LLAMA3, **SCALED}),
    "qwen2, yarn": ("qwen2", {"rope_type": "yarn", "rope_theta": 1e6, **SCALED}),
    "llama, linear": ("llama", {"rope_type": "linear", "rope_theta": 3e4, "factor": 2.0}),
    "phi3, longrope": (
        "phi3",
        {"rope_type": "longrope", "rope_theta": 3e4, "partial_rotary_factor": 0.75, **LONGROPE},
    ),
    "gemma3, linear": (
        "gemma3_text",
        {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    ),
}
READER = """
import json, sys, torch, transformers
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer

found = {"version": transformers.__version__}
for job in json.loads(sys.stdin.read()):
    model = AutoModelForCausalLM.from_pretrained(job["model"]).float().eval()
    if "adapter" in job:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, job["adapter"]).eval()
    if "ids" in job:
        with torch.no_grad():
            said = model(input_ids=torch.tensor([job["ids"]])).logits[0].tolist()
    else:
        tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
        said = []
        for prompt in job["prompts"]:
            turns = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            answer = model.generate(**ids, max_new_tokens=8, do_sample=False)
            said.append(answer[0].tolist())
    found[job["name"]] = said
print(json.dumps(found))
"""

Read = Callable[[list[dict[str, Any]]], dict[str, Any]]


def read_here(jobs: list[dict[str, Any]], path: Path | None = None) -> dict[str, Any]:
    """Run READER in a process of its own, with the packages in `path` before the installed ones."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(jobs),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def read_in_4(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Read models with transformers 4.57."""
    folder = tmp_path_factory.mktemp("transformers-4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    done = subprocess.run(
        [*command, str(folder), *OLDER], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed: {done.stderr[-200:]}")
    return lambda jobs: read_here(jobs, folder)


def tiny(model_type: str, rotary: dict[str, Any] | None) -> Any:
    """A random model of this type whose rotary base no reader can guess."""
    keys: dict[str, Any] = SIZES | {"num_experts": 4, "num_experts_per_tok": 2}
    if model_type == "phi3" and rotary is not None:
        keys["original_max_position_embeddings"] = 128
    for refused in {"falcon": ["head_dim"], "gpt_neox": ["num_key_value_heads"]}.get(
        model_type, []
    ):
        del keys[refused]
    config = CONFIG_MAPPING[model_type](**keys | ({"rope_parameters": rotary} if rotary else {}))
    if rotary is None:
        found = config.rope_parameters
        for part in [found] if "rope_theta" in found else found.values():
            part["rope_theta"] *= 3.7
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


CASES: dict[str, tuple[str, dict[str, Any] | None]] = {
    **{name: (name, None) for name in MODEL_TYPES},
    **STRETCHED,
}


@pytest.mark.parametrize("case", CASES)
def test_the_older_names_say_what_the_newer_ones_do(case: str, tmp_path: Path) -> None:
    """transformers 5 reads the same config with them as without."""
    tiny(*CASES[case]).config.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    write_for_older_readers(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    rotary = before["rope_parameters"]
    assert written["rope_theta"] == rotary.get("full_attention", rotary)["rope_theta"]
    after = AutoConfig.from_pretrained(tmp_path).to_dict()
    after["rope_parameters"].pop("type", None)  # Phi-3's own name for rope_type
    assert {key: value for key, value in after.items() if key in before} == before


@pytest.mark.parametrize("model_type", ["gemma3", "gemma4", "llama4", "mistral3", "qwen3_5"])
def test_a_model_with_towers_has_the_older_names_in_its_text_config(
    model_type: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    write_for_older_readers(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["text_config"]
    rotary = before["text_config"]["rope_parameters"]
    assert written["rope_theta"] == rotary.get("full_attention", rotary)["rope_theta"]
    after = AutoConfig.from_pretrained(tmp_path).to_dict()
    for found, expected in ((after, before), (after["text_config"], before["text_config"])):
        differ = {key for key, value in expected.items() if found[key] != value}
        assert differ <= {"text_config", "vision_config"}


def test_a_tokenizer_splits_as_its_own_file_says(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    tokenizer.save_pretrained(tmp_path)
    text = "<|im_start|>a lamp<|tool|>  40 cm"
    write_for_older_readers(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|tool|>"]
    assert "extra_special_tokens" not in written
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert found(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert found.extra_special_tokens == ["<|tool|>"]


@pytest.mark.slow
def test_every_model_type_computes_the_same(read_in_4: Read, tmp_path: Path) -> None:
    ids, jobs, expected = list(range(5, 85)), [], {}
    for name, (model_type, rotary) in CASES.items():
        model, folder = tiny(model_type, rotary), tmp_path / name
        model.save_pretrained(folder)
        write_for_older_readers(folder)
        jobs.append({"name": name, "model": str(folder), "ids": ids})
        with torch.no_grad():
            expected[name] = model(input_ids=torch.tensor([ids])).logits[0]
    found = read_in_4(jobs)
    assert found["version"].startswith("4.57.")
    differ = {
        name
        for name, logits in expected.items()
        if (torch.tensor(found[name]) - logits).abs().max() > 1e-4 * logits.abs().max()
    }
    assert differ == OTHERWISE


@pytest.fixture(scope="module")
def home(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run with its merged model, and a full run, of the real small model."""
    home = tmp_path_factory.mktemp("older")
    save_rows(home)
    for mode, rate in (("lora", 1e-3), ("full", 1e-5)):
        training = {"max_steps": 2, "batch_size": 2, "learning_rate": rate}
        recipe = save_recipe(home, small_model, mode, method={"mode": mode}, training=training)
        assert run(["train", str(recipe)]) == 0
    assert run(["merge", str(home / "runs" / "lora"), "--dtype", "fp32"]) == 0
    return home


PROMPTS = [pair(number)["prompt"] for number in range(4)] + [
    "What is the capital of France?",
    "Write one sentence about a lamp.",
    "Count from 1 to 5.",
    "Größe: 40 cm\n\nFarbe: grün",
]


@pytest.mark.slow
def test_merged_model_full_run_and_adapter_answer_the_same(
    read_in_4: Read, home: Path, small_model: Path, tmp_path: Path
) -> None:
    """The same token ids, and the same greedy answers to 8 prompts."""
    lora, base = home / "runs" / "lora", tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(small_model).save_pretrained(base)
    write_for_older_readers(base)  # the small model's own folder is of transformers 5, too
    jobs: list[dict[str, Any]] = [
        {"name": "merged", "model": lora / "merged", "tokenizer": lora / "merged"},
        {"name": "full", "model": home / "runs/full/model", "tokenizer": home / "runs/full/model"},
        {"name": "adapter", "model": base, "adapter": lora / "adapter"}
        | {"tokenizer": lora / "adapter"},
    ]
    jobs = [{k: str(v) for k, v in job.items()} | {"prompts": PROMPTS} for job in jobs]
    older, newer = read_in_4(jobs), read_here(jobs)
    assert older.pop("version").startswith("4.57.") and newer.pop("version").startswith("5.")
    assert older == newer
    assert older["merged"] == older["adapter"] != older["full"]


def save_gguf(folder: Path, file: Path) -> None:
    """A GGUF by the names of transformers 4's config, as converters read them."""
    config = json.loads((folder / "config.json").read_text())
    vocabulary = AutoTokenizer.from_pretrained(folder)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary.convert_ids_to_tokens(range(config["vocab_size"])))
    special = set(vocabulary.all_special_ids)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([control if n in special else normal for n in range(len(vocabulary))])
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in load_file(folder / "model.safetensors").items():
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:  # llama.cpp turns pairs of neighbours, transformers halves
                halves = weight.reshape(count, 2, -1, weight.shape[1])
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_a_converted_model_answers_the_same(home: Path, tmp_path: Path) -> None:
    folder, file = home / "runs" / "lora" / "merged", tmp_path / "model.gguf"
    save_gguf(folder, file)
    base = gguf.GGUFReader(file).get_field("llama.rope.freq_base")
    assert base is not None and base.contents() == 100_000.0
    opened = [
        (AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)),
        (
            AutoModelForCausalLM.from_pretrained(
                tmp_path,
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            ),
            AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name),
        ),
    ]
    said = []
    for network, tokenizer in opened:
        template = opened[0][1].chat_template
        answers = []
        for prompt in PROMPTS:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                chat_template=template,
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            stops = opened[0][0].generation_config.eos_token_id
            answer = network.generate(
                **ids, max_new_tokens=8, do_sample=False, eos_token_id=stops, pad_token_id=0
            )
            answers.append(answer[0].tolist())
        said.append(answers)
    assert said[0] == said[1]


def test_a_run_is_saved_for_older_readers(
    tiny_run: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Full run, adapter and merged model alike."""
    training = {"max_steps": 1, "batch_size": 2}
    assert run(["train", str(write_recipe(method={"mode": "full"}, training=training))]) == 0
    merged, full = tmp_path / "merged", tmp_path / "runs" / "tiny" / "model"
    assert run(["merge", str(tiny_run), "--output", str(merged)]) == 0
    for folder in (merged, full):
        assert json.loads((folder / "config.json").read_text())["rope_theta"] == 10_000.0
    for folder in (merged, full, tiny_run / "adapter"):
        written = json.loads((folder / "tokenizer_config.json").read_text())
        assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
