"""Optimisations that do not change results, one per file."""
