"""Held-out loss of the weights that a side of the bench saved, with transformers, PEFT and torch.

    python -m scripts.bench_score MODEL ROWS --mode lora --saved FILE

One scorer for all sides: rows padded on the right, fp32 arithmetic, cross entropy on the tokens of
answers and their end tokens, by token. QLoRA's adapters are scored over the 4-bit base.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

from ftcli.kernels.cpu import tune_cpu
from ftcli.models.device import find_hardware

IGNORED = -100
ROWS_AT_ONCE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--mode", choices=["lora", "qlora", "full"], default="lora")
    parser.add_argument("--saved", type=Path, help="file of trained weights; none: the base")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    tune_cpu(find_hardware("auto"))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()]
    examples = [_encode(tokenizer, row["prompt"], row["completion"]) for row in rows]
    model = _load(arguments.model, arguments.mode, arguments.saved)
    print(json.dumps(_loss(model, examples)))


def _encode(tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], int]:
    """Ids up to the answer's end token, and the answer's start."""
    user = [{"role": "user", "content": prompt}]
    answer = [{"role": "assistant", "content": completion}]
    asked = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=True)
    whole = tokenizer.apply_chat_template(user + answer, return_dict=True)["input_ids"]
    end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
    return whole[:end], len(asked["input_ids"])


def _load(base: Path, mode: str, saved: Path | None) -> Any:
    """The base with the trained weights: an adapter, a model, or a state dict of the base."""
    whole = mode == "full" and saved is not None and saved.name != "model.pth"
    quantization = None
    if mode == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = AutoModelForCausalLM.from_pretrained(
        saved.parent if whole and saved is not None else base,
        dtype=torch.float32,
        quantization_config=quantization,
    )
    if saved is not None and saved.name == "model.pth":
        state = torch.load(saved, map_location="cpu")
        if model.load_state_dict(state, strict=False).unexpected_keys:
            raise SystemExit(f"{saved} is of another model")
    elif saved is not None and not whole:
        model = PeftModel.from_pretrained(model, saved.parent)
    return model.train(False)


def _loss(model: Any, examples: list[tuple[list[int], int]]) -> dict[str, float]:
    """Σ negative log-likelihood / Σ tokens of answers."""
    total, tokens = 0.0, 0
    for ids, mask, labels in _batches(examples):
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        total += F.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        tokens += int((labels[:, 1:] != IGNORED).sum())
    return {"loss": total / tokens, "tokens": tokens}


def _batches(
    examples: list[tuple[list[int], int]],
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ids, attention mask and labels, rows × tokens; rows of similar length go together."""
    ordered = sorted(examples, key=lambda example: len(example[0]))
    for first in range(0, len(ordered), ROWS_AT_ONCE):
        chosen = ordered[first : first + ROWS_AT_ONCE]
        shape = (len(chosen), len(chosen[-1][0]))
        ids = torch.zeros(shape, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for row, (tokens, start) in enumerate(chosen):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
        yield ids, mask, labels


if __name__ == "__main__":
    main()
