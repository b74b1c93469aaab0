"""The data sets that ship under recipes/data keep the promises of their READMEs."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from scripts.build_shop_data import SHOP, build, held_out, load_products

DATA = SHOP.parent
# The house format of a shop listing, the same string as in the recipes.
HOUSE_FORMAT = r"# [^\n]+\n[^\n]+[.!]\n(- [^\n]+\n){3}Specs: [^|\n]+( \| [^|\n]+){3}"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_committed_files_are_what_the_script_renders() -> None:
    built = build(load_products())
    assert set(built) == {"train.jsonl", "test.jsonl"}
    for name, text in built.items():
        assert (SHOP / name).read_text(encoding="utf-8") == text, "make docs"


def test_60_products_are_held_out_over_all_categories_in_any_order() -> None:
    products, rows = load_products(), read(SHOP / "test.jsonl")
    assert held_out(products) == held_out(products[::-1])
    assert len(rows) == 60 and len(products) >= 400
    assert len({product["name"].lower() for product in products}) == len(products)
    categories = Counter(row["category"] for row in rows)
    assert set(categories) == {product["category"] for product in products}
    assert min(categories.values()) >= 4


def test_every_listing_is_in_house_format_with_the_specs_of_its_facts() -> None:
    for row in read(SHOP / "train.jsonl") + read(SHOP / "test.jsonl"):
        assert re.fullmatch(HOUSE_FORMAT, row["completion"]), row["completion"]
        facts = dict(line.split(": ", 1) for line in row["prompt"].split("\n"))
        specs = " | ".join(facts[label] for label in ("Material", "Colour", "Size", "Price"))
        lines = row["completion"].split("\n")
        assert (lines[0], lines[-1]) == (f"# {facts['Product']}", f"Specs: {specs}")


def test_the_records_of_the_catalogue_name_what_their_blurb_says() -> None:
    for row in read(DATA / "catalog-json.jsonl"):
        item = json.loads(row["completion"])
        assert list(item) == ["name", "category", "colour", "material", "price_eur"]
        assert item["name"] in row["prompt"]


def test_every_query_runs_against_its_own_schema() -> None:
    for row in read(DATA / "question-sql.jsonl"):
        schema, question = row["prompt"].split("\n\nQuestion: ")
        assert question[-1] in "?.", question
        database = sqlite3.connect(":memory:")
        database.executescript(schema)
        database.execute(row["completion"]).fetchall()
        database.close()


def test_a_summary_has_its_three_lines_and_no_number_of_its_own() -> None:
    lines = re.compile(r"Issue: [^\n]+[^.\n]\nSteps so far: [^\n]+[^.\n]\nNext: [^\n]+[^.\n]")
    for row in read(DATA / "ticket-summary.jsonl"):
        assert lines.fullmatch(row["completion"]), row["completion"]
        assert set(re.findall(r"\d+", row["completion"])) <= set(re.findall(r"\d+", row["prompt"]))
