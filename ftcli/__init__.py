"""ftcli: from a general open model to a specialist, on one consumer GPU, from one recipe."""

__version__ = "0.1.0"
