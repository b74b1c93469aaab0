"""Sizes of a language model: what `config.json` says, and the parameter counts that follow.

The counts are those of the model that transformers builds; tests/memory/test_shapes.py.
"""

from ftcli.memory.shapes.config import shape_from_config
from ftcli.memory.shapes.known import find_shape, from_here, hub_id_of, model_source
from ftcli.memory.shapes.shape import Shape, Targets

__all__ = [
    "Shape",
    "Targets",
    "find_shape",
    "from_here",
    "hub_id_of",
    "model_source",
    "shape_from_config",
]
