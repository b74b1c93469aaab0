"""The judge: terms that the prompt does not give, facts that are left out, banned phrases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from ftcli.metrics.faithfulness.banned import Banned
from ftcli.metrics.faithfulness.claims import Claim, ClaimReader
from ftcli.metrics.faithfulness.coverage import missing_from
from ftcli.metrics.faithfulness.given import given
from ftcli.metrics.faithfulness.support import Support
from ftcli.metrics.faithfulness.text import Text
from ftcli.metrics.scorer import ExampleResult, Finding, Question, ScoreKind
from ftcli.recipe.faithfulness import Faithfulness

SCORES = {
    "invents": ScoreKind("terms not in the prompt", "share", "lower"),
    "coverage": ScoreKind("facts mentioned", "share", "higher"),
    "banned_claims": ScoreKind("makes a banned claim", "share", "lower"),
}
# Facts kept read: every row is judged once a side.
READ_FACTS = 512


class FaithfulnessJudge:
    """Compares answers with their facts."""

    def __init__(self, wanted: Faithfulness, banned: Sequence[str]) -> None:
        self._reader = ClaimReader(wanted)
        self._banned = Banned(banned) if banned else None
        self._ignored = frozenset(key.lower() for key in wanted.ignore)
        self._support = lru_cache(READ_FACTS)(self._read)

    def _read(self, facts: str) -> Support:
        return self._reader.support(given(facts))

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """Every score; that of banned claims only where some are listed."""
        no_list = {"banned_claims"} if self._banned is None else set()
        return {name: kind for name, kind in SCORES.items() if name not in no_list}

    def score(self, answer: str, question: Question) -> ExampleResult:
        """Counts and findings of one answer.

        `invents` and `banned_claims` count answers, `coverage` facts.
        """
        support = self._support(question.facts)
        text = Text(answer)
        claims = self._reader.claims(text, support)
        findings = [_finding(answer, claim) for claim in claims if not claim.supported]
        counts = {"invents": (float(bool(findings)), 1.0)}
        items = [item for item in support.facts.items if item.key.lower() not in self._ignored]
        if items:
            lacking = missing_from(text, items, self._reader.colours, self._reader.materials)
            counts["coverage"] = (float(len(items) - len(lacking)), float(len(items)))
            findings += [Finding("not mentioned", f"{item.key}: {item.value}") for item in lacking]
        if self._banned is not None:
            said = list(self._said(self._banned, text, support))
            counts["banned_claims"] = (float(bool(said)), 1.0)
            findings += said
        return ExampleResult(counts, tuple(findings))

    def _said(self, banned: Banned, text: Text, support: Support) -> Iterator[Finding]:
        for claim in banned.claims(text, support.names.places(text)):
            start, end = text.span(claim.first, claim.after)
            yield Finding("banned claim", f"{claim.phrase!r} is on the list", start, end)


def _finding(answer: str, claim: Claim) -> Finding:
    words = " ".join(answer[claim.start : claim.end].split())
    return Finding(
        f"{claim.kind} not in the prompt", f"{words!r} is not in the facts", claim.start, claim.end
    )
