"""`eval.grounding.model`: a token classifier that marks the words of an answer without support.

Made for the models of LettuceDetect (MIT, Kovács and Recski 2025): plain
AutoModelForTokenClassification, label 1 for a token that the context does not support, context and
answer as a pair of texts, the context in the form that they were trained with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

from ftcli.errors import ModelError
from ftcli.hub import require_reachable
from ftcli.memory.hardware import Hardware
from ftcli.memory.shapes import model_source
from ftcli.models.device import device_of
from ftcli.models.untrusted import refuse_foreign_config, refuse_foreign_weights

# lettucedetect/prompts/summary_prompt_en.txt: of a context without a question.
CONTEXT = "Summarize the following text:\n{facts}\noutput:"
UNSUPPORTED = 1
# Of models that do not say how far they read.
LONGEST_TOKENS = 4096


class SpanDetector:
    """Finds the stretches of an answer that its facts do not support."""

    def __init__(self, model_id: str, base: Path, hardware: Hardware) -> None:
        """A hub id, or a folder relative to `base`; none of its code runs. Raises FtcliError."""
        source = model_source(model_id, base)
        require_reachable(source, None)
        refuse_foreign_config(source, None)
        refuse_foreign_weights(source, None)
        self._device = device_of(hardware)
        config = AutoConfig.from_pretrained(source)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(source)
        classifies = any("TokenClassification" in name for name in config.architectures or ())
        if not classifies or config.num_labels != 2 or not self._tokenizer.is_fast:
            raise ModelError(
                "model",
                f"eval.grounding.model: {model_id} is not a detector: expected a token classifier "
                "with two labels (supported, unsupported) and a fast tokenizer",
            )
        model = AutoModelForTokenClassification.from_pretrained(source, dtype=torch.float32)
        self._model = model.to(self._device).eval()
        longest = getattr(config, "max_position_embeddings", LONGEST_TOKENS)
        self._longest_tokens = min(longest, LONGEST_TOKENS)
        self.cut = 0
        """Answers whose facts were longer than the model reads."""

    @torch.no_grad()
    def spans(self, answer: str, facts: str) -> list[tuple[int, int]]:
        """Characters [start, end) of the answer, tokens that touch taken together."""
        context = CONTEXT.format(facts=facts)
        found = self._tokenizer(
            context,
            answer,
            truncation="only_first",
            max_length=self._longest_tokens,
            return_offsets_mapping=True,
            return_overflowing_tokens=False,
            return_tensors="pt",
        )
        parts, offsets = found.sequence_ids(0), found.pop("offset_mapping")[0].tolist()
        self.cut += len(self._tokenizer(context, answer)["input_ids"]) > self._longest_tokens
        logits = self._model(**{name: each.to(self._device) for name, each in found.items()}).logits
        labels = logits[0].argmax(-1).tolist()
        marked = [
            (start, end)
            for part, (start, end), label in zip(parts, offsets, labels, strict=True)
            if part == 1 and label == UNSUPPORTED and start < end
        ]
        return list(_joined(marked, answer))


def _joined(marked: list[tuple[int, int]], answer: str) -> Iterator[tuple[int, int]]:
    """Spans that nothing but white space separates are one."""
    whole: tuple[int, int] | None = None
    for start, end in marked:
        if whole is not None and not answer[whole[1] : start].strip():
            whole = (whole[0], end)
            continue
        if whole is not None:
            yield whole
        whole = (start, end)
    if whole is not None:
        yield whole
