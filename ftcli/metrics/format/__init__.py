"""Scores of the format that a recipe wants of every answer (`eval.format`)."""

from ftcli.metrics.format.scorer import FormatScorer, format_files, format_scorer

__all__ = ["FormatScorer", "format_files", "format_scorer"]
