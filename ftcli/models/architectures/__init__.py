"""Architectures: found by name, or measured from a config."""
