"""scripts/check_scores.py: other code comes to ftcli's scores, and tells a changed one."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.metrics.intervals import ratio_interval
from tests.evaluated import finished_run, unevaluated
from tests.test_end_to_end import ask

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import check_intervals  # noqa: E402
import check_scores  # noqa: E402
import check_sql  # noqa: E402
from check_format import Form  # noqa: E402

# What ftcli takes for its scores, and itself.
NOT_INDEPENDENT = {"ftcli", "rouge_score", "sacrebleu", "scipy", "jsonschema", "sqlglot"}
THINGS = ("kettle", "lamp", "chair", "drum", "scarf", "spade", "kite", "mug", "bowl", "rug")
CREATE = "CREATE TABLE goods (name TEXT, colour TEXT, price REAL)"
Answers = Callable[[int, str], str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return finished_run(tmp_path_factory.mktemp("checking"), tiny_model, max_steps=4)


@pytest.fixture
def fresh(trained: Path) -> Path:
    return unevaluated(trained)


@pytest.fixture
def judged(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Evaluate rows as though the models had answered these texts; returns the script's flags."""

    def evaluate(rows: list[tuple[str, str]], form: dict[str, Any], answers: Answers) -> list[str]:
        data = tmp_path / "held.jsonl"
        pairs = [{"prompt": prompt, "completion": reference} for prompt, reference in rows]
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        flags = ("--data", data, "--no-forgetting")
        ask(capsys, "eval", fresh, *flags)
        for file in (fresh / "eval" / "work").glob("*.jsonl"):
            _answer(file, answers, tuned=file.name.startswith("tuned"))
        ask(capsys, "eval", fresh, *flags, "--set", f"eval.format={json.dumps(form)}")
        return [str(fresh)]

    return evaluate


