"""Files of hub repositories, and errors of the hub as FtcliError.

huggingface_hub is imported inside functions, so that commands without a hub start fast.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from ftcli.errors import DataError, FtcliError, ModelError

# A hub slower than this for one header will not send gigabytes.
SECONDS_TO_ANSWER = 10.0

RepoType = Literal["model", "dataset"]


def hub_file(
    repo: str, name: str, *, revision: str | None = None, repo_type: RepoType = "model"
) -> Path:
    """Local path of one file of a hub repository, downloaded once.

    A hub that does not answer is detected early and not asked again: each later look-up of
    transformers would retry for half a minute. Raises ModelError or DataError (`hub_not_found`,
    `hub_gated`, `hub_unreachable`).
    """
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    try:
        url = hf_hub_url(repo, name, revision=revision, repo_type=repo_type)
        get_hf_file_metadata(url, timeout=SECONDS_TO_ANSWER)
        return Path(hf_hub_download(repo, name, revision=revision, repo_type=repo_type))
    except _failures() as error:
        found = hub_error(error, repo, repo_type)
        if found.code != "hub_unreachable":
            raise found from error
        cached = try_to_load_from_cache(repo, name, revision=revision, repo_type=repo_type)
        if not isinstance(cached, str):
            raise found from error
        _go_offline()
        return Path(cached)


def _go_offline() -> None:
    """Use the cache from now on, as with HF_HUB_OFFLINE=1; child processes too."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"


def require_reachable(source: str, revision: str | None) -> None:
    """Raise if a model is neither a local folder nor in the cache nor on the hub."""
    if not Path(source).is_dir():
        hub_file(source, "config.json", revision=revision)


def _failures() -> tuple[type[Exception], ...]:
    """Exceptions of huggingface_hub 2 and of its network library."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    return HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError, httpx2.HTTPError


def hub_files(repo: str, *, revision: str | None = None, repo_type: RepoType) -> list[str]:
    """Names of all files of a hub repository; raises as `hub_file`."""
    from huggingface_hub import HfApi

    try:
        return list(HfApi().list_repo_files(repo, revision=revision, repo_type=repo_type))
    except _failures() as error:
        raise hub_error(error, repo, repo_type) from error


def hub_error(error: Exception, repo: str, repo_type: RepoType) -> FtcliError:
    """The FtcliError for an exception of huggingface_hub (huggingface_hub.errors, version 2)."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    family = ModelError if repo_type == "model" else DataError
    match error:
        case GatedRepoError():
            return family(
                "hub_gated",
                f"{repo} is gated: accept its terms on its hub page, then log in with "
                "`hf auth login`",
            )
        case RevisionNotFoundError():
            return family("hub_not_found", f"{repo} has no such revision")
        case RepositoryNotFoundError() | HFValidationError():
            return family(
                "hub_not_found",
                f"no {repo_type} {repo!r}: neither a local folder nor a hub repository that you "
                "can access (private ones need `hf auth login`)",
            )
        case EntryNotFoundError():
            return family("hub_not_found", f"{repo} lacks a required file: {error}")
        case _:
            return family(
                "hub_unreachable",
                f"the hub does not answer, and {repo} is not in the local cache; give a local "
                "folder, or try again with a network",
            )
