"""Losses and greedy answers of a base model by transformers alone (for check_scores.py --model).

One row at a time, in fp32, with the model's own chat template and stop tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# What ftcli's own precision may cost: a share of a row's loss, and how far in fp32 the token of an
# answer may lie below the likeliest (docs/evaluation.md says 0.25 of a logit).
LOSS_SHARE = {"fp32": 1e-4}
NEAR_TIE = {"fp32": 1e-3}
ROUNDED_LOSS_SHARE, ROUNDED_TIE = 0.02, 0.25
LIKELIEST = 50
Found = tuple[str, str, str, float | None, bool]
"""What, by ftcli, by transformers, their difference, whether that is small enough."""


class Evaluation(Protocol):
    """What ftcli has written of one evaluation."""

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def recipe(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Base:
    """A model in fp32 and how its answers end."""

    network: Any
    tokenizer: Any
    stop_ids: tuple[int, ...]
    template_kwargs: Mapping[str, Any]

    def ids(self, turns: Sequence[Mapping[str, str]], *, asked: bool) -> list[int]:
        """A conversation in the template; `asked`: up to where the answer begins."""
        found: list[int] = self.tokenizer.apply_chat_template(
            list(turns), add_generation_prompt=asked, return_dict=False, **self.template_kwargs
        )
        return found


def model_checks(
    folder: Path, run: Path, evaluation: Evaluation, count: int, not_checked: dict[str, str]
) -> Iterator[Found]:
    """Losses and answers of the first rows; says in `not_checked` what is left out."""
    recipe = evaluation.recipe
    reason = _unlike(recipe, evaluation.rows[0]["sides"])
    if reason is not None:
        not_checked["losses and answers"] = reason
        return
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    precision = plan["precision"]["value"]
    turns = _conversations(run)
    base = _opened(folder, recipe)
    rest = len(evaluation.rows) - count
    if rest > 0:
        not_checked["losses and answers"] = f"of {rest} further rows, and of sides but the base"
    for row in evaluation.rows[:count]:
        told = turns.get((row["file"], row["line"]), _alone(row))
        place = f"{Path(row['file']).name}:{row['line']}"
        said = row["sides"]["base"]
        yield _loss(place, base, told, said, precision)
        if "text" in said:
            yield _answer(place, base, told[:-1], said, recipe["generation"], precision)


def _unlike(recipe: Mapping[str, Any], sides: Mapping[str, Any]) -> str | None:
    """Why plain greedy decoding of a plain model would be something else."""
    generation = recipe["generation"]
    if "base" not in sides:
        return "the evaluation has no base"
    if recipe["method"].get("quantization"):
        return "the base is quantised"
    if recipe["data"].get("template"):
        return "the recipe brings a chat template of its own"
    if generation["temperature"] > 0 or generation["repetition_penalty"] != 1:
        return "answers are not greedy"
    return None


def _opened(folder: Path, recipe: Mapping[str, Any]) -> Base:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stops = network.generation_config.eos_token_id
    stop_ids = {*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id} - {None}
    kwargs = recipe["data"].get("template_kwargs") or {}
    return Base(network, tokenizer, tuple(sorted(stop_ids)), kwargs)


Turns = list[dict[str, str]]


def _conversations(run: Path) -> dict[tuple[str, int], Turns]:
    """The turns of every held-out row by its place, from the run's own data."""
    import pyarrow as pa

    found: dict[tuple[str, int], Turns] = {}
    for split in ("validation", "test"):
        file = run / "data" / f"{split}.arrow"
        if not file.is_file():
            continue
        with pa.memory_map(str(file)) as source:
            rows = pa.ipc.open_stream(source).read_all().select(["messages", "file", "line"])
        for row in rows.to_pylist():
            turns = json.loads(row["messages"])
            found[row["file"], row["line"]] = [
                {"role": role, "content": text} for role, text, *_ in turns
            ]
    return found


def _alone(row: Mapping[str, Any]) -> Turns:
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["reference"]},
    ]


def _loss(place: str, base: Base, turns: Turns, said: Mapping[str, Any], precision: str) -> Found:
    """Summed loss of the answer's tokens and of the token that ends it."""
    start = len(base.ids(turns[:-1], asked=True))
    ids = base.ids(turns, asked=False)
    end = max(place for place, token in enumerate(ids) if token in base.stop_ids) + 1
    with torch.no_grad():
        logits = base.network(torch.tensor([ids])).logits[0]
    likely = torch.log_softmax(logits[start - 1 : end - 1].double(), dim=-1)
    own = -likely.gather(1, torch.tensor(ids[start:end])[:, None]).sum().item()
    tokens = end - start
    off = abs(own - said["loss"])
    allowed = LOSS_SHARE.get(precision, ROUNDED_LOSS_SHARE) * own
    return (
        f"loss of {place}",
        f"{said['loss']:.4f} / {said['loss_tokens']}",
        f"{own:.4f} / {tokens}",
        off,
        off <= allowed and tokens == said["loss_tokens"],
    )


def _answer(
    place: str,
    base: Base,
    turns: Turns,
    said: Mapping[str, Any],
    generation: Mapping[str, Any],
    precision: str,
) -> Found:
    """The same text, or the first difference at a token that is level with the next likely."""
    prompt = base.ids(turns, asked=True)
    with torch.no_grad():
        output = base.network.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=generation["max_new_tokens"],
            do_sample=False,
            eos_token_id=list(base.stop_ids),
            pad_token_id=base.stop_ids[0],
            output_logits=True,
            return_dict_in_generate=True,
        )
    ids = output.sequences[0, len(prompt) :].tolist()
    stopped = ids[-1] in base.stop_ids
    kept = ids[:-1] if stopped else ids
    text = base.tokenizer.decode(kept, skip_special_tokens=True)
    own = (len(kept), stopped)
    if text == said["text"]:
        same = own == (said["tokens"], said["stopped"])
        return f"answer to {place}", f"{said['tokens']} tokens", f"{own[0]} tokens", None, same
    step = min(_parting(base, kept, said["text"]), len(output.logits) - 1)
    behind = _behind(base, kept[:step], output.logits[step][0].float(), said["text"])
    at = len(base.tokenizer.decode(kept[:step], skip_special_tokens=True))
    return (
        f"answer to {place}, parts at token {step + 1}; its logit lies lower by",
        repr(said["text"][at : at + 16]),
        repr(text[at : at + 16]),
        behind,
        behind <= NEAR_TIE.get(precision, ROUNDED_TIE),
    )


def _behind(base: Base, ids: Sequence[int], logits: torch.Tensor, text: str) -> float:
    """How much less likely, in logits, the token is by which the other text goes on.

    Infinite where none of the likeliest does.
    """
    begun = base.tokenizer.decode(ids, skip_special_tokens=True)
    found, tokens = logits.topk(min(LIKELIEST, len(logits)))
    for logit, token in zip(found.tolist(), tokens.tolist(), strict=True):
        if token in base.stop_ids:
            goes_on = text == begun
        else:
            longer = base.tokenizer.decode([*ids, token], skip_special_tokens=True)
            goes_on = longer.rstrip("\ufffd") != begun and text.startswith(longer.rstrip("\ufffd"))
        if goes_on:
            return float(found[0] - logit)
    return math.inf


def _parting(base: Base, ids: Sequence[int], text: str) -> int:
    """The first token after which what was generated no longer begins the other text."""
    for step in range(len(ids)):
        begun = base.tokenizer.decode(ids[: step + 1], skip_special_tokens=True).rstrip("\ufffd")
        if not text.startswith(begun):
            return step
    # All of it begins the other text: they part where this one ends.
    return len(ids)
