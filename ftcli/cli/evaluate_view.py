"""An evaluation as a person reads it: scores side by side, what was forgotten, a few answers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ftcli.console import result, say, shown_path, table, width
from ftcli.metrics.scorer import BY_WORDS
from ftcli.metrics.scores import FEWEST_ROWS, percent, percents

if TYPE_CHECKING:
    from ftcli.stages.evaluate import EvalResult

SIDES = ("base", "prompted", "tuned")
# Of each answer side by side; the whole texts are in the run's eval/ folder.
LINES_SHOWN = 12
# The word of a verdict where a column has little room.
SHORT = {"no difference shown": "not shown", "no change shown": "not shown"}
# Our own labels are no longer; the name of a user's score may be.
LABEL_COLUMNS = 24


def show(found: EvalResult) -> None:
    """Print it."""
    report = found.report
    if found.stored:
        say("evaluated before; the same scores again")
    if report["rows_chose_checkpoint"]:
        say(
            "note: these rows chose the checkpoint; hold others out with data.test for a fair score"
        )
    sides = [side for side in SIDES if side in report]
    _scores(report, sides)
    for line in _behind_the_table(report):
        result(line)
    if "forgetting" in report:
        _forgetting(report["forgetting"])
    for sample in report["samples"]:
        result("")
        for line in side_by_side(sample, sides, width()):
            result(line)
    result("")
    for line in _where_all_rows_are(found):
        result(line)


def _where_all_rows_are(found: EvalResult) -> list[str]:
    """The page where it shows this evaluation, else this one's own file."""
    from ftcli.artifacts import RunFolder
    from ftcli.stages.report import evaluation_shown

    run = RunFolder(found.run_dir)
    answers = run.evaluations / found.report["answers"]
    first = evaluation_shown(run)
    if first is not None and first.key == answers.stem:
        return [f"all rows side by side: {shown_path(run.report)}"]
    lines = [f"answers  {shown_path(answers)}"]
    if first is not None:
        lines.append(f"the page shows another evaluation, that of {_rows(first.rows)}")
    return lines


def _scores(report: dict[str, Any], sides: Sequence[str]) -> None:
    """As many intervals as the width has room for: all, those of the scores, the tuned model's."""
    tried = [(sides, True), (sides, False), (["tuned"], False), ([], False)]
    for with_interval, differing in tried:
        heads, rows = _table(report, sides, with_interval, differing=differing)
        room = width() - _wide(heads, [["", *row[1:]] for row in rows]) + len(heads[0])
        labels = _within([row[0] for row in rows], max(room, LABEL_COLUMNS))
        rows = [[label, *row[1:]] for label, row in zip(labels, rows, strict=True)]
        if _wide(heads, rows) <= width():
            break
    table(heads, rows)
    if report["rows"] < FEWEST_ROWS:
        few = "rows are" if report["rows"] != 1 else "row is"
        sentence = (
            f"{report['rows']} {few} too few for a verdict ({FEWEST_ROWS} at least), and their "
            "intervals say little"
        )
        result("\n".join(textwrap.wrap(sentence, width())))


def _within(labels: Sequence[str], columns: int) -> list[str]:
    """Labels cut in their middle: names of one kind often begin or end alike."""
    half = (columns - 1) // 2
    return [
        label if len(label) <= columns else f"{label[: columns - 1 - half]}…{label[-half:]}"
        for label in labels
    ]


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"


def _table(
    report: dict[str, Any],
    sides: Sequence[str],
    with_interval: Sequence[str],
    *,
    differing: bool,
) -> tuple[list[str], list[list[str]]]:
    compared = report["differences"].get("tuned_vs_base")
    rows = []
    for name, kind in report["scores"].items():
        unit = kind["unit"]
        cells = [_score(report[side], name, unit, interval=side in with_interval) for side in sides]
        if compared:
            few = _too_few(report, "base", name)
            cells.append(_word(compared.get(name), unit, few=few, differing=differing))
        rows.append([kind["label"], *cells])
    rows += _calls(report, sides, columns=len(sides) + 1 + bool(compared))
    heads = [f"{report['rows']} held-out rows", *sides]
    of_which = "tuned – base" if differing or len(sides) > 2 else "difference"
    return [*heads, of_which] if compared else heads, rows


