from __future__ import annotations

from collections.abc import Callable

import pytest

from ftcli.cli import run


@pytest.mark.fault(8)
@pytest.mark.parametrize("dtype", ["nf4", "int4", "4bit", "int8"])
def test_a_merge_cannot_be_quantised(
    dtype: str, capsys: pytest.CaptureFixture[str], observed: Callable[[str], None]
) -> None:
    """Reported before the run is read."""
    assert run(["merge", "nowhere", "--dtype", dtype]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"--dtype {dtype}: a merge cannot be quantised")
    assert "KL 2.45, without any adapter 2.14" in error
    observed(f"{dtype}: exit 2")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dtype", "bf61"], "--dtype bf61: takes auto, bf16, fp16, fp32"),
        (["--allow-mismatch"], "--allow-mismatch needs --base original"),
    ],
)
def test_flags_that_contradict(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", "nowhere", *flags]) == 2
    assert words in capsys.readouterr().err


def test_help_names_only_what_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", "--help"]) == 0
    text = capsys.readouterr().out
    assert "<auto|bf16|fp16|fp32>" in text and "--allow-mismatch" in text
    assert not any(word in text for word in ("nf4", "int4", "int8", "4bit"))
