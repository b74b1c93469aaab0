"""Texts that count as secrets, and texts that do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftcli.console import print_message
from ftcli.redact import redact, secret_in

TOKEN = "hf_" + "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def no_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment and a cache without secrets."""
    monkeypatch.setattr(os, "environ", {"HF_HOME": str(tmp_path), "PATH": "/usr/bin"})


@pytest.mark.parametrize(
    ("text", "redacted", "kind"),
    [
        (f"token {TOKEN}.", "token ***.", "a token"),
        ("sk-" + "a1" * 15, "***", "a token"),
        ("ghp_" + "a1" * 18, "***", "a token"),
        ("AKIA" + "A1" * 8, "***", "a token"),
        ("https://me:word@host/x", "https://***@host/x", "a password (user:password@)"),
        ("https://:word@host", "https://***@host", "a password (user:password@)"),
        (
            "no run: https:/me:word@host/x",
            "no run: https:/***@host/x",
            "a password (user:password@)",
        ),
        ("s3:/me:word@host", "s3:/***@host", "a password (user:password@)"),
        ("C:/runs/a:b and a:/b/c:d@e", None, None),
        ("see https://host:80/a@b and me@host", None, None),
        ("git+ssh://git@host/owner/name", None, None),
        ("hf_hub and sk-learn, a hf_token", None, None),
        ("Qwen/Qwen2.5-7B-Instruct", None, None),
    ],
)
def test_secrets_are_known_by_their_form(text: str, redacted: str | None, kind: str | None) -> None:
    assert redact(text) == (text if redacted is None else redacted)
    assert secret_in(text) == kind


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("HF_TOKEN", "no-form-at-all", True),
        ("WANDB_API_KEY", "0123456789", True),
        ("AWS_SECRET_ACCESS_KEY", "0123456789", True),
        ("mlflow_tracking_password", "0123456789", True),
        ("HF_TOKEN", "short", False),
        ("HF_TOKEN_PATH", "/home/me/token", False),
        ("KEYBOARD", "0123456789", False),
        ("DB_PASS", "0123456789", True),
        ("PGPASSWORD", "0123456789", True),
        ("MYSQL_PWD", "0123456789", True),
        ("GITHUB_PAT", "0123456789", True),
        ("SLACK_WEBHOOK_URL", "https://hooks.example/T0/B0", True),
        ("SSH_PRIVATE_KEY", "0123456789", True),
        ("PWD", "/home/me/work", False),
        ("OLDPWD", "/home/me/work", False),
        ("LD_LIBRARY_PATH", "/usr/local/lib", False),
        ("SEARCH_COMPASS", "0123456789", False),
        ("GIT_PATCH", "0123456789", False),
        ("MODEL_URL", "https://host.example/x", False),
    ],
)
def test_values_of_the_environment_are_known_by_their_names(
    name: str, value: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, name, value)
    assert redact(f"a {value} b") == ("a *** b" if known else f"a {value} b")
    assert secret_in(value) == (f"the secret in {name}" if known else None)


@pytest.mark.parametrize("place", ["token", "stored_tokens", "elsewhere"])
def test_tokens_in_files_are_known(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = "[me]\nhf_token = formless-token\n" if place == "stored_tokens" else "formless-token\n"
    (tmp_path / place).write_text(kept)
    if place == "elsewhere":
        monkeypatch.setitem(os.environ, "HF_TOKEN_PATH", str(tmp_path / place))
    print_message("it is formless-token")
    assert capsys.readouterr().err == "it is ***\n"
    assert secret_in("a formless-token") == f"the secret in {tmp_path / place}"
