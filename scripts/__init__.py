"""Programs of the repository, not of the package: `python -m scripts.NAME` in its root."""
