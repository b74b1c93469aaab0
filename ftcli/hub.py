"""One file of a hub repository, with the hub's ways of failing put into words.

huggingface_hub is imported inside: what needs no hub does not pay for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ftcli.errors import DataError, FtcliError, ModelError

RepoType = Literal["model", "dataset"]


def hub_file(
    repo: str, name: str, *, revision: str | None = None, repo_type: RepoType = "model"
) -> Path:
    """Local path of one file of a hub repository, downloaded once.

    Raises ModelError or DataError (code `hub_not_found`, `hub_gated`, `hub_unreachable`).
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repo, name, revision=revision, repo_type=repo_type))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise hub_error(error, repo, repo_type) from error


def hub_files(repo: str, *, revision: str | None = None, repo_type: RepoType) -> list[str]:
    """Names of all files of a hub repository; raises as `hub_file`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return list(HfApi().list_repo_files(repo, revision=revision, repo_type=repo_type))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise hub_error(error, repo, repo_type) from error


def hub_error(error: Exception, repo: str, repo_type: RepoType) -> FtcliError:
    """What a failure of the hub means for the user (huggingface_hub.errors, version 2)."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
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
        case LocalEntryNotFoundError():
            return family(
                "hub_unreachable",
                f"the hub does not answer, and {repo} is not in the local cache; give a local "
                "folder, or try again with a network",
            )
        case RevisionNotFoundError():
            return family("hub_not_found", f"{repo} has no such revision")
        case RepositoryNotFoundError() | HFValidationError():
            return family(
                "hub_not_found",
                f"no {repo_type} {repo!r}: neither a local folder here nor a hub repository you "
                "may see (private ones need `hf auth login`)",
            )
        case EntryNotFoundError():
            return family("hub_not_found", f"{repo} lacks a file that is needed: {error}")
        case _:
            return family("hub_unreachable", f"the hub does not answer for {repo}: {error}")