def _wide(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns that the table takes on the terminal."""
    widest = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    return 2 + sum(widest) + 3 * (len(heads) - 1)


def _score(scores: dict[str, Any], name: str, unit: str, *, interval: bool) -> str:
    if name not in scores:
        return "–"
    is_share = unit == "share"
    value = (percent if is_share else _value)(scores[name])
    if not interval:
        return value
    ends = scores[f"{name}_interval"]
    low, high = percents(*ends) if is_share else map(_value, ends)
    return f"{value} ({low.removesuffix('%')}–{high.removesuffix('%')})"


def _too_few(report: dict[str, Any], other: str, name: str) -> bool:
    """Whether fewer rows than a verdict takes count for both sides."""
    counted = report["counted"]
    kept = [counted[side][name]["rows"] for side in (other, "tuned") if name in counted[side]]
    return min(kept, default=FEWEST_ROWS) < FEWEST_ROWS


def _word(difference: dict[str, Any] | None, unit: str, *, few: bool, differing: bool) -> str:
    """`better`, and where there is room by how much: `better  +70 (+47 to +85) points`."""
    if difference is None:
        return ""
    if difference["same"]:
        return "the same"
    verdict: str = difference["verdict"]
    word = "too few rows" if few else SHORT.get(verdict, verdict)
    if not differing:
        return word
    value, low, high = (
        _signed(each, unit) for each in (difference["difference"], *difference["interval"])
    )
    return f"{word}  {value} ({low} to {high}){' points' if unit == 'share' else ''}"


def _signed(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:+.0f}"
    return f"{value:+,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def _calls(report: dict[str, Any], sides: Sequence[str], columns: int) -> list[list[str]]:
    """What a call takes of each side."""
    rows = [
        ["tokens a prompt", *(_plain(report[side].get("prompt_tokens")) for side in sides)],
        ["tokens/s", *(_plain(report[side].get("tokens_per_second")) for side in sides)],
    ]
    shown = [row for row in rows if any(cell != "–" for cell in row[1:])]
    return [row + [""] * (columns - len(row)) for row in shown]


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _behind_the_table(report: dict[str, Any]) -> list[str]:
    """What the data's own answers score, what is not shown and how many rows it would take; and
    tuning against prompting."""
    kinds = report["scores"]
    lines = [
        line
        for each in report.get("references", {}).values()
        for line in textwrap.wrap(each["words"], width())
    ]
    for against, found in report["differences"].items():
        other = against.removeprefix("tuned_vs_")
        unclear = [
            name
            for name, each in found.items()
            if _is_unclear(each) and not _too_few(report, other, name) and name not in BY_WORDS
        ]
        if unclear:
            wanted = [found[name]["rows_to_show"] for name in unclear]
            more = max((rows for rows in wanted if rows), default=None)
            named = ", ".join(kinds[name]["label"] for name in unclear)
            rows = f" (about {more:,} for all of them)" if more else ""
            lines += textwrap.wrap(
                f"tuned against {other}: no difference shown with {report['rows']} rows in "
                f"{named}; take more{rows}",
                width(),
            )
        if other == "prompted" and (shown := _against_prompting(found, kinds)):
            lines += textwrap.wrap(f"tuned against prompted: {shown}", width())
    return lines


def _is_unclear(difference: dict[str, Any]) -> bool:
    return difference["verdict"] == "no difference shown" and not difference["same"]


def _against_prompting(found: dict[str, Any], kinds: dict[str, Any]) -> str:
    parts = []
    for word in ("better", "worse"):
        named = {name for name, each in found.items() if each["verdict"] == word}
        names = [kinds[name]["label"] for name in found if name in named - BY_WORDS]
        if names:
            parts.append(f"{word} in {', '.join(names)}")
    return "; ".join(parts)


def _forgetting(found: dict[str, Any]) -> None:
    labels = {
        "text": ("general text, ppl", _value),
        "instructions": ("instructions, ppl", _value),
        "follows": ("follows instructions", percent),
        "stops": ("stops by itself", percent),
    }
    rows = [
        [label, shown(found[name]["before"]), shown(found[name]["after"]), _short(found[name])]
        for name, (label, shown) in labels.items()
        if name in found
    ]
    result("")
    table(["what it forgot", "base", "tuned", ""], rows)


def _short(measured: dict[str, Any]) -> str:
    words: str = measured["words"]
    return words.partition(": take more")[0]


def _value(value: float) -> str:
    """With as many digits as say something."""
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def side_by_side(sample: dict[str, Any], sides: Sequence[str], columns: int) -> list[str]:
    """A prompt, and below it the answers in columns."""
    lines = [f"prompt  {sample['file']}:{sample['line']}"]
    lines += [f"  {line}" for line in _wrapped(sample["prompt"], columns - 2)]
    wide = (columns - 2 * len(sides)) // len(sides)
    cells = [_cell(sample[side], wide - 1) for side in sides]
    lines.append("  ".join(side.ljust(wide) for side in sides).rstrip())
    for row in range(max(len(cell) for cell in cells)):
        parts = [cell[row] if row < len(cell) else "" for cell in cells]
        lines.append("  ".join(part.ljust(wide) for part in parts).rstrip())
    return lines


def _cell(answer: dict[str, Any], columns: int) -> list[str]:
    """An answer's first lines, and whether it was cut."""
    lines = _wrapped(answer["text"].strip(), columns)
    if len(lines) > LINES_SHOWN:
        lines = [*lines[: LINES_SHOWN - 1], "…"]
    return lines if answer["stopped"] else [*lines, f"(cut after {answer['tokens']} tokens)"]


def _wrapped(text: str, columns: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, columns) or [""]]
