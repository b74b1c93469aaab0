"""An answer's text piece by piece, while its tokens are generated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import TextStreamer

from ftcli.models.prompt_manifest import PromptFormat


class AnswerStreamer(TextStreamer):
    """Streams what an answer says: without its stop token, which need not be a special token, and
    without what the template writes before an answer."""

    def __init__(self, prompt_format: PromptFormat, on_text: Callable[[str], object]) -> None:
        super().__init__(
            prompt_format.renderer.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        self._format, self._on_text = prompt_format, on_text
        self._held: list[int] = []
        self._begun = self._after_lead = False

    def put(self, value: Tensor) -> None:
        if self.next_tokens_are_prompt:
            super().put(value)
            return
        ids = value.flatten().tolist()
        if ids[0] in self._format.stop_ids:
            return
        self._held += ids
        end = 0 if self._begun else self._format.reader.end_of_lead(self._held)
        if end is None:
            return
        self._begun, self._after_lead = True, self._after_lead or end > 0
        self._release(end)

    def _release(self, start: int) -> None:
        """Stream the held tokens from `start` on, without white space after the lead."""
        for place in range(start, len(self._held)):
            token = self._held[place]
            if self._after_lead and not self.tokenizer.decode([token]).strip():
                continue
            self._after_lead = False
            super().put(torch.tensor([token]))
        self._held = []

    def end(self) -> None:
        self._release(0)
        super().end()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._on_text(text)
