"""The part of a form that is SQL: one query, spelt or answering as the reference does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ftcli.metrics.format.made_rows import Trial, trials
from ftcli.metrics.format.named_table import open_tables
from ftcli.metrics.format.part import Seen, hit, share, shown
from ftcli.metrics.format.prompt_tables import asked_tables
from ftcli.metrics.format.sandbox import Sandbox
from ftcli.metrics.format.sql_text import SqlText, is_ordered, read_sql_text, spelt_alike
from ftcli.metrics.scorer import Finding, Question, ScoreKind
from ftcli.recipe import SqlFormat

# A reference and its question → databases to run it on, or the reason why there are none.
Trials = Callable[[SqlText, Question], tuple[list[Trial], str | None]]

NO_RESULT_TELLS = "no result tells a right query from a wrong one"


@dataclass(frozen=True)
class SqlPart:
    """The whole answer is one query, and one that only reads."""

    dialect: str
    trials: Trials | None
    table: str | None = None
    """As the recipe names it."""
    untold: dict[Question, str | None] = field(default_factory=dict)
    """Every question so far with a reference → why no result of that tells, if none does."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        kinds = {"sql_valid": share("one SQL query"), "sql_match": share("spelt as the reference")}
        if self.trials is not None:
            kinds["sql_runs"] = share("runs on the table")
            kinds["execution_match"] = share("same result")
            kinds["execution_tested"] = ScoreKind("rows whose result tells", "share", None)
        return kinds

    def look(self, answer: str, question: Question) -> Seen:
        query = read_sql_text(answer, self.dialect)
        reference = read_sql_text(question.reference, self.dialect)
        counts = {"sql_valid": hit(query.fault is None)}
        findings = [query.fault] if query.fault else []
        if reference.fault is not None:
            why = f"the reference itself is not a query ({reference.fault.message})"
            findings.append(_not_counted(why))
        else:
            alike = query.fault is None and spelt_alike(query, reference, self.dialect)
            counts["sql_match"] = hit(alike)
        if self.trials is not None:
            ran = _run(query, reference, *self._trials(reference, question))
            counts |= ran.counts
            findings += ran.findings
        return Seen(query.fault is None, counts, tuple(findings))

    def _trials(self, reference: SqlText, question: Question) -> tuple[list[Trial], str | None]:
        if self.trials is None or reference.fault is not None:
            return [], None
        found, why = self.trials(reference, question)
        self.untold[question] = None if found else why or NO_RESULT_TELLS
        return found, why

    def warnings(self) -> list[str]:
        """That no row at all could be tested by its result, and why the first one could not."""
        reasons = list(self.untold.values())
        if not reasons or None in reasons:
            return []
        rows = f"{len(reasons)} references" if len(reasons) > 1 else "the one reference"
        ask = (
            "does each prompt hold its CREATE TABLE"
            if self.table == "prompt"
            else ("is it the right table, and is table_name what the queries call it")
        )
        return [
            f"eval.format.table {self.table}: none of {rows} can be tested by its result, so that "
            f"there is no execution_match; the first: {shown(str(reasons[0]))}; {ask}?"
        ]


def sql_part(wanted: SqlFormat, base: Path) -> SqlPart:
    """Raises DataError (`answer_table`) for a table's file; it is relative to `base`."""
    match wanted.table:
        case None:
            return SqlPart(wanted.dialect, None)
        case "prompt":
            return SqlPart(wanted.dialect, _on_prompt, "prompt")
        case name:
            tables = open_tables(name, base, wanted.table_name)
            return SqlPart(wanted.dialect, lambda reference, _: _on_file(tables, reference), name)


def _on_prompt(reference: SqlText, question: Question) -> tuple[list[Trial], str | None]:
    declared = asked_tables(question)
    if not declared.tables:
        return [], "its prompt holds no CREATE TABLE"
    return trials(declared, reference)


def _on_file(tables: Sandbox, reference: SqlText) -> tuple[list[Trial], str | None]:
    wanted = tables.run(reference.text)
    if wanted.fault is not None:
        return [], f"the reference does not run: {wanted.fault}"
    if wanted.says_nothing:
        return [], "the reference finds nothing in the table, as any wrong query might"
    return [Trial(tables, wanted)], None


def _run(query: SqlText, reference: SqlText, tried: list[Trial], why: str | None) -> Seen:
    """Counts of running an answer; a row whose reference tells nothing counts in none of them."""
    counts = {"execution_tested": hit(tried)}
    if not tried:
        return Seen(True, counts, (_not_counted(why),) if why else ())
    if query.fault is not None:
        return Seen(False, counts | {"sql_runs": hit(False), "execution_match": hit(False)})
    found = [trial.database.run(query.text) for trial in tried]
    ordered = is_ordered(reference)
    same = [
        outcome.same(trial.wanted, ordered=ordered)
        for outcome, trial in zip(found, tried, strict=True)
    ]
    fault = next((outcome.fault for outcome in found if outcome.fault is not None), None)
    counts |= {"sql_runs": hit(fault is None), "execution_match": hit(all(same))}
    findings: tuple[Finding, ...] = ()
    if fault is not None:
        findings = (Finding("does not run", shown(fault)),)
    elif not all(same):
        wrong = f"another result than the reference in {same.count(False)} of {len(same)}"
        what = "databases made for it" if len(same) > 1 else "tables"
        findings = (Finding("other result", f"{wrong} {what}"),)
    return Seen(all(same), counts, findings)


def _not_counted(why: str) -> Finding:
    return Finding("reference", f"{shown(why)}: this row is not counted")
