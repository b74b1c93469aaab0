"""Render recipes/data/shop/products.jsonl into train.jsonl and test.jsonl.

Run it after every change to products.jsonl:  python -m scripts.build_shop_data
The same records always give the same two files.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

SHOP = Path(__file__).resolve().parent.parent / "recipes" / "data" / "shop"
PER_CATEGORY = 4  # held-out products that every category gives first
HELD_OUT = 60  # held-out products in all

Record = dict[str, Any]


def render(product: Record) -> dict[str, str]:
    """One product record as a training row: its facts, and its listing in house format."""
    prompt = "\n".join(
        [
            f"Product: {product['name']}",
            f"Category: {product['category']}",
            f"Material: {product['material']}",
            f"Colour: {product['colour']}",
            f"Size: {product['size']}",
            f"Details: {'; '.join(product['details'])}",
            f"Price: {product['price']}",
        ]
    )
    specs = " | ".join(product[key] for key in ("material", "colour", "size", "price"))
    completion = "\n".join(
        [
            f"# {product['name']}",
            product["hook"],
            *(f"- {bullet}" for bullet in product["bullets"]),
            f"Specs: {specs}",
        ]
    )
    return {"prompt": prompt, "completion": completion, "category": product["category"]}


def name_hash(product: Record) -> str:
    return hashlib.sha256(product["name"].encode("utf-8")).hexdigest()


def held_out(products: list[Record]) -> set[str]:
    """Names of the test products: the PER_CATEGORY lowest name hashes of every category,
    then the lowest hashes among all the others until there are HELD_OUT."""
    by_category: dict[str, list[Record]] = defaultdict(list)
    for product in sorted(products, key=name_hash):
        by_category[product["category"]].append(product)
    chosen = [p for group in by_category.values() for p in group[:PER_CATEGORY]]
    rest = [p for group in by_category.values() for p in group[PER_CATEGORY:]]
    rest.sort(key=name_hash)
    chosen += rest[: HELD_OUT - len(chosen)]
    return {product["name"] for product in chosen}


def build(products: list[Record]) -> dict[str, str]:
    """File name -> file text, rows in the order of products.jsonl."""
    test_names = held_out(products)
    lines: dict[str, list[str]] = {"train.jsonl": [], "test.jsonl": []}
    for product in products:
        name = "test.jsonl" if product["name"] in test_names else "train.jsonl"
        lines[name].append(json.dumps(render(product), ensure_ascii=False) + "\n")
    return {name: "".join(rows) for name, rows in lines.items()}


def load_products(path: Path = SHOP / "products.jsonl") -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    for name, text in build(load_products()).items():
        (SHOP / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {text.count(chr(10))} rows")


if __name__ == "__main__":
    main()
