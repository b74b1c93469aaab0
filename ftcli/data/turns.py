"""Turns of a conversation, with OpenAI's or ShareGPT's keys, and their valid order."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from ftcli.data.example import Message, Role, RowError
from ftcli.data.json_rows import json_kind

# The two formats differ in these keys only, and real files mix them.
TURN_KEYS = {"messages": ("role", "content"), "sharegpt": ("from", "value")}
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
}
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation")
# Parts of a turn besides its content, which would be lost here.
CARRIED = {
    "tool_calls": "tool calls",
    "function_call": "tool calls",
    "reasoning_content": "reasoning apart from its content",
    "thinking": "reasoning apart from its content",
}
WEIGHT_KEYS = ("weight", "loss_weight")


def checked_text(value: object, name: str) -> str:
    """`value` if it is text that can be written as UTF-8, else RowError with its name."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {json_kind(value)}, where text is expected")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise RowError(f"{name} contains half of a character ({half})") from error
    return value


def filled_text(value: object, name: str) -> str:
    """As `checked_text`, but blank text is an error too."""
    text = checked_text(value, name)
    if not text.strip():
        raise RowError(f"{name} is empty")
    return text


def read_turns(value: object, column: str) -> tuple[Message, ...]:
    """Messages of a list of turns; raises RowError with the turn's number, from 1."""
    if not isinstance(value, list):
        raise RowError(f"{column} is {json_kind(value)}, where a list of turns is expected")
    return tuple(_read_turn(turn, number) for number, turn in enumerate(value, 1))


def check_order(messages: tuple[Message, ...]) -> None:
    """Raise RowError unless user and assistant alternate after an optional system turn.

    The last turn must be the assistant's.
    """
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise RowError("no assistant turn")
    spoken = roles[1:] if roles[0] == "system" else roles
    before = len(roles) - len(spoken)
    if spoken[0] == "assistant":
        raise RowError("an assistant turn comes first, without a prompt")
    for number, (role, following) in enumerate(pairwise(spoken), before + 1):
        if role == following:
            raise RowError(f"turns {number} and {number + 1} are both {role}")
    if "system" in spoken:
        raise RowError(f"a system turn in the middle (turn {before + spoken.index('system') + 1})")
    if spoken[-1] == "user":
        raise RowError("the conversation ends with a user turn")


def _read_turn(turn: object, number: int) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"turn {number} is {json_kind(turn)}, where an object is expected")
    for role_key, content_key in TURN_KEYS.values():
        if turn.get(role_key) is not None:
            role = _role(turn[role_key], number)
            name = f"turn {number} ({turn[role_key]})"
            _refuse_carried(turn, role, name)
            return Message(role, _content(turn.get(content_key), role, name))
    raise RowError(f"turn {number} has no role; its keys are {', '.join(map(str, turn)) or 'none'}")


def _role(word: object, number: int) -> Role:
    if word in TOOL_ROLES:
        raise RowError(f"turn {number} ({word}) belongs to a tool call, which is not supported")
    role = ROLES.get(word) if isinstance(word, str) else None
    if role is None:
        raise RowError(f"turn {number} has the unknown role {word!r}; known are {', '.join(ROLES)}")
    return role


def _refuse_carried(turn: Mapping[str, object], role: Role, name: str) -> None:
    for key, what in CARRIED.items():
        if turn.get(key):
            raise RowError(f"{name} has {what} ({key}), which is not supported")
    for key in WEIGHT_KEYS:
        # Assistant turns alone are trained on; a weight that says the same is accepted.
        if turn.get(key) is not None and turn[key] != (role == "assistant"):
            raise RowError(f"{name} has {key} {turn[key]}; weights of turns are not supported")


def _content(value: object, role: Role, name: str) -> str:
    if isinstance(value, list):
        value = "".join(_part(part, name) for part in value)
    # An empty system turn has a meaning: it suppresses the template's default system prompt.
    return checked_text(value, name) if role == "system" else filled_text(value, name)


def _part(part: object, name: str) -> str:
    if not isinstance(part, Mapping):
        raise RowError(f"{name} has a part that is {json_kind(part)}")
    if part.get("type") != "text":
        raise RowError(f"{name} has a part of type {part.get('type')}; only text is supported")
    # `value` instead of `text`: LLaMA-Factory's v1 files.
    return checked_text(part.get("text", part.get("value")), name)
