"""An answer is streamed as it is returned: without its lead and its stop token."""

from __future__ import annotations

import pytest
import torch

from ftcli.inference.streaming import AnswerStreamer
from ftcli.models.prompt_manifest import PromptFormat
from tests.families import Family, chat, family_named, qwen3

ANSWERS = [
    "The leather chair.",
    "Two lines\n\nof it, in 3 words",
    "Stühle 椅子 🪑",
    "<b>The</b> end",
]


@pytest.mark.parametrize(
    "family",
    [family_named("chatml"), qwen3(thinking=True), qwen3()],
    ids=["chatml", "open", "shut"],
)
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_pieces_are_the_answer(answer: str, family: Family) -> None:
    renderer = family.renderer()
    prompt_format = PromptFormat(renderer, renderer.stop_ids, renderer.pad_id)
    row = renderer.encode(chat("Which?", answer))
    pieces: list[str] = []
    streamer = AnswerStreamer(prompt_format, pieces.append)
    streamer.put(torch.tensor([row.input_ids[: row.prompt_tokens]]))
    for token in row.input_ids[row.prompt_tokens :]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == answer
    assert prompt_format.reader.text(row.input_ids[row.prompt_tokens : -1]) == answer


def test_thoughts_are_streamed_as_they_are() -> None:
    renderer = qwen3(thinking=True).renderer()
    prompt_format = PromptFormat(renderer, renderer.stop_ids, renderer.pad_id)
    thought = "<think>\nIt is brown.\n</think>\n\nThe chair."
    pieces: list[str] = []
    streamer = AnswerStreamer(prompt_format, pieces.append)
    streamer.put(torch.tensor([[0]]))
    for token in renderer.tokenizer(thought)["input_ids"]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == thought
