"""Fold an adapter into its base, save a stand-alone model, and prove that it is the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ftcli.engine.batches import collate
from ftcli.engine.inference import Model, PromptContract
from ftcli.engine.rendering import IGNORED
from ftcli.engine.virtual import causal_model

# Below these a merged model is not what was evaluated (measured: dequantise, then merge 3.6e-4;
# folding into 4-bit weights 2.45, where no adapter at all gives 2.14).
HIGHEST_KL = 1e-2
LOWEST_TOP1_AGREEMENT = 0.99


@dataclass(frozen=True)
class Parity:
    """How far two models are apart on the labelled positions of some rows.

    `kl` is the mean of KL(adapter ‖ merged) in nats a token.
    """

    kl: float
    top1_agreement: float
    max_logit_difference: float
    tokens: int

    @property
    def passes(self) -> bool:
        return self.kl <= HIGHEST_KL and self.top1_agreement >= LOWEST_TOP1_AGREEMENT


def fold(adapted: PreTrainedModel) -> PreTrainedModel:
    """The base with the update added to its weights; a 4-bit base has to be dequantised before.

    PEFT rounds the update to the weights' type before it adds; `parity` measures the cost.
    """
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    return merged


def save_model(model: PreTrainedModel, contract: PromptContract, folder: Path) -> None:
    """Weights, config, tokenizer, chat template, generation config: transformers needs no more."""
    tokenizer = contract.renderer.tokenizer
    model.generation_config = generation_config(tokenizer, contract.stop_ids, contract.pad_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def generation_config(
    tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], pad_id: int
) -> GenerationConfig:
    """Greedy, and stopping where the training's answers ended."""
    return GenerationConfig(
        eos_token_id=list(stop_ids), pad_token_id=pad_id, bos_token_id=tokenizer.bos_token_id
    )


def logits_of(model: Model, rows: Sequence[Mapping[str, Sequence[int]]]) -> Iterator[Tensor]:
    """fp32 logits [labelled tokens, vocab] of one row after the other."""
    model.network.eval()
    for row in rows:
        inputs = collate([row], model.contract.pad_id)
        wanted = inputs["labels"][0, 1:] != IGNORED
        with torch.no_grad():
            output = causal_model(model.network)(input_ids=inputs["input_ids"].to(model.device))
        yield output.logits[0, :-1][wanted.to(model.device)].float().cpu()


def parity(reference: Sequence[Tensor], candidate: Iterator[Tensor]) -> Parity:
    """Compare logits row by row."""
    kl, agreed, tokens, furthest = 0.0, 0, 0, 0.0
    for expected, found in zip(reference, candidate, strict=True):
        log_p, log_q = F.log_softmax(expected, dim=-1), F.log_softmax(found, dim=-1)
        kl += F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
        agreed += int((expected.argmax(-1) == found.argmax(-1)).sum())
        furthest = max(furthest, (expected - found).abs().max().item())
        tokens += len(expected)
    return Parity(max(0.0, kl / tokens), agreed / tokens, furthest, tokens)  # 0 rounds below
