"""ftcli: from a general open model to a specialist, on one consumer GPU, from one recipe."""

from ftcli import environment  # before any library reads its variables

__all__ = ["environment"]
__version__ = "0.2.0"
