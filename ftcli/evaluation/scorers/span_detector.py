"""`eval.grounding.model`: a token classifier that marks unsupported spans of an answer.

For the models of LettuceDetect (MIT, Kovács and Recski 2025): AutoModelForTokenClassification with
label 1 for unsupported tokens; input: context, in the form of their training, and answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from ftcli.config.recipe import Recipe
from ftcli.console import counted
from ftcli.errors import ModelError
from ftcli.evaluation.scorers.scorer import ExampleResult, Finding, Question, ScoreKind
from ftcli.hub import require_reachable
from ftcli.memory.known_models import model_source
from ftcli.shell import shown_source

# lettucedetect/prompts/summary_prompt_en.txt: for a context without a question.
CONTEXT = "Summarize the following text:\n{facts}\noutput:"
UNSUPPORTED = 1
# If the config does not say how many a model reads.
MAX_TOKENS = 4096


class _Detector(NamedTuple):
    tokenizer: Any
    model: Any
    device: Any
    max_tokens: int


class SpanDetector:
    """Counts answers in which the detector marks no span; opened for the first answer."""

    kinds = MappingProxyType(
        {"spans_supported": ScoreKind("supported (detector)", "share", "higher")}
    )

    def __init__(self, model_id: str, recipe: Recipe) -> None:
        """`model_id`: a hub id or an absolute folder."""
        self._model_id, self._recipe = model_id, recipe
        self.truncated = 0
        """Answers whose facts were longer than the model reads."""

    @cached_property
    def _detector(self) -> _Detector:
        """None of the model's code runs. Raises FtcliError."""
        import torch
        from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

        from ftcli.models.device import device_of, hardware_for
        from ftcli.models.files.untrusted import refuse_foreign_config, refuse_foreign_weights

        source = model_source(self._model_id)
        require_reachable(source, None)
        refuse_foreign_config(source, None)
        refuse_foreign_weights(source, None)
        config = AutoConfig.from_pretrained(source)
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
        classifies = any("TokenClassification" in name for name in config.architectures or ())
        if not classifies or config.num_labels != 2 or not tokenizer.is_fast:
            raise ModelError(
                "model",
                f"eval.grounding.model: {shown_source(self._model_id)} is not a detector: expected "
                "a token classifier with two labels (supported, unsupported) and a fast tokenizer",
            )
        device = device_of(hardware_for(self._recipe))
        model = AutoModelForTokenClassification.from_pretrained(source, dtype=torch.float32)
        longest = getattr(config, "max_position_embeddings", MAX_TOKENS)
        return _Detector(tokenizer, model.to(device).eval(), device, min(longest, MAX_TOKENS))

    def score(self, answer: str, question: Question) -> ExampleResult:
        found = [
            Finding("not supported (detector)", f"“{answer[start:end]}”", start, end)
            for start, end in self.spans(answer, question.facts)
        ]
        return ExampleResult({"spans_supported": (float(not found), 1.0)}, tuple(found))

    def verdict(self, answer: str, question: Question) -> bool:
        """Whether the answer is supported."""
        return not self.spans(answer, question.facts)

    def notes(self) -> Iterator[str]:
        """Sentences below the table."""
        if self.truncated:
            yield f"the detector did not read all facts of {counted(self.truncated, 'answer')}"

    def spans(self, answer: str, facts: str) -> list[tuple[int, int]]:
        """Characters [start, end) of unsupported spans; white space between tokens joins them."""
        import torch

        tokenizer, model, device, max_tokens = self._detector
        context = CONTEXT.format(facts=facts)
        found = tokenizer(
            context,
            answer,
            truncation="only_first",
            max_length=max_tokens,
            return_offsets_mapping=True,
            return_overflowing_tokens=False,
            return_tensors="pt",
        )
        sequences, offsets = found.sequence_ids(0), found.pop("offset_mapping")[0].tolist()
        self.truncated += len(tokenizer(context, answer)["input_ids"]) > max_tokens
        with torch.no_grad():
            logits = model(**{name: each.to(device) for name, each in found.items()}).logits
        spans: list[tuple[int, int]] = []
        labels = logits[0].argmax(-1).tolist()
        for sequence, (start, end), label in zip(sequences, offsets, labels, strict=True):
            if sequence != 1 or label != UNSUPPORTED or start >= end:
                continue
            if spans and not answer[spans[-1][1] : start].strip():
                start = spans.pop()[0]
            spans.append((start, end))
        return spans
