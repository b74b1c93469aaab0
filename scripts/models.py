"""docs/models.md: what each decoder type of transformers can do here, proven on a tiny model of it.

python -m scripts.models [--jobs 2] [--only TYPE …] [--methods lora …]    # proves, and writes
python -m scripts.models --page                                           # the page alone

Each type is proven in a process of its own (scripts/prove_type.py). docs/data/models.json keeps the
results; what it has from the same versions of the libraries is not proven again, unless named by
--only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, FOUND = DOCS / "models.md", DOCS / "data" / "models.json"
LIBRARIES = ("transformers", "peft", "bitsandbytes", "torch")
METHODS = ("lora", "qlora", "full", "bottleneck", "prefix-tuning", "prompt-tuning")
SECONDS = 400
PASSED, REFUSED = "yes", "refused"
Results = dict[str, dict[str, Any]]
INTRODUCTION = """<!-- written by make models -->
# Model types

Every type of transformers' causal and image-text-to-text models. A tiny random model of each type \
(its own classes, small widths, few layers) goes through ftcli's own code with every method:

- **trains**: the loss of held-out rows falls;
- **reloads**: the saved weights give the same losses to the bit;
- **gradients**: every trained weight has one, and no other; LoRA trains no router and no tower;
- **checkpointing** (not again for QLoRA and full, whose forward pass is the same): gradients are \
the same with gradient checkpointing;
- **generates** (likewise): a batch with padding and a cache gives the tokens of a loop without;
- **merges** (LoRA, QLoRA): the certificate of `ftcli merge` passes;
- **resumes** (LoRA, full): a stopped and resumed run ends with the weights of one that was not \
stopped, to the bit.

`yes`: all of them. `no`: it does not train; `refused`: ftcli says why before any step. Otherwise \
the steps that do not pass. A type of your own, registered with transformers' Auto classes, trains \
like these.
"""
# In the text of an error that ftcli does not foresee.
NOT_FORESEEN = "cannot be opened"
# What a library's error means for a user.
CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"has no attribute 'keys'|Inconsistent head_dim|prefix|past_key_values",
        "a prefix needs keys and values of one width in every layer",
    ),
    (r"doesn't have its forwarding implemented", "its class cannot generate from embeddings"),
    (r"no checkpointing", "transformers has no gradient checkpointing for it"),
    (r"TimmWrapper|timm", "needs the package timm"),
    (
        r"pixel_values|flattened_patches|image_encoder_embeddings|image_embeds",
        "needs a picture in every row",
    ),
)


def model_types() -> list[str]:
    """The types of the installed transformers."""
    types = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    return sorted(types & set(CONFIG_MAPPING))


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def read_results() -> dict[str, Any]:
    if not FOUND.is_file():
        return {"versions": versions(), "types": {}}
    found: dict[str, Any] = json.loads(FOUND.read_text(encoding="utf-8"))
    return found


def write_results(found: Mapping[str, Any]) -> None:
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
    FOUND.write_text(text + "\n", encoding="utf-8")


# Proofs


def prove_types(types: Sequence[str], methods: Sequence[str], jobs: int) -> None:
    """Prove the types, and write each result when it is there."""
    import scipy.stats  # noqa: F401  # of a merge's interval; imported once for all processes

    from scripts.prove_type import quiet

    quiet()
    os.fsync = lambda _: None  # type: ignore[assignment]
    found = read_results()
    found["versions"] = versions()
    with ThreadPoolExecutor(jobs) as pool:
        proofs = pool.map(lambda each: (each, _in_a_process(each, methods)), types)
        for model_type, proof in proofs:
            before = found["types"].get(model_type, {}).get("steps", {})
            kept = {k: v for k, v in before.items() if k.split()[0] not in methods}
            kept.pop("builds", None)
            proof["steps"] = {**kept, **proof["steps"]}
            found["types"][model_type] = proof
            write_results(found)
            wrong = {k: v for k, v in proof["steps"].items() if v != PASSED}
            print(model_type, f"{proof['seconds']} s", wrong or "yes", flush=True)


def _is_proven(result: Mapping[str, Any] | None, methods: Sequence[str]) -> bool:
    """Whether it has steps of all methods, or the type cannot be built at all."""
    steps = result["steps"] if result else {}
    return bool(steps) and (
        steps.get("builds") != PASSED or all(_cell(steps, method) for method in methods)
    )


def _in_a_process(model_type: str, methods: Sequence[str]) -> dict[str, Any]:
    """The proof of a type; a process that ends or takes too long is a result too."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    process = context.Process(target=_prove, args=(model_type, tuple(methods), results))
    process.start()
    try:
        found: dict[str, Any] = results.get(timeout=SECONDS)
    except queue.Empty:
        why = f"takes over {SECONDS} s" if process.is_alive() else "the process dies"
        found = {"facts": {}, "steps": {"builds": f"fails: {why}"}, "seconds": SECONDS}
    process.kill()
    process.join()
    return found


