"""A hub that refuses, lacks a file, or does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ftcli.errors import DataError, ModelError
from ftcli.hub import hub_error, hub_file, require_reachable


def answered(kind: type[Exception], status: int) -> Exception:
    """The error of huggingface_hub for a response with this status."""
    request = httpx2.Request("HEAD", "https://hub.invalid/model")
    return kind("refused", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (answered(GatedRepoError, 403), "hub_gated", "accept its terms"),
        (answered(RepositoryNotFoundError, 401), "hub_not_found", "no model 'owner/name'"),
        (answered(RevisionNotFoundError, 404), "hub_not_found", "has no such revision"),
        (answered(RemoteEntryNotFoundError, 404), "hub_not_found", "lacks a required file"),
        (HFValidationError("bad"), "hub_not_found", "neither a local folder"),
        (httpx2.ConnectError("no route"), "hub_unreachable", "does not answer"),
    ],
)
def test_each_failure_has_its_sentence(error: Exception, code: str, words: str) -> None:
    found = hub_error(error, "owner/name", "model")
    assert isinstance(found, ModelError)
    assert found.code == code and words in found.message
    assert isinstance(hub_error(error, "owner/name", "dataset"), DataError)


def test_a_silent_hub_falls_back_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import huggingface_hub.constants

    def silent(*_: Any, **__: Any) -> None:
        raise httpx2.ConnectTimeout("no answer")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", silent)
    with pytest.raises(ModelError, match="not in the local cache"):
        hub_file("owner/name", "config.json")
    cached = tmp_path / "config.json"
    cached.write_text("{}")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(cached))
    assert not huggingface_hub.is_offline_mode()
    assert hub_file("owner/name", "config.json") == cached
    assert huggingface_hub.is_offline_mode(), "it is not asked again"


def test_a_local_folder_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", asked)
    require_reachable(str(tmp_path), None)


def test_a_name_that_no_hub_can_hold_is_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"no model '\.\./no'") as caught:
        hub_file("../no", "config.json")
    assert caught.value.code == "hub_not_found"
