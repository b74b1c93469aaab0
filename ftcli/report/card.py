"""The model card of a run, from the same figures as its report.

The Hugging Face hub reads the front matter (docs: Model Cards, Model index). Unknown keys are left
out, with a hint: ftcli does not know the licence of the base and of the data.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ftcli.console import counted
from ftcli.evaluation.verdicts import NOT_MEASURED, summary_of
from ftcli.redact import redact
from ftcli.report import tables
from ftcli.report.figures import HELD_OUT, ReportFigures, name_alone, named
from ftcli.report.tables import Table
from ftcli.runs.results import EvalResult

# Our names of scores → the hub's.
HUB_METRICS = {"rouge_l": "rouge", "exact_match": "exact_match"}


def model_card(figures: ReportFigures) -> str:
    """Markdown with front matter. A card is published, so paths outside of the recipe's folder are
    shortened to names."""
    found = figures.evaluation
    shown = replace(
        figures,
        path=lambda path: name_alone(figures.path(path)),
        evaluation=named(found, name_alone) if found is not None else None,
    )
    whole = "".join(f"{line}\n" for line in (_front_matter(shown), *_body(shown)))
    # File names may have surrogates, which UTF-8 cannot encode.
    return redact(whole).encode("utf-8", "replace").decode("utf-8")


def _front_matter(figures: ReportFigures) -> str:
    from huggingface_hub import ModelCardData

    full = figures.method == "full"
    data = ModelCardData(
        base_model=figures.hub_base or None,
        base_model_relation=("finetune" if full else "adapter") if figures.hub_base else None,
        library_name="transformers" if full else "peft",
        pipeline_tag="text-generation",
        tags=["ftcli", "sft", *([figures.method] if figures.method else [])],
        model_name=figures.name,
        eval_results=_hub_results(figures.evaluation) or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _hub_results(found: EvalResult | None) -> list[Any]:
    """Scores of the tuned model for the hub's model-index, on the run's own held-out rows only."""
    from huggingface_hub import EvalResult as HubResult

    if found is None or found.data not in HELD_OUT:
        return []
    return [
        HubResult(
            task_type="text-generation",
            dataset_type="custom",
            dataset_name=f"{found.rows:,} held-out rows of the task",
            dataset_split=found.data,
            metric_type=HUB_METRICS.get(row.name, row.name),
            metric_name=row.label,
            metric_value=round(row.tuned.value, 6),
        )
        for row in found.shown_rows
        # Without `better` a score means nothing without that of the reference answers.
        if row.tuned is not None and row.better is not None
    ]


def _body(figures: ReportFigures) -> Iterator[str]:
    base, verdict = figures.hub_base or figures.model, figures.verdict(".")
    yield from ("", f"# {_line(figures.name)}", "")
    rows = f" on {counted(figures.prepared.train.rows, 'row')}" if figures.prepared else ""
    if figures.prepared is not None and figures.prepared.replay is not None:
        rows += f" and {figures.prepared.replay.rows:,} replayed rows"
    tuned = f"tuned with ftcli ({_line(figures.method)}){rows}."
    yield f"`{_line(base)}`, {tuned}" if base else tuned.capitalize()
    yield from ("", f"**{verdict.headline}.** {_line(verdict.sentence)}")
    yield from _bulleted(verdict.reasons)
    yield from _evaluation(figures.evaluation)
    yield from _section(tables.training(figures))
    if figures.prepared is not None:
        yield from _section(tables.splits(figures.prepared, figures.path))
        yield from _bulleted(figures.advice)
    yield from ("", "## Use", "", "In the folder of this card:", "", "```sh")
    yield 'ftcli generate . "a prompt like those it was trained on"'
    yield from ("ftcli eval .", "ftcli train . --fresh", "```", "")
    yield from _loaded_by_libraries(figures)
    if figures.recipe_text:
        # A fence must be longer than any in the text (CommonMark 0.31, fenced code blocks).
        longest = max(map(len, re.findall(r"`{3,}", figures.recipe_text)), default=2)
        fence = "`" * (longest + 1)
        yield from ("", "## Recipe", "", f"{fence}yaml", figures.recipe_text.rstrip(), fence)
    yield from _section(tables.versions(figures))
    yield from _section(tables.hashes(figures))
    yield from ("", "## Left out", "")
    yield (
        "- licence: it depends on base and data; add `license:` to the front matter before you "
        "publish the model"
    )
    if not figures.hub_base:
        yield (
            "- `base_model`: the base is a local folder; add its hub id to the front matter if it "
            "has one"
        )
    if figures.evaluation is None or figures.evaluation.data not in HELD_OUT:
        yield "- `model-index`: no scores on held-out rows yet"


def _loaded_by_libraries(figures: ReportFigures) -> Iterator[str]:
    """Python that loads the weights without ftcli, and the upload to the hub."""
    full = figures.method == "full"
    # AutoPeftModelForCausalLM would look for a model of text alone.
    base = "AutoModelForMultimodalLM" if figures.has_towers else "AutoModelForCausalLM"
    folder = "model" if full else "adapter"
    hub = shlex.quote(f"your-name/{name_alone(figures.name)}")
    yield from ("Without ftcli:" if full else "Without ftcli, with PEFT:", "", "```python")
    opened = f'model = {base}.from_pretrained("{folder}")  # or the id on the hub'
    if full:
        yield f"from transformers import {base}, AutoTokenizer"
    elif figures.has_towers:
        yield from ("from peft import PeftModel", f"from transformers import {base}, AutoTokenizer")
        yield from ("", f'base = {base}.from_pretrained("{figures.hub_base or figures.model}")')
        opened = f'model = PeftModel.from_pretrained(base, "{folder}")  # or the id on the hub'
    else:
        yield "from peft import AutoPeftModelForCausalLM"
        yield "from transformers import AutoTokenizer"
        opened = opened.replace(base, "AutoPeftModelForCausalLM")
    yield from (
        "",
        opened,
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
        'messages = [{"role": "user", "content": "a prompt like those it was trained on"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        "answer = model.generate(**inputs, max_new_tokens=256)",
        'new_tokens = answer[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(new_tokens, skip_special_tokens=True))",
        "```",
        "",
        "Upload weights and card to the Hugging Face hub:",
        "",
        "```sh",
        f"hf upload {hub} {folder} .",
        f"hf upload {hub} README.md README.md",
        "```",
    )


def _evaluation(found: EvalResult | None) -> Iterator[str]:
    if found is None:
        return
    for table in tables.scores(found):
        yield from _section(table)
    yield from ("", "Intervals are of 95%.")
    sentences = (each for each in summary_of(found) if not each.startswith(NOT_MEASURED))
    yield from _bulleted([*sentences])


def _section(table: Table) -> Iterator[str]:
    if table.rows:
        heads = table.heads or ("",) * len(table.rows[0])
        yield from ("", f"## {_line(table.title)}", "", _row(heads), _row(["---"] * len(heads)))
        yield from (_row(cells) for cells in table.rows)


def _bulleted(lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield from (f"- {_line(line)}" for line in lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_line(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _line(words: str) -> str:
    """On one line, without secrets and HTML tags."""
    return " ".join(redact(words).split()).replace("<", "&lt;")
