"""Rows of the user's files → examples: read, recognised, cleaned, split. Pure Python, streamed."""
