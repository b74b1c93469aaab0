"""scripts/check_scores.py: other code comes to ftcli's scores, and tells a changed one."""

from __future__ import annotations

import ast
import json
import sys
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

# What ftcli takes for its scores, and itself.
NOT_INDEPENDENT = {"ftcli", "rouge_score", "sacrebleu", "scipy", "jsonschema", "sqlglot"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return finished_run(tmp_path_factory.mktemp("checking"), tiny_model, max_steps=4)


@pytest.fixture
def fresh(trained: Path) -> Path:
    return unevaluated(trained)


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
        (("tuned", "rouge_l"), 1e-4, "tuned: rouge_l *"),
        (("base", "chrf"), 1e-5, "base: chrf *"),
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
    rows[2]["sides"]["tuned"]["counts"]["answer_tokens"][0] += 1
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = checked(capsys, fresh)
    assert code == 1
    assert said.splitlines()[-1] == f"differs: tuned: answer_tokens of rows.jsonl:{rows[2]['line']}"


def test_a_run_without_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no evaluation"):
        check_scores.main([str(tmp_path)])
