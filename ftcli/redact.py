"""Tokens and passwords, known by where they are kept or by their form: never told, never copied."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

MASK = "***"
# Names of environment variables that hold one: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY,
# or, as a word of its own between underscores, DB_PASS, GITHUB_PAT, SLACK_WEBHOOK_URL …
NAMES = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|ACCESS_KEY_ID|CREDENTIALS)$"
    r"|_PWD$|(^|_)(PASS|PAT|PASSPHRASE|WEBHOOK(_URL)?|((PRIVATE|SECRET|SIGNING|ENCRYPTION)_KEY))$",
    re.IGNORECASE,
)
# Folders of the shell, which end in the same word.
NO_SECRETS = frozenset(("OLD_PWD",))
SHORTEST = 8  # what is shorter may be any word
# The tokens of Hugging Face, OpenAI and others, GitHub and Amazon begin alike, each its own way.
TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[a-z]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b"
)
# A path has one slash where the address had two.
LOGIN = re.compile(r"(?<=[A-Za-z0-9]:/)(/?)[^\s/@:]*:[^\s/@]+(?=@)")


def redact(text: str) -> str:
    """The text with stars in the place of every secret in it."""
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """`redact` for many texts: where secrets are kept is looked up once."""
    values = [value for _, value in _known()]

    def mask(text: str) -> str:
        for value in values:
            text = text.replace(value, MASK)
        return TOKEN.sub(MASK, LOGIN.sub(rf"\1{MASK}", text))

    return mask


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds, in words that do not tell it; none where it holds none."""
    for name, value in _known():
        if value in text:
            return f"the secret in {name}"
    if LOGIN.search(text):
        return "a password (user:password@)"
    return "a token" if TOKEN.search(text) else None


def _known() -> Iterator[tuple[str, str]]:
    """Secrets of this machine's user, each with the name of where it is."""
    for name, value in os.environ.items():
        if NAMES.search(name) and name not in NO_SECRETS and len(value) >= SHORTEST:
            yield name, value
    for path in _token_files():
        yield from ((str(path), value) for value in _tokens(path))


def _token_files() -> tuple[Path, ...]:
    """Where `hf auth login` keeps tokens (huggingface_hub 2, constants.py)."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = Path(os.environ.get("HF_HOME") or Path(caches, "huggingface"))
    token = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return token, token.with_name("stored_tokens")


@functools.cache
def _tokens(path: Path) -> tuple[str, ...]:
    """The file is one token, or has lines such as `hf_token = …`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ()
    values = (line.rpartition("=")[2].strip() for line in lines)
    return tuple(value for value in values if len(value) >= SHORTEST)
