from __future__ import annotations

import pytest

from ftcli.data.example import RowError
from ftcli.data.turns import check_order, read_turns


def chat(*turns: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in turns]


def reason_of(turns: object) -> str:
    with pytest.raises(RowError) as caught:
        check_order(read_turns(turns, "messages"))
    return caught.value.message


KNOWN_ROLES = "system, developer, user, human, assistant, gpt, chatgpt, bing"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (chat(), "no assistant turn"),
        (chat(("user", "a")), "no assistant turn"),
        (chat(("system", "a")), "no assistant turn"),
        (chat(("assistant", "a")), "an assistant turn comes first, without a prompt"),
        (
            chat(("user", "a"), ("assistant", "b"), ("user", "c")),
            "the conversation ends with a user turn",
        ),
        (
            chat(("system", "s"), ("user", "a"), ("user", "b"), ("assistant", "c")),
            "turns 2 and 3 are both user",
        ),
        (
            chat(("user", "a"), ("system", "s"), ("assistant", "c")),
            "a system turn in the middle (turn 2)",
        ),
        (chat(("user", "a"), ("assistant", " ")), "turn 2 (assistant) is empty"),
        (chat(("user", ""), ("assistant", "a")), "turn 1 (user) is empty"),
        (
            chat(("user", "a"), ("assistant", None)),
            "turn 2 (assistant) is null, where text is expected",
        ),
        (
            chat(("moderator", "a")),
            f"turn 1 has the unknown role 'moderator'; known are {KNOWN_ROLES}",
        ),
        (chat(("tool", "a")), "turn 1 (tool) belongs to a tool call, which is not supported"),
        (
            chat(("user", [{"type": "image_url", "image_url": {}}])),
            "turn 1 (user) has a part of type image_url; only text is supported",
        ),
        (chat(("user", ["a"])), "turn 1 (user) has a part that is text"),
        (None, "messages is null, where a list of turns is expected"),
        (["a"], "turn 1 is text, where an object is expected"),
        ([{"speaker": "a"}], "turn 1 has no role; its keys are speaker"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{}]}],
            "turn 1 (assistant) has tool calls (tool_calls), which is not supported",
        ),
        (
            [{"role": "assistant", "content": "a", "weight": 0}],
            "turn 1 (assistant) has weight 0; weights of turns are not supported",
        ),
        (
            [{"from": "function_call", "value": "f"}],
            "turn 1 (function_call) belongs to a tool call, which is not supported",
        ),
    ],
)
def test_conversations_that_are_rejected(turns: object, reason: str) -> None:
    assert reason_of(turns) == reason
