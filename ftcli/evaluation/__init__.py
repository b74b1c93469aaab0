"""Base against tuned: scores, statistics, verdicts."""
