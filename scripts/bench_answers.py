"""Tokens per second of our answers and of transformers' `generate` with a fixed, padded batch.

    python -m scripts.bench_answers MODEL ROWS --turns 3 --instruction 1000

Prompts are the last rows of the file, in its order for transformers; greedy, in fp32. Both sides
take turns. Each of our answers is compared with that of transformers at batch 1.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from ftcli.config.recipe import Generation
from ftcli.data.example import Message
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.inference.generation import Model, answer_batches, generate_ids
from ftcli.kernels.cpu import tune_cpu
from ftcli.models.device import device_of, find_hardware
from ftcli.models.load import load_tokenizer
from ftcli.models.prompt_manifest import PromptFormat
from scripts.machine import this_machine

Ids = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path, help="jsonl with `prompt` and `completion`")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--instruction", type=int, default=0, help="tokens before every prompt")
    parser.add_argument("--their-rows", type=int, default=8, help="prompts in one `generate`")
    parser.add_argument("--unchecked", action="store_true", help="no answers at batch 1")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    model = _open(arguments.model)
    prompts = _prompts(model, arguments.rows, arguments.prompts, arguments.instruction)
    settings = Generation(max_new_tokens=arguments.new_tokens)
    sides: dict[str, Callable[[], Ids]] = {
        "transformers": lambda: _theirs(model, prompts, settings, arguments.their_rows),
        "ftcli": lambda: _ours(model, prompts, settings),
    }
    short = Generation(max_new_tokens=2)  # what is built at first use
    _theirs(model, prompts[:2], short, 2), _ours(model, prompts[:2], short)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, Ids] = {}
    for _ in range(arguments.turns):
        for name, side in sides.items():
            started = time.monotonic()
            answers[name] = side()
            tokens = sum(map(len, answers[name]))
            speeds[name].append(tokens / (time.monotonic() - started))
    ratios = [b / a for a, b in zip(*speeds.values(), strict=True)]
    found = {"tokens_per_second": speeds, "ratios": ratios, "median_ratio": median(ratios)}
    found |= {"prompts": len(prompts), "prompt_tokens": sum(map(len, prompts))}
    found |= {"their_rows": min(arguments.their_rows, len(prompts))}
    found |= {"our_rows": max(map(len, answer_batches(model, prompts, settings)))}
    found |= {"instruction_tokens": arguments.instruction, "machine": this_machine()}
    found |= {"answer_tokens": {name: sum(map(len, ids)) for name, ids in answers.items()}}
    if not arguments.unchecked:
        one = _theirs(model, prompts, settings, 1)
        for name, ids in answers.items():
            found[f"{name}_differs"] = _differences(model, prompts, ids, one)
    print(json.dumps(found))


def _open(folder: Path) -> Model:
    hardware = find_hardware("auto")
    tune_cpu(hardware)
    renderer = Renderer(load_tokenizer(str(folder), None))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network.to(device_of(hardware))
    return Model(network, PromptFormat(renderer, renderer.stop_ids, renderer.pad_id))


def _prompts(model: Model, file: Path, count: int, instruction: int) -> Ids:
    """The last rows of a file, each after a system turn of about so many tokens."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    shown, tokenizer = "", model.prompt_format.renderer.tokenizer
    for row in rows[:-count]:
        if len(tokenizer(shown)["input_ids"]) >= instruction:
            break
        shown += f"{row['prompt']}\n\n{row['completion']}\n\n"
    before = [Message("system", shown)] if shown else []
    asked = [[*before, Message("user", row["prompt"])] for row in rows[-count:]]
    return [model.prompt_format.renderer.prompt_ids(turns) for turns in asked]


def _ours(model: Model, prompts: Ids, settings: Generation) -> Ids:
    answers: dict[int, list[int]] = {}
    for batch in answer_batches(model, prompts, settings):
        some = [prompts[place] for place in batch]
        ids = generate_ids(
            model.network.eval(),
            some,
            model.prompt_format.stop_ids,
            settings.max_new_tokens,
            {"do_sample": False, **_ends(model)},
        )
        answers |= dict(zip(batch, ids, strict=True))
    return [answers[place] for place in range(len(prompts))]


def _theirs(model: Model, prompts: Ids, settings: Generation, rows: int) -> Ids:
    """Prompts in their own order, padded on the left."""
    stops, found = model.prompt_format.stop_ids, []
    for start in range(0, len(prompts), rows):
        some = prompts[start : start + rows]
        longest = max(map(len, some))
        ids = [[model.prompt_format.pad_id] * (longest - len(row)) + row for row in some]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in some]
        output: Any = model.network.eval().generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            **_ends(model),
        )
        found += [_ended(row, stops) for row in output[:, longest:].tolist()]
    return found


def _ends(model: Model) -> dict[str, Any]:
    stops, pad_id = model.prompt_format.stop_ids, model.prompt_format.pad_id
    return {"eos_token_id": list(stops), "pad_token_id": pad_id}


def _ended(ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def _differences(model: Model, prompts: Ids, found: Ids, expected: Ids) -> list[dict[str, Any]]:
    """Where answers differ from those at batch 1, and the lead of the likeliest token there."""
    parted = []
    for number, (prompt, a, b) in enumerate(zip(prompts, found, expected, strict=True)):
        if a == b:
            continue
        pairs = enumerate(zip(a, b, strict=False))
        place = next((at for at, (x, y) in pairs if x != y), min(len(a), len(b)))
        ids = torch.tensor([[*prompt, *b[:place]]], device=model.device)
        with torch.no_grad():
            best = model.network(input_ids=ids).logits[0, -1].topk(2).values
        parted.append({"prompt": number, "token": place, "lead": float(best[0] - best[1])})
    return parted


if __name__ == "__main__":
    main()
