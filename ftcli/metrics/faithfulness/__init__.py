"""Terms of answers that their prompts do not give, facts that are mentioned, banned phrases."""

from __future__ import annotations

import re
from pathlib import Path

from ftcli.console import shown_path
from ftcli.errors import DataError
from ftcli.metrics.format.time_limit import SECONDS, TimeIsUp, within
from ftcli.metrics.scorer import Scorer
from ftcli.recipe.faithfulness import Faithfulness

__all__ = ["facts_of", "faithfulness_files", "faithfulness_scorer"]


def faithfulness_scorer(wanted: Faithfulness, base: Path) -> Scorer:
    """Look at answers as a recipe in the folder `base` asks for.

    Raises DataError (`banned_claims`) for a list that cannot be read.
    """
    from ftcli.metrics.faithfulness.scorer import FaithfulnessJudge

    return FaithfulnessJudge(wanted, _phrases(wanted, base))


def faithfulness_files(wanted: Faithfulness, base: Path) -> list[Path]:
    """Files that the scores depend on besides the answers."""
    return [base / wanted.banned] if isinstance(wanted.banned, str) else []


def facts_of(wanted: Faithfulness | None, prompt: str) -> str:
    """The facts in a text, all user turns of a row: what the recipe's expression finds, else all.

    Raises DataError (`facts_expression`) for an expression that finds no end.
    """
    if wanted is None or wanted.facts is None:
        return prompt
    try:
        with within():
            found = re.search(wanted.facts, prompt)
    except TimeIsUp as error:
        message = (
            f"eval.faithfulness.facts: {wanted.facts!r} took more than {SECONDS:.0f} s over one "
            f"prompt of {len(prompt):,} characters; write it without repeats inside repeats"
        )
        raise DataError("facts_expression", message) from error
    if found is None:
        return prompt
    return (found["facts"] if "facts" in found.re.groupindex else found[0]) or ""


def _phrases(wanted: Faithfulness, base: Path) -> list[str]:
    if not isinstance(wanted.banned, str):
        return wanted.banned
    file = base / wanted.banned
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        message = f"eval.faithfulness.banned: {why}; it holds one phrase a line"
        raise DataError("banned_claims", message, file=shown_path(file)) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
