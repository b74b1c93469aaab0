"""What of an answer its prompt does not have, which facts it mentions, banned phrases."""

from ftcli.metrics.grounding.scorer import GroundingScorer, facts_text

__all__ = ["GroundingScorer", "facts_text"]
