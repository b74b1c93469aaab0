"""Check the files that only `ftcli eval` needs, before anything long begins."""

from __future__ import annotations

from collections.abc import Iterator

from ftcli.config.evaluation import file_names
from ftcli.config.loader import Loaded
from ftcli.errors import DataError
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.grounding import GroundingScorer


def require_scored_files(loaded: Loaded) -> None:
    """Raise DataError where `ftcli eval` could not use a file that the recipe's `eval` names.

    Codes: `answer_schema`, `answer_table`, `banned_phrases`, or what reading rows raises.
    """
    for error in _missing(loaded):
        raise error
    wanted = loaded.recipe.eval
    if wanted.format is not None:
        format_scorer(wanted.format, loaded.base)
    if wanted.grounding is not None:
        GroundingScorer(wanted.grounding, loaded.base, ())


def _missing(loaded: Loaded) -> Iterator[DataError]:
    for named in file_names(loaded.recipe.eval):
        path = loaded.base / named.name
        if not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "no such file"
            file, line = loaded.place(named.key)
            yield DataError(
                named.code,
                f"{named.key}: {named.name}: {what}; looked for in {path.parent}, as paths "
                "are relative to the recipe",
                file=file,
                line=line,
            )
