"""Tokens and passwords, known by where they are kept or by their form: never printed or copied."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

MASK = "***"
# Names of environment variables with a secret: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY,
# or, as a word between underscores, DB_PASS, GITHUB_PAT, SLACK_WEBHOOK_URL …
NAMES = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|ACCESS_KEY_ID|CREDENTIALS)$"
    r"|_PWD$|(^|_)(PASS|PAT|PASSPHRASE|WEBHOOK(_URL)?|((PRIVATE|SECRET|SIGNING|ENCRYPTION)_KEY))$",
    re.IGNORECASE,
)
# A folder of the shell whose name ends in the same word.
NO_SECRETS = frozenset(("OLD_PWD",))
SHORTEST = 8  # a shorter value may be any word
# Prefixes of the tokens of Hugging Face, OpenAI and others, GitHub and Amazon.
TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[a-z]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b"
)
# `user:password@` of a URL; as a path, a URL has one slash instead of two.
LOGIN = re.compile(r"(?<=[A-Za-z0-9]:/)(/?)[^\s/@:]*:[^\s/@]+(?=@)")


def redact(text: str) -> str:
    """Replace every secret in the text with stars."""
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """`redact` for many texts: the known secrets are looked up once."""
    values = [value for _, value in _known()]

    def redact_known(text: str) -> str:
        for value in values:
            text = text.replace(value, MASK)
        return TOKEN.sub(MASK, LOGIN.sub(rf"\1{MASK}", text))

    return redact_known


def secret_in(text: str) -> str | None:
    """The kind of secret in a text, without the secret itself; None if there is no secret."""
    for name, value in _known():
        if value in text:
            return f"the secret in {name}"
    if LOGIN.search(text):
        return "a password (user:password@)"
    return "a token" if TOKEN.search(text) else None


def _known() -> Iterator[tuple[str, str]]:
    """Secrets of this machine's user, each with the name of its variable or file."""
    for name in filter(_names_a_secret, os.environ):  # values are decoded when they are read
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST:
            yield name, value
    for path in _token_files():
        yield from ((str(path), value) for value in _tokens(path))


@functools.cache
def _names_a_secret(variable: str) -> bool:
    return NAMES.search(variable) is not None and variable not in NO_SECRETS


def _token_files() -> tuple[Path, ...]:
    """Where `hf auth login` keeps tokens (huggingface_hub 2, constants.py)."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = Path(os.environ.get("HF_HOME") or Path(caches, "huggingface"))
    token = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return token, token.with_name("stored_tokens")


@functools.cache
def _tokens(path: Path) -> tuple[str, ...]:
    """The file is one token, or has lines like `hf_token = …`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ()
    values = (line.rpartition("=")[2].strip() for line in lines)
    return tuple(value for value in values if len(value) >= SHORTEST)
