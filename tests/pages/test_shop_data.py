"""The data sets that ship under recipes/data keep the promises of their READMEs."""

import importlib.util
import json
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "recipes" / "data"
SHOP = DATA / "shop"

# The house format of a shop listing, the same string as in the recipes.
HOUSE_FORMAT = r"# [^\n]+\n[^\n]+[.!]\n(- [^\n]+\n){3}Specs: [^|\n]+( \| [^|\n]+){3}"


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:[-'.]\w+)*", text.lower())


COLOURS = set(
    words(
        """amber anthracite aqua beige black blue bronze brown burgundy caramel champagne
        charcoal chestnut cobalt cognac copper coral cornflower cream crimson cyan ecru
        emerald gold graphite gray green grey gunmetal indigo ivory khaki lavender lemon
        lilac lime magenta maroon mint mustard navy olive orange oxblood peach pink plum
        purple red rose ruby russet rust sage sand scarlet seafoam silver slate tan
        tangerine taupe teal terracotta turquoise verdigris violet white yellow"""
    )
)
MATERIALS = set(
    words(
        """abs acacia acrylic alpaca aluminium aluminum ash balsa bamboo beech birch
        borosilicate brass bronze canvas carbon cardboard cashmere cedar ceramic chrome
        concrete copper corduroy cork cotton cowhide denim earthenware ebony elastane enamel
        enamelled eucalyptus eva felt fibre fibreglass flannel fleece foam glass goatskin
        granite hdpe hemp iron jute lambswool larch latex leather limewood linen magnesium
        mahogany maple marble mdf melamine merino microfibre mohair muslin neoprene nickel
        nylon oak paper pine plastic plywood polyamide polycarbonate polyester polyethylene
        polypropylene polyurethane poplar porcelain rattan resin rubber rubberwood satin
        silicone silk sisal slate soy spandex spruce stainless steel stoneware suede teak
        terracotta tin tinplate titanium tpu tweed velvet vinyl viscose walnut wax wicker
        willow wood wooden wool zinc"""
    )
)
NUMBER_WORDS = set(
    words(
        "one two three four five six seven eight nine ten eleven twelve dozen double twin triple "
        "pair"
    )
)
MEASURE = re.compile(
    r"(\d+(?:\.\d+)?(?: (?:x|to) \d+(?:\.\d+)?)*)[ -]"
    r"(mm|cm|m|ml|l|kg|g|oz|inch|rpm|hours?|minutes?|seconds?|months|years|degrees|watts?"
    r"|W|V|GB|MB|dB|C|bar|EUR)\b"
)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


PRODUCTS = read(SHOP / "products.jsonl")
TRAIN = read(SHOP / "train.jsonl")
TEST = read(SHOP / "test.jsonl")


def parts(text: str) -> set[str]:
    """Every word of the text, and the pieces of its hyphenated words."""
    return {piece for word in words(text) for piece in [word, *word.split("-")]}


def measures(text: str) -> set[tuple[str, str]]:
    """(number, unit) pairs; "40 x 28 cm" gives both of its numbers."""
    return {
        (number, unit.rstrip("s"))
        for numbers, unit in MEASURE.findall(text)
        for number in re.findall(r"\d+(?:\.\d+)?", numbers)
    }


def product_name(row: Row) -> str:
    return str(row["prompt"]).split("\n", 1)[0].removeprefix("Product: ")


def load_build_script() -> Any:
    path = ROOT / "scripts" / "build_shop_data.py"
    spec = importlib.util.spec_from_file_location("build_shop_data", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_products_are_complete_records() -> None:
    texts = ("name", "category", "material", "colour", "size", "price", "hook")
    for product in PRODUCTS:
        assert list(product) == [*texts[:6], "details", "hook", "bullets"], product.get("name")
        assert len(product["details"]) == len(product["bullets"]) == 3, product["name"]
        for text in [*(product[key] for key in texts), *product["details"], *product["bullets"]]:
            assert text and text == text.strip() and not set("|\n") & set(text), (product, text)
        assert re.fullmatch(r"\d+(\.\d\d)? EUR", product["price"]), product["name"]


def test_at_least_400_products_with_unique_names() -> None:
    names = Counter(product["name"].lower() for product in PRODUCTS)
    assert [name for name, times in names.items() if times > 1] == []
    assert len(names) >= 400


def test_no_two_products_share_their_facts_or_their_text() -> None:
    facts = Counter(
        (p["category"], p["material"], p["colour"], p["size"], *sorted(p["details"]))
        for p in PRODUCTS
    )
    details = Counter(tuple(sorted(p["details"])) for p in PRODUCTS)
    prose = Counter(text.lower() for p in PRODUCTS for text in [p["hook"], *p["bullets"]])
    for counts in (facts, details, prose):
        assert [what for what, times in counts.items() if times > 1] == []


def test_60_products_are_held_out_over_all_categories() -> None:
    assert len(TEST) == 60
    assert len(TRAIN) + len(TEST) == len(PRODUCTS)
    train_names = {product_name(row) for row in TRAIN}
    test_names = {product_name(row) for row in TEST}
    assert train_names & test_names == set()
    assert train_names | test_names == {product["name"] for product in PRODUCTS}
    per_category = Counter(row["category"] for row in TEST)
    assert set(per_category) == {product["category"] for product in PRODUCTS}
    assert min(per_category.values()) >= 4, per_category


def test_committed_files_are_what_the_build_script_renders() -> None:
    script = load_build_script()
    built = script.build(script.load_products())
    assert set(built) == {"train.jsonl", "test.jsonl"}
    for name, text in built.items():
        committed = (SHOP / name).read_bytes().decode("utf-8")
        assert committed == text, f"{name} is stale: run python scripts/build_shop_data.py"


def test_held_out_products_do_not_depend_on_the_order_of_the_records() -> None:
    script = load_build_script()
    assert script.held_out(PRODUCTS) == script.held_out(PRODUCTS[::-1])


def test_every_listing_is_in_house_format() -> None:
    for row in TRAIN + TEST:
        assert re.fullmatch(HOUSE_FORMAT, row["completion"]), row["completion"]


def test_every_listing_names_its_product_and_specs_exactly() -> None:
    for row in TRAIN + TEST:
        facts = dict(line.split(": ", 1) for line in row["prompt"].split("\n"))
        labels = ["Product", "Category", "Material", "Colour", "Size", "Details", "Price"]
        assert list(facts) == labels, row["prompt"]
        specs = " | ".join(facts[label] for label in ("Material", "Colour", "Size", "Price"))
        lines = row["completion"].split("\n")
        assert lines[0] == f"# {facts['Product']}"
        assert lines[-1] == f"Specs: {specs}"
        assert facts["Category"] == row["category"]


def test_every_number_size_colour_and_material_stands_in_the_facts() -> None:
    faults = []
    for row in TRAIN + TEST:
        known = parts(row["prompt"])
        for word in parts(row["completion"]) - known:
            has_digit = any(character.isdigit() for character in word)
            if has_digit or word in NUMBER_WORDS or word in COLOURS or word in MATERIALS:
                faults.append((product_name(row), word))
        for measure in measures(row["completion"]) - measures(row["prompt"]):
            faults.append((product_name(row), " ".join(measure)))
    assert faults == []


def test_hooks_are_a_sentence_and_bullets_are_not() -> None:
    for product in PRODUCTS:
        assert re.fullmatch(r"[^.!?]+[.!]", product["hook"]), product["hook"]
        assert 7 <= len(words(product["hook"])) <= 14, product["hook"]
        for bullet in product["bullets"]:
            assert 3 <= len(words(bullet)) <= 8, bullet
            assert bullet[0] == bullet[0].upper() and bullet[-1] not in ".!?,;", bullet


def test_no_run_of_six_words_is_common_to_the_listings() -> None:
    runs: Counter[tuple[str, ...]] = Counter()
    for row in TRAIN + TEST:
        listing = words(row["completion"].replace("\nSpecs: ", "\n"))
        runs.update({tuple(listing[i : i + 6]) for i in range(len(listing) - 5)})
    run, times = runs.most_common(1)[0]
    share = times / (len(TRAIN) + len(TEST))
    assert share <= 0.05, f"max share {share:.1%}: {' '.join(run)!r} stands in {times} listings"


def small_set(name: str, at_least: int) -> list[Row]:
    rows = read(DATA / name)
    assert len(rows) >= at_least
    for row in rows:
        assert list(row) == ["prompt", "completion"], row
        for text in row.values():
            assert isinstance(text, str) and text and text == text.strip(), row
    assert len({row["prompt"] for row in rows}) == len(rows)
    return rows


def test_catalog_json_holds_what_the_blurb_says() -> None:
    for row in small_set("catalog-json.jsonl", 40):
        blurb, item = row["prompt"], json.loads(row["completion"])
        assert list(item) == ["name", "category", "colour", "material", "price_eur"], blurb
        assert json.dumps(item, separators=(",", ":")) == row["completion"]
        assert item["name"] in blurb, blurb
        for key in ("category", "colour", "material"):
            assert item[key] is None or item[key] in blurb.lower(), (key, blurb)
        if item["colour"] is None:
            assert parts(blurb) & COLOURS <= parts(item["material"] or ""), blurb
        if item["material"] is None:
            assert parts(blurb) & MATERIALS <= parts(item["colour"] or ""), blurb
        prices = [float(price) for price in re.findall(r"(\d+(?:\.\d\d)?) EUR", blurb)]
        assert prices == ([] if item["price_eur"] is None else [item["price_eur"]]), blurb


def test_question_sql_runs_against_its_own_schema() -> None:
    for row in small_set("question-sql.jsonl", 40):
        schema, question = row["prompt"].split("\n\nQuestion: ")
        assert question and question[-1] in "?.", question
        assert re.fullmatch(r"SELECT [^;]+;", row["completion"]), row["completion"]
        database = sqlite3.connect(":memory:")
        try:
            database.executescript(schema)
            database.execute(row["completion"]).fetchall()
        except sqlite3.Error as error:
            raise AssertionError(f"{error}: {row['completion']}") from error
        finally:
            database.close()


def test_ticket_summary_has_its_three_lines() -> None:
    lines = re.compile(r"Issue: [^\n]+[^.\n]\nSteps so far: [^\n]+[^.\n]\nNext: [^\n]+[^.\n]")
    for row in small_set("ticket-summary.jsonl", 40):
        assert lines.fullmatch(row["completion"]), row["completion"]
        numbers = set(re.findall(r"\d+", row["completion"]))
        assert numbers <= set(re.findall(r"\d+", row["prompt"])), row["completion"]
