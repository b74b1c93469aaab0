"""scripts/results_page.py: the page of one set of rows, and the index of all sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import results
import results_page

KINDS = {
    "stop_rate": {"label": "stops by itself", "unit": "share", "better": "higher"},
    "loss": {"label": "loss", "unit": "value", "better": "lower"},
    "answer_tokens": {"label": "tokens an answer", "unit": "value", "better": None},
}


def side(stops: float, loss: float) -> dict[str, Any]:
    return {
        "stop_rate": stops,
        "stop_rate_interval": [stops - 0.1, stops + 0.1],
        "loss": loss,
        "loss_interval": [loss - 0.25, loss + 0.25],
        "prompt_tokens": 1234.4,
        "tokens_per_second": 56.6,
    }


def difference(verdict: str, *, same: bool = False) -> dict[str, Any]:
    return {"verdict": verdict, "same": same}


@pytest.fixture
def methods() -> dict[str, Any]:
    found = {
        "model": "small",
        "rows": 120,
        "shots": 5,
        "base": side(0.2, 3.0),
        "prompted": side(0.3, 2.5),
        "tuned": side(0.9, 1.5),
        "scores": KINDS,
        "differences": {
            "tuned_vs_base": {"stop_rate": difference("better"), "loss": difference("worse")},
            "tuned_vs_prompted": {
                "stop_rate": difference("no difference shown"),
                "loss": difference("no difference shown", same=True),
            },
        },
        "forgetting": {
            "text": {"before": 20.0, "after": 24.0, "change": 0.2, "words": "it forgets"},
            "instructions": {"before": 5.0, "after": 6.0, "change": 0.2, "words": "it forgets"},
            "follows": {"before": 0.4, "after": 0.1, "words": "worse"},
            "stops": {"before": 0.9, "after": 0.9, "words": "no change shown"},
        },
        "hardware": {"name": "two cores"},
        "training": {
            "steps": 80,
            "saved_bytes": 19_600_000,
            "first_eval_loss": 3.0,
            "eval_loss": 1.5,
        },
        "learning_rate": 1e-3,
        "batch_size": 16,
    }
    return {"lora": found, "full": found | {"tuned": side(0.8, 1.75)}}


def cells(page: str, first: str) -> list[str]:
    """The row of a page that begins so."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_page_has_every_score_of_every_side_with_interval_and_verdict(
    methods: dict[str, Any],
) -> None:
    page = results_page.page("Facts to copy", methods)
    assert cells(page, "stops by itself") == [
        "stops by itself",
        "20% (10–30)",
        "30% (20–40)",
        "90% (80–100)",
        "better",
        "not shown",
        "80% (70–90)",
        "better",
        "not shown",
    ]
    assert cells(page, "loss")[3:6] == ["1.50 (1.25–1.75)", "worse", "the same"]
    assert cells(page, "tokens an answer")[1:4] == ["–", "–", "–"]
    assert cells(page, "tokens a prompt")[1:4] == ["1,234", "1,234", "1,234"]
    assert (
        "small, 120 held-out rows, 80 steps of 16 rows (cosine behind 3% warm-up) on two cores"
        in page
    )
    assert "| lora | follows general instructions | 40% | 10% | worse |" in page
    assert "| full | general text, perplexity | 20.00 | 24.00 | it forgets |" in page
    assert "| lora | 0.001 | 80 | 3.000 → 1.500 | 20 MB |" in page


def test_two_bases_are_no_one_column(methods: dict[str, Any]) -> None:
    methods["full"]["base"] = side(0.2, 2.9)
    with pytest.raises(ValueError, match="the base beside full is another"):
        results_page.page("Facts to copy", methods)


def test_the_index_has_the_scores_that_tell_most(methods: dict[str, Any]) -> None:
    sets = [("Facts to copy", "retail", ("stop_rate", "loss"), methods)]
    lines = results_page.index(sets).splitlines()
    assert "| rows | score | base | prompted base | tuned, lora | tuned, full |" in lines
    first = "| [Facts to copy](retail.md) | stops by itself | 20% (10–30) | 30% (20–40) | "
    assert f"{first}90% (80–100) | 80% (70–90) |" in lines
    assert any(line.startswith("|  | loss | 3.00 (2.75–3.25) |") for line in lines)


def test_the_pages_are_those_of_the_kept_figures() -> None:
    pages = results.pages()
    assert set(pages) == {f"{rows.name}.md" for rows in results.SETS} | {"README.md"}
    for name, text in pages.items():
        assert (results.PAGES / name).read_text(encoding="utf-8") == text, "scripts/results.py"
    for file in results.PAGES.iterdir():
        assert "/root" not in file.read_text(encoding="utf-8")
