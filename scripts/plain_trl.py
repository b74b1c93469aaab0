"""A plain TRL script with the same numbers as a recipe: the reference that ftcli is held against.

Trains on the first rows of a prompt/completion file in file order, and prints the held-out loss on
answer tokens of the rows that follow, token-weighted, before and after.

    python scripts/plain_trl.py MODEL DATA --rows 512 --held-out 200 --mode lora
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = _rows(arguments.data, arguments.rows + arguments.held_out)
    train, held_out = rows[: arguments.rows], rows[arguments.rows :]
    model = _model(arguments)
    before = _held_out_loss(model, tokenizer, held_out)
    started = time.monotonic()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=arguments.output,
            num_train_epochs=1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            weight_decay=0.0,
            seed=42,
            bf16=arguments.bf16,
            gradient_checkpointing=False,
            completion_only_loss=True,
            max_length=1024,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_list(train),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules="all-linear",
        ),
    )
    _freeze_4bit_layout(trainer.model)
    trainer.train()
    seconds = time.monotonic() - started
    after = _held_out_loss(trainer.model, tokenizer, held_out)
    print(json.dumps({"before": before, "after": after, "seconds": seconds}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--mode", choices=["lora", "qlora"], default="lora")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", default="bench/plain-trl")
    return parser.parse_args()


def _rows(path: Path, count: int) -> list[dict[str, Any]]:
    """Prompt and completion as conversations, so that TRL applies the chat template."""
    with path.open() as lines:
        pairs = [json.loads(line) for line in islice(lines, count)]
    return [
        {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "completion": [{"role": "assistant", "content": pair["completion"]}],
        }
        for pair in pairs
    ]


def _model(arguments: argparse.Namespace) -> Any:
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    quantization = None
    if arguments.mode == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=dtype, quantization_config=quantization
    )


def _freeze_4bit_layout(model: Any) -> None:
    """The held-out loss before training would repack 4-bit weights on a CPU with AVX512-BF16."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def _held_out_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Σ negative log-likelihood / Σ tokens over answers and their end tokens."""
    total, tokens = 0.0, 0
    model.train(False)
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)[
            "input_ids"
        ]
        end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
        ids = torch.tensor([whole[:end]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        total += torch.nn.functional.cross_entropy(
            logits, ids[0, len(prompt) :], reduction="sum"
        ).item()
        tokens += end - len(prompt)
    model.train(True)
    return total / tokens


if __name__ == "__main__":
    main()