def _prove(model_type: str, methods: tuple[str, ...], results: Any) -> None:
    from scripts.prove_type import prove

    with TemporaryDirectory(prefix="prove-") as folder:
        proof = prove(model_type, Path(folder), methods)
    steps = {name: text.replace(folder, "…") for name, text in proof.steps.items()}
    results.put({"facts": proof.facts, "steps": steps, "seconds": proof.seconds})


# The page


def page(found: Mapping[str, Any]) -> str:
    """The page of these results."""
    results: Results = found["types"]
    types = sorted({*model_types(), *results})
    rows = [_row(model_type, results.get(model_type)) for model_type in types]
    named = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    head = ["type", "class", *METHODS, "why not"]
    return "\n".join(
        [
            INTRODUCTION,
            _counts(results),
            "",
            f"Versions: {named}.",
            "",
            f"| {' | '.join(head)} |",
            f"| {' | '.join('---' for _ in head)} |",
            *rows,
            "",
        ]
    )


def _counts(results: Results) -> str:
    """A table: for each method, types that pass every step, that are refused, and others."""
    rows = ["| method | types | pass every step | refused | neither |", "| --- |" + " --- |" * 4]
    for method in METHODS:
        passed, refused, neither = count_types(results, method)
        total = passed + refused + neither
        rows.append(f"| {method} | {total} | {passed} | {refused} | {neither} |")
    return "\n".join(rows)


def count_types(results: Results, method: str) -> tuple[int, int, int]:
    """How many types pass every step, are refused with the cause, and do neither."""
    cells = [_cell(each["steps"], method) for each in results.values()]
    proven = [cell for cell in cells if cell]
    passed, refused = proven.count(PASSED), proven.count(REFUSED)
    return passed, refused, len(proven) - passed - refused


def _row(model_type: str, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"| {model_type} | {'| ' * (len(METHODS) + 1)}| not proven with these versions |"
    steps = result["steps"]
    cells = [_cell(steps, method) for method in METHODS]
    causes = dict.fromkeys(_causes(steps))
    kind = result["facts"].get("class", "")
    return f"| {' | '.join([model_type, kind, *cells, '; '.join(causes)])} |"


def _cell(steps: Mapping[str, str], method: str) -> str:
    own = {name: text for name, text in steps.items() if name.startswith(f"{method} ")}
    built = steps.get("builds", "")
    if built != PASSED:
        return REFUSED if _is_refused(built) else "no"
    failed = [name.split()[1] for name, text in own.items() if text != PASSED]
    if _is_refused(own.get(f"{method} trains", "")):
        return REFUSED
    if failed:
        return "no" if failed[0] == "trains" else f"but {', '.join(failed)}"
    return PASSED if own else ""


def _is_refused(text: str) -> bool:
    return text.startswith("refused: ") and NOT_FORESEEN not in text


def _causes(steps: Mapping[str, str]) -> Iterator[str]:
    """Why steps do not pass, each reason once, in words."""
    for text in steps.values():
        if text != PASSED:
            known = next((words for key, words in CAUSES if re.search(key, text)), None)
            yield known or _plain(text)


def _plain(text: str) -> str:
    """The first sentence of a refusal or an error, as table text."""
    words = re.sub(r"^(refused|fails|wrong): ", "", text)
    words = re.sub(r"…\S*: ", "", words)
    return re.split(r"; (?:train|use|choose|to size)", words)[0].replace("|", "\\|")[:160]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args(arguments)
    if not asked.page:
        found = read_results()
        current = found["types"] if found["versions"] == versions() else {}
        todo = [each for each in model_types() if not _is_proven(current.get(each), asked.methods)]
        types = asked.only or todo
        prove_types(types, asked.methods, asked.jobs)
    PAGE.write_text(page(read_results()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
