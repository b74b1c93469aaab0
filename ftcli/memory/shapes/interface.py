"""Model types whose attention goes through transformers' interface with all that it is given."""

from __future__ import annotations

# Rows can be packed: proven equal to padded rows (tests/kernels/test_packed_families.py).
PACKED_TYPES = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
)
