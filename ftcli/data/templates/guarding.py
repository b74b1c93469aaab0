"""What no override of a template's environment sees is made a filter before it is compiled."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes


def guard(node: nodes.Node) -> None:
    """Count the rounds of loops, and look at what `a ~ b` and `[a, b]` make."""
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_guarded(item) for item in value])
        else:
            setattr(node, name, _guarded(value))


def _guarded(value: Any) -> Any:
    if isinstance(value, nodes.Node):
        guard(value)
    match value:
        case nodes.For():
            value.iter = filtered(value.iter, "counted")
        case nodes.Concat():
            return filtered(value, "bounded")
        case nodes.Compare() | nodes.Getitem() | nodes.Pair():
            _lighten(value)
        case nodes.List() | nodes.Dict() | nodes.Tuple() if not _is_written_out(value):
            return filtered(value, "shallow")
    return value


def _is_written_out(node: nodes.Literal) -> bool:
    """Whether it holds constants alone, or is no value but the target of an assignment."""
    is_target = getattr(node, "ctx", "load") != "load"
    return is_target or all(isinstance(inner, nodes.Const) for inner in node.iter_child_nodes())


def _lighten(node: nodes.Node) -> None:
    """Look at what is compared, and at what is looked up and so hashed."""
    match node:
        case nodes.Compare() if not _is_with_constant(node):
            node.expr = filtered(node.expr, "light")
            for operand in node.ops:
                operand.expr = filtered(operand.expr, "light")
        case nodes.Getitem() if not isinstance(node.arg, nodes.Const | nodes.Slice):
            node.arg = filtered(node.arg, "light")
        case nodes.Pair() if not isinstance(node.key, nodes.Const):
            node.key = filtered(node.key, "light")


def _is_with_constant(comparison: nodes.Compare) -> bool:
    """Whether nothing long is compared with anything but a constant."""
    sides = (comparison.expr, *(operand.expr for operand in comparison.ops))
    return len(sides) == 2 and any(isinstance(side, nodes.Const) for side in sides)


def filtered(node: Any, name: str) -> nodes.Filter:
    """The node's value through a filter."""
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno)
    return made
