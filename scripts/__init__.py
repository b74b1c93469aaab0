"""Programs of the project, not of the package: `python -m scripts.NAME` in its folder."""
