from __future__ import annotations

import pytest

from ftcli import errors
from ftcli.errors import (
    DataError,
    FtcliError,
    MachineError,
    ModelError,
    Problem,
    RecipeError,
    Stopped,
    UsageError,
    did_you_mean,
)


def test_an_error_says_where_then_what() -> None:
    assert str(DataError("data_cut", "ends early", file="a.jsonl", line=3)) == (
        "a.jsonl:3: ends early"
    )
    assert str(DataError("data_cut", "ends early", file="a.jsonl")) == "a.jsonl: ends early"
    assert str(DataError("data_cut", "ends early")) == "ends early"


@pytest.mark.parametrize("kind", [FtcliError, DataError, ModelError, MachineError])
def test_what_had_to_be_looked_at_ends_with_1(kind: type[FtcliError]) -> None:
    assert kind("code", "text").exit_code == 1


def test_what_the_words_alone_prove_wrong_ends_with_2() -> None:
    assert UsageError("code", "text").exit_code == 2
    assert RecipeError((Problem("a.yaml", 1, "name", "is missing"),)).exit_code == 2


@pytest.mark.parametrize(("signal_number", "exit_code"), [(2, 130), (15, 143)])
def test_a_signal_ends_as_the_shell_expects(signal_number: int, exit_code: int) -> None:
    assert Stopped("stopped at step 3", signal_number).exit_code == exit_code


def test_one_clause_catches_them_all() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    failures = [kind for kind in kinds if issubclass(kind, Exception)]
    assert len(failures) >= 7
    assert all(issubclass(kind, FtcliError) for kind in failures)


def test_a_recipe_error_holds_every_problem_and_points_at_the_first() -> None:
    problems = (
        Problem("a.yaml", None, "name", "is missing"),
        Problem("a.yaml", 4, "method.rnak", "unknown key"),
        Problem("a.yaml", 9, "", "not YAML"),
    )
    error = RecipeError(problems)
    assert str(error) == (
        "a.yaml: name: is missing\na.yaml:4: method.rnak: unknown key\na.yaml:9: not YAML"
    )
    assert (error.code, error.file, error.line) == ("recipe", "a.yaml", None)
    assert error.problems == problems


def test_only_a_near_word_is_proposed() -> None:
    assert did_you_mean("rnak", ["rank", "alpha"]) == "; did you mean rank?"
    assert did_you_mean("bananas", ["rank", "alpha"]) == ""
    assert did_you_mean("rank", []) == ""
    assert did_you_mean("shpo.yaml", ["win.yaml", "shop.yaml"]) == "; did you mean shop.yaml?"
    assert did_you_mean("missing.yaml", ["win.yaml"]) == ""
    assert did_you_mean("nothere.jsonl", ["broken.jsonl"]) == ""