def _answer(file: Path, answers: Answers, *, tuned: bool) -> None:
    """Other texts in the place of those that a model has given."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        for answer in line.get("answers", ()):
            answer[1] = answers(answer[0], "tuned" if tuned else "base")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def checked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    code = check_scores.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def test_nothing_of_it_is_what_it_checks() -> None:
    for file in SCRIPTS.glob("check_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & NOT_INDEPENDENT, file.name


def test_the_models_own_answers_and_losses(
    fresh: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "eval", fresh)
    code, said = checked(capsys, fresh, "--model", tiny_model, "--rows", "3")
    assert code == 0, said
    assert said.count("\nloss of rows.jsonl:") == said.count("\nanswer to rows.jsonl:") == 3
    assert "parts at token" not in said
    assert "tokens_per_second: a time" in said and "forgetting: its rows" in said


def test_another_model_is_not_the_base(
    fresh: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        other.model.norm.weight.mul_(-1)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "other")
    ask(capsys, "eval", fresh, "--no-forgetting")
    code, said = checked(capsys, fresh, "--model", tmp_path / "other", "--rows", "1")
    assert code == 1
    differs = [line for line in said.splitlines() if line.startswith("differs: ")]
    assert "loss of rows.jsonl:" in differs[0] and "parts at token 1;" in differs[1]


def record(number: int) -> dict[str, Any]:
    sizes = {"width": number, "height": number / 2}
    colours = ["red", "blue", "red"][: number % 4]
    return {"name": THINGS[number], "size": sizes, "colours": colours, "for": None}


def json_answer(row: int, side: str) -> str:
    """Right, spelt otherwise, wrong in one field or another, invented, broken."""
    true = record(row)
    changed = [
        true,
        true | {"size": {"width": float(row), "height": 9}},
        true | {"colours": ["blue", "red"]},
        true | {"weight": 3},
        {name: value for name, value in true.items() if name != "for"},
        true | {"name": True},
    ][(row + (side == "tuned")) % 6]
    text = json.dumps(changed)
    if row in (4, 7):
        text = {4: f"```json\n{text}\n```", 7: text.replace('"for"', '"name"')}[row]
    return text if side == "tuned" or row != 9 else text[:-1]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"type": "object", "additionalProperties": {"type": "number", "maximum": 8}},
        "colours": {"type": "array", "items": {"enum": ["red", "blue"]}},
    },
    "required": ["name", "size", "for"],
}


@pytest.mark.parametrize("asked", [{"schema": SCHEMA}, {"keys": list(record(1))}, {}])
def test_json(
    judged: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], asked: dict[str, Any]
) -> None:
    rows = [(f"Record of {row}?", json.dumps(record(row))) for row in range(9)]
    rows.append(("Record of 9?", "none"))  # no record: none of its fields can be compared
    flags = judged(rows, {"type": "json", **asked, "characters": {"max": 100}}, json_answer)
    code, said = checked(capsys, *flags)
    assert code == 0, said
    names = ["json_valid", "field_accuracy", "field_f1.size.height", "length_kept", "format_rate"]
    for name in [*names, *["json_conforming"][: len(asked)]]:
        assert f"\n{name} " in said
    assert "*" not in said  # nothing but its own counts


def test_text_with_sections_and_an_expression(
    judged: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [
        "# Mug\nA red mug.\n## Care\nWash it.",
        "## Care\nWash it.\n# Mug\nA red mug.",
        "# Mugs\nA red mug. A red mug. A red mug. A red mug.",
        "Ünder 5 € 日本 ก",
        "",
        "# Mug",
    ]

    def answer(row: int, side: str) -> str:
        return texts[(row + 2 * (side == "tuned")) % len(texts)]

    rows = [(f"Describe {row}.", texts[row % 4]) for row in range(12)]
    form = {"type": "regex", "pattern": "#.*(\n.*)*", "sections": ["# Mug", "## Care"]}
    flags = judged(rows, form | {"words": {"min": 2, "max": 9}}, answer)
    code, said = checked(capsys, *flags)
    assert code == 0, said
    for name in ("pattern_match", "sections_present", "length_kept", "format_rate"):
        assert f"\n{name} " in said
    assert "*" not in said


def query(row: int) -> str:
    return [
        f"SELECT name FROM goods WHERE price > {row}",
        "SELECT colour, count(*) FROM goods GROUP BY colour",
        f"SELECT name FROM goods WHERE colour = 'red' ORDER BY price LIMIT {row + 1}",
        "SELECT name FROM goods WHERE price > 1000",
    ][row % 4]


def sql_answer(row: int, side: str) -> str:
    true = query(row)
    changed = [
        true,
        true.lower().replace("goods", '"Goods"') + " ;",
        true.replace("name", "colour"),
        f"{true}; {true}",
        true.replace("SELECT", "DELETE"),
        true.replace("goods", "shops"),
        true.replace("FROM", "FORM"),
        f"WITH g AS (SELECT * FROM goods) {true.replace('goods', 'g')}",
        f"```sql\n{true}\n```",
        true.replace("colour", "price"),
    ]
    return changed[(row + 3 * (side == "tuned")) % len(changed)]


@pytest.mark.parametrize("table", [None, "goods.csv", "prompt"])
def test_sql(
    judged: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    table: str | None,
) -> None:
    form: dict[str, Any] = {"type": "sql"}
    if table == "goods.csv":
        lines = [f"{name},{('red', 'blue')[i % 2]},{i + 0.5}" for i, name in enumerate(THINGS)]
        (tmp_path / table).write_text("name,colour,price\n" + "\n".join(lines) + "\n")
        form |= {"table": str(tmp_path / table), "table_name": "goods"}
    elif table is not None:
        form["table"] = table
    rows = [(f"{CREATE}\n\nQuestion {row}", query(row)) for row in range(20)]
    code, said = checked(capsys, *judged(rows, form, sql_answer))
    assert code == 0, said
    assert "\nsql_valid " in said and "\nsql_match " in said
    own, taken = (re.search(rf"\nexecution_match{star} +\d", said) for star in ("", r" \*"))
    assert (bool(own), bool(taken)) == (table == "goods.csv", table == "prompt")
    made = "\n  execution_match *: table: prompt makes its own databases\n"
    assert (made in said) == (table == "prompt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select a from t ; -- so", True),
        ("WITH t AS (SELECT 1 AS a) SELECT a FROM t", True),
        ("SELECT a FROM t; This lists them.", False),
        ("SELECT a FROM t WHERE b = ';'", True),
        ("WITH t AS (SELECT 1) DELETE FROM u", False),
        ("VALUES (1)", False),
        ("SELECT", False),
        ("", False),
    ],
)
def test_what_is_one_query(text: str, expected: bool) -> None:
    assert check_sql.is_query(text, CREATE) is expected


def test_fields_that_only_some_records_have_count_in_every_row() -> None:
    rows = [{"reference": '{"a": 1}'}, {"reference": '{"a": 1, "b": [2, 2]}'}]
    answers = ['{"a": 1.0, "b": 5}', '{"a": true, "b": [2, 3]}']
    first, second = Form({"type": "json"}, Path()).count(answers, rows)
    assert (first["field_f1.b"], second["field_f1.b"]) == ((0.0, 1.0), (2.0, 4.0))
    assert (first["field_accuracy"], second["field_accuracy"]) == ((1.0, 2.0), (0.0, 2.0))


def test_intervals_at_values_that_are_known() -> None:
    z2 = 1.959964**2
    assert check_intervals.wilson(0, 20) == pytest.approx((0, z2 / (20 + z2)), abs=1e-6)
    # Tables of Student's t at 97.5%.
    for freedom, point in {1: 12.706, 9: 2.262, 30: 2.042}.items():
        assert check_intervals._student(freedom) == pytest.approx(point, abs=5e-4)
    # Without hits in common the correlation is 0 and the Wilson intervals are laid together.
    low, high = check_intervals.newcombe([0.0] * 10, [1.0] * 10)
    assert (low, high) == pytest.approx((1 - 2**0.5 * z2 / (10 + z2), 1.0))


def test_another_resampling_agrees_and_a_wider_one_does_not() -> None:
    values = [float(number % 7) for number in range(40)]
    sample = check_intervals.resampled_ratio(values, [1.0] * 40)
    low, high = ratio_interval(values, [1.0] * 40)
    assert sample.agrees((low, high))
    assert not sample.agrees((low - 0.25 * (high - low), high))
    assert not sample.agrees((low, high + 0.25 * (high - low)))


@pytest.mark.parametrize(
    ("place", "change", "named"),
    [
        (("tuned", "rouge_l"), 1e-4, "tuned: rouge_l"),
        (("base", "chrf"), 1e-5, "base: chrf"),
        (("base", "stop_rate_interval", 1), 1e-3, "base: stop_rate, interval"),
        (("tuned", "loss_interval", 0), -1.0, "tuned: loss, interval"),
        (("tuned", "prompt_tokens"), 1.0, "tuned: prompt_tokens"),
        (("differences", "tuned_vs_base", "loss", "difference"), 1e-3, "tuned_vs_base: loss"),
    ],
)
def test_a_changed_figure_is_named(
    fresh: Path,
    capsys: pytest.CaptureFixture[str],
    place: tuple[str | int, ...],
    change: float,
    named: str,
) -> None:
    ask(capsys, "eval", fresh, "--no-forgetting")
    file = next((fresh / "eval").glob("*.json"))
    report = json.loads(file.read_text())
    inner: Any = report
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] += change
    file.write_text(json.dumps(report))
    code, said = checked(capsys, fresh)
    assert code == 1
    assert [line for line in said.splitlines() if line.startswith("differs: ")] == [
        f"differs: {named}"
    ]


def test_a_row_that_is_counted_otherwise_is_named(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "eval", fresh, "--no-forgetting")
    file = next((fresh / "eval" / "answers").glob("*.jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2]["sides"]["tuned"]["counts"]["rouge_l"][0] += 1e-3
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = checked(capsys, fresh)
    assert code == 1
    assert said.splitlines()[-1] == f"differs: tuned: rouge_l of rows.jsonl:{rows[2]['line']}"


def test_a_run_without_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no evaluation"):
        check_scores.main([str(tmp_path)])
