"""A tiny random model of the same architecture, and a few rows."""
