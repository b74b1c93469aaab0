"""Changes of a query that keep its meaning, and changes that do not.

Written by hand, and knowing nothing of how the judge of `ftcli/metrics/format` makes its databases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from sqlglot import exp, parse_one
from sqlglot.errors import ParseError

Tree = exp.Expression
Changed = Iterator[tuple[str, str]]


def right_ones(reference: str, prompt: str) -> Changed:
    """The same question put otherwise."""
    text = reference.strip().rstrip(";")
    yield "keywords in lower case", lowered(text)
    yield "line ends and a semicolon", re.sub(r" (FROM|WHERE|AND) ", r"\n  \1 ", text) + ";"
    yield from changed(text, "names in quotes", quoted)
    yield from changed(text, "an alias of the table", aliased)
    yield from changed(text, "AND turned round", turned_and)
    yield from changed(text, "comparison turned round", turned_comparison)
    yield from changed(text, "= as IN", equal_as_in)
    yield from changed(text, "≥ as NOT <", negated)
    yield "from a subquery", f"SELECT * FROM ({text})" if "ORDER" not in text else text


def wrong_ones(reference: str, prompt: str) -> Changed:
    """Another question."""
    text = reference.strip().rstrip(";")
    columns = columns_of(prompt)
    for name, change in (
        ("other column selected", lambda t: other_selected(t, columns)),
        ("other column compared", lambda t: other_compared(t, columns)),
        ("other literal", other_literal),
        ("literal in capitals", lambda t: retold(t, str.upper)),
        ("literal cut short", lambda t: retold(t, lambda s: s[:-1])),
        ("= as LIKE with %", equal_as_like),
        ("condition dropped", dropped),
        ("all conditions dropped", all_dropped),
        ("condition added", lambda t: added(t, columns)),
        ("AND as OR", and_as_or),
        ("> as ≥", lambda t: other_sign(t, {exp.GT: exp.GTE, exp.GTE: exp.GT})),
        ("< as ≤", lambda t: other_sign(t, {exp.LT: exp.LTE, exp.LTE: exp.LT})),
        ("> as <", lambda t: other_sign(t, {exp.GT: exp.LT, exp.LT: exp.GT})),
        ("= as <>", lambda t: other_sign(t, {exp.EQ: exp.NEQ, exp.NEQ: exp.EQ})),
        ("COUNT of the column", counted),
        ("MAX of the column", lambda t: aggregated(t, exp.Max)),
        ("other aggregate", other_aggregate),
        ("DISTINCT added or dropped", distinct),
        ("LIMIT 1 added", limited),
        ("order turned or dropped", other_order),
    ):
        yield from changed(text, name, change)


def changed(text: str, name: str, change: Callable[[Tree], Tree | None]) -> Changed:
    try:
        tree = parse_one(text, dialect="sqlite")
    except ParseError:
        return
    found = change(tree.copy()) if isinstance(tree, Tree) else None
    if found is not None and found != tree:
        yield name, found.sql(dialect="sqlite")


def columns_of(prompt: str) -> list[str]:
    """Columns of the tables of a prompt; what stands in two of them is left out."""
    names: list[str] = []
    for statement in re.findall(r"CREATE TABLE[^;]*;", prompt):
        tree = parse_one(statement, dialect="sqlite")
        names += [column.name for column in tree.this.expressions]
    return [name for name in names if names.count(name) == 1]


def lowered(text: str) -> str:
    parts = re.split(r"('(?:[^']|'')*'|\"[^\"]*\")", text)
    return "".join(p if i % 2 else p.lower() for i, p in enumerate(parts))


def quoted(tree: Tree) -> Tree:
    for column in tree.find_all(exp.Column):
        column.this.set("quoted", True)
    return tree


def aliased(tree: Tree) -> Tree | None:
    tables = list(tree.find_all(exp.Table))
    if len(tables) != 1 or tables[0].alias or len(list(tree.find_all(exp.Select))) > 1:
        return None
    old = tables[0].name
    tables[0].set("alias", exp.TableAlias(this=exp.to_identifier("t")))
    ordered = {node.this for node in tree.find_all(exp.Ordered)}
    for column in tree.find_all(exp.Column):
        if column.table in ("", old) and column not in ordered:
            column.set("table", exp.to_identifier("t"))
    return tree


def turned_and(tree: Tree) -> Tree | None:
    found = tree.find(exp.And)
    if found is None:
        return None
    left, right = found.this.copy(), found.expression.copy()
    found.set("this", right)
    found.set("expression", left)
    return tree


def turned_comparison(tree: Tree) -> Tree | None:
    turned: dict[type[Tree], type[Tree]] = {exp.GT: exp.LT, exp.LT: exp.GT, exp.EQ: exp.EQ}
    turned |= {exp.GTE: exp.LTE, exp.LTE: exp.GTE}
    where = tree.find(exp.Where)
    found = where.find(*turned) if where else None
    if found is None:
        return None
    new = turned[type(found)](this=found.expression.copy(), expression=found.this.copy())
    found.replace(new)
    return tree


def equal_as_in(tree: Tree) -> Tree | None:
    found = _comparison(tree, exp.EQ)
    if found is not None:
        found.replace(exp.In(this=found.this.copy(), expressions=[found.expression.copy()]))
    return tree


def negated(tree: Tree) -> Tree | None:
    found = _comparison(tree, exp.GTE)
    if found is not None:
        lower = exp.LT(this=found.this.copy(), expression=found.expression.copy())
        # NOT NULL < 1 is NULL, as NULL >= 1 is.
        found.replace(exp.Not(this=exp.Paren(this=lower)))
    return tree


def _comparison(tree: Tree, kind: type[Tree]) -> Tree | None:
    where = tree.find(exp.Where)
    for found in where.find_all(kind) if where else ():
        if isinstance(found.this, exp.Column) and not isinstance(found.expression, exp.Column):
            return found
    return None


def other_selected(tree: Tree, columns: list[str]) -> Tree | None:
    found = tree.expressions[0].find(exp.Column) if isinstance(tree, exp.Select) else None
    return _renamed(tree, found, columns)


def other_compared(tree: Tree, columns: list[str]) -> Tree | None:
    where = tree.find(exp.Where)
    return _renamed(tree, where.find(exp.Column) if where else None, columns)


def _renamed(tree: Tree, column: Tree | None, columns: list[str]) -> Tree | None:
    used = {found.name for found in tree.find_all(exp.Column)}
    free = [name for name in columns if name not in used]
    if column is None or not free or column.args.get("table"):
        return None
    column.set("this", exp.to_identifier(free[len(column.name) % len(free)], quoted=True))
    return tree


def other_literal(tree: Tree) -> Tree | None:
    literal = _literal(tree)
    if literal is None:
        return None
    if literal.is_string:
        literal.replace(exp.Literal.string(f"not {literal.this}"))
    else:
        literal.replace(exp.Literal.number(str(float(literal.this) + 7)))
    return tree


def retold(tree: Tree, change: Callable[[str], str]) -> Tree | None:
    literal = _literal(tree)
    # LIKE itself does not look at capitals.
    if literal is None or not literal.is_string or isinstance(literal.parent, exp.Like):
        return None
    literal.replace(exp.Literal.string(change(str(literal.this))))
    return tree


def _literal(tree: Tree) -> exp.Literal | None:
    where = tree.find(exp.Where)
    return where.find(exp.Literal) if where else None


def equal_as_like(tree: Tree) -> Tree | None:
    found = _comparison(tree, exp.EQ)
    if found is None or not isinstance(found.expression, exp.Literal):
        return None
    pattern = exp.Literal.string(f"%{found.expression.this}%")
    found.replace(exp.Like(this=found.this.copy(), expression=pattern))
    return tree


def dropped(tree: Tree) -> Tree | None:
    found = tree.find(exp.And)
    if found is not None:
        found.replace(found.this.copy())
    return tree


def all_dropped(tree: Tree) -> Tree | None:
    found = tree.find(exp.Where)
    if found is not None:
        found.pop()
    return tree


def added(tree: Tree, columns: list[str]) -> Tree | None:
    used = {found.name for found in tree.find_all(exp.Column)}
    free = [name for name in columns if name not in used]
    if not free or not isinstance(tree, exp.Select) or tree.find(exp.Group):
        return None
    condition = exp.GT(this=exp.column(free[0], quoted=True), expression=exp.Literal.number(3))
    return tree.where(condition)


def and_as_or(tree: Tree) -> Tree | None:
    found = tree.find(exp.And)
    if found is not None and not found.find_ancestor(exp.Join):
        found.replace(exp.Or(this=found.this.copy(), expression=found.expression.copy()))
    return tree


def other_sign(tree: Tree, signs: dict[type[Tree], type[Tree]]) -> Tree | None:
    where = tree.find(exp.Where)
    found = where.find(*signs) if where else None
    if found is None:
        return None
    new = signs[type(found)](this=found.this.copy(), expression=found.expression.copy())
    found.replace(new)
    return tree


def _plain_column(tree: Tree) -> Tree | None:
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or tree.find(exp.Group):
        return None
    found = tree.expressions[0]
    return found if isinstance(found, exp.Column) else None


def counted(tree: Tree) -> Tree | None:
    return aggregated(tree, exp.Count)


def aggregated(tree: Tree, kind: type[Tree]) -> Tree | None:
    found = _plain_column(tree)
    if found is None:
        return None
    found.replace(kind(this=found.copy()))
    return tree


def other_aggregate(tree: Tree) -> Tree | None:
    others: dict[type[Tree], type[Tree]] = {exp.Max: exp.Min, exp.Min: exp.Max, exp.Sum: exp.Avg}
    others |= {exp.Avg: exp.Sum}
    found = tree.find(*others)
    if found is None:
        return None
    found.replace(others[type(found)](this=found.this.copy()))
    return tree


def distinct(tree: Tree) -> Tree | None:
    # One row is distinct.
    if not isinstance(tree, exp.Select) or tree.find(exp.AggFunc) or tree.args.get("limit"):
        return None
    tree.set("distinct", None if tree.args.get("distinct") else exp.Distinct())
    return tree


def limited(tree: Tree) -> Tree | None:
    if not isinstance(tree, exp.Select) or tree.args.get("limit"):
        return None
    # An aggregate of all rows is one row already.
    if tree.find(exp.AggFunc) and not tree.args.get("group"):
        return None
    return tree.limit(1)


def other_order(tree: Tree) -> Tree | None:
    found = tree.find(exp.Ordered)
    if found is None:
        return None
    found.set("desc", not found.args.get("desc"))
    return tree
