"""The model card of a run, made from the figures of its report.

Its front matter is what the Hugging Face hub reads (docs: Model Cards, Model index). What is not
known is left out and said: a licence is nobody's but the owner's of the base and of the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftcli.artifacts import RunFolder
from ftcli.disk import write_text
from ftcli.metrics.scorer import BY_WORDS
from ftcli.secrets import masked
from ftcli.stages.report.elsewhere import name_alone
from ftcli.stages.report.evaluations import SIDE_NAMES, Evaluation
from ftcli.stages.report.figures import ReportFigures, read_figures
from ftcli.stages.report.origin import Pair
from ftcli.stages.report.scored import ScoreRow

# Scores of ours that the hub's list of metrics knows by another name.
HUB_METRICS = {"rouge_l": "rouge", "chrf": "chrf", "exact_match": "exact_match"}


def write_card(run: RunFolder) -> Path:
    """Write README.md anew from all that is in the folder; raises FtcliError."""
    write_text(run.card, model_card(read_figures(run)))
    return run.card


def model_card(figures: ReportFigures) -> str:
    """Markdown with the front matter that the hub reads."""
    shown = _published(figures)
    whole = "".join(f"{part}\n" for part in (_front_matter(shown), *_body(shown)))
    # Halves of characters, which names of files may hold, can be written nowhere.
    return masked(whole).encode("utf-8", "replace").decode("utf-8")


def _published(figures: ReportFigures) -> ReportFigures:
    """Without the folders of what lies elsewhere: whose they are concerns no reader of a card."""
    data, found, verdict = figures.data, figures.evaluation, figures.verdict
    if data is not None:
        source = name_alone(data.replay_source)
        data = replace(data, source=name_alone(data.source), replay_source=source)
    if found is not None:
        named = name_alone(found.data)
        words = verdict.words.replace(found.data_words, replace(found, data=named).data_words)
        found, verdict = replace(found, data=named), replace(verdict, words=words)
    recipe, model = figures.published_recipe, name_alone(figures.model)
    return replace(
        figures, data=data, evaluation=found, verdict=verdict, recipe=recipe, model=model
    )


def _front_matter(figures: ReportFigures) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=figures.hub_base or None,
        library_name="transformers" if figures.method == "full" else "peft",
        pipeline_tag="text-generation",
        tags=["ftcli", "sft", *([figures.method] if figures.method else [])],
        model_name=figures.name,
        eval_results=_results(figures.evaluation) or None,
        base_model_relation=_relation(figures),
    )
    return f"---\n{data.to_yaml()}\n---"


def _relation(figures: ReportFigures) -> str | None:
    """The hub's word for what this is to its base; none where no base is named."""
    if not figures.hub_base:
        return None
    return "finetune" if figures.method == "full" else "adapter"


def _results(evaluation: Evaluation | None) -> list[Any]:
    """Scores of the tuned model for the hub's model-index; of rows the run itself held out only."""
    from huggingface_hub import EvalResult

    if evaluation is None or not evaluation.held_out:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="custom",
            dataset_name=f"{evaluation.rows:,} held-out rows of the task",
            dataset_split=evaluation.data,
            metric_type=HUB_METRICS.get(row.score.name, row.score.name),
            metric_name=row.score.label,
            metric_value=round(row.sides["tuned"].value, 6),
        )
        for row in evaluation.scores
        # The hub would show a rate of words without that of the data's own answers.
        if "tuned" in row.sides and row.score.name not in BY_WORDS
    ]


def _body(figures: ReportFigures) -> Iterator[str]:
    base = f"`{_line(figures.hub_base or figures.model)}`" if figures.model else "its base"
    yield ""
    yield f"# {_line(figures.name)}"
    yield ""
    yield f"{base}, tuned with ftcli ({_line(figures.method)}){_on_rows(figures)}."
    yield ""
    yield f"**{figures.verdict.headline}** {_line(figures.verdict.words)}"
    yield from _bulleted(figures.verdict.reasons)
    yield from _scores(figures)
    yield from _forgetting(figures)
    yield from _table("Training", figures.training)
    yield from _data(figures)
    yield from _use(figures)
    yield from _recipe(figures.recipe)
    yield from _table("Versions", figures.versions)
    yield from _table("Known again by", figures.hashes)
    yield from _left_out(figures)


def _on_rows(figures: ReportFigures) -> str:
    if figures.data is None:
        return ""
    replayed = figures.data.replayed
    beside = f" and {replayed.rows:,} replayed ones" if replayed is not None else ""
    return f" on {figures.data.splits[0].rows:,} rows{beside}"


def _scores(figures: ReportFigures) -> Iterator[str]:
    yield from ("", "## Evaluation", "")
    found = figures.evaluation
    if found is None:
        yield f"Not evaluated yet: `ftcli eval {figures.run}`."
        return
    yield f"{_line(found.data_words)}, each score with its 95% interval."
    for words in found.flattered:
        yield f"{words[:1].upper()}{words[1:]}, which flatters the tuned model."
    others = [side for side in found.sides if side != "tuned"]
    heads = ["score", *(SIDE_NAMES[side] for side in found.sides)]
    heads += [f"tuned against {SIDE_NAMES[side]}" for side in others]
    yield from ("", _row(heads), _row(["---"] * len(heads)))
    for row in found.scores:
        yield _row([row.score.label, *_cells(row, found.sides, others)])
    for words in found.references:
        yield from ("", f"{_line(words)}.")


def _cells(row: ScoreRow, sides: tuple[str, ...], others: list[str]) -> Iterator[str]:
    for side in sides:
        yield row.sides[side].shown(row.score) if side in row.sides else ""
    for side in others:
        yield _against(row, side) if side in row.against else ""


def _against(row: ScoreRow, side: str) -> str:
    """`better: +95 (+80 to +99) points`."""
    found = row.against[side]
    figures = found.figures(row.score)
    return f"{found.words}: {figures}" if figures else found.words


def _forgetting(figures: ReportFigures) -> Iterator[str]:
    found = figures.evaluation.forgotten if figures.evaluation is not None else ()
    if found:
        yield from ("", "What it forgot:", "")
        yield from (_row(["ability", "base", "tuned", ""]), _row(["---"] * 4))
        for ability in found:
            yield _row([ability.label, ability.before, ability.after, ability.words])


def _table(title: str, pairs: Sequence[Pair]) -> Iterator[str]:
    if pairs:
        yield from ("", f"## {title}", "", "| | |", "| --- | --- |")
        for pair in pairs:
            yield _row([pair.name, pair.value])


def _data(figures: ReportFigures) -> Iterator[str]:
    if figures.data is None:
        return
    yield from ("", "## Data", "", f"`{_line(figures.data.source)}`", "")
    yield from (_row(["split", "rows", "tokens", "trained on"]), _row(["---"] * 4))
    for split in figures.data.rows:
        sizes = (split.rows, split.tokens, split.trained_tokens)
        yield _row([split.name, *(f"{size:,}" for size in sizes)])
    yield from _bulleted(figures.advice)


def _use(figures: ReportFigures) -> Iterator[str]:
    yield from ("", "## Use", "", "```sh")
    yield 'ftcli generate . "a prompt like those it was trained on"'
    folder = _line(figures.runs_folder)
    yield from ("```", "", f"To train it again, from the folder that holds `{folder}/`:")
    yield from ("", "```sh")
    yield from (step.command for step in figures.commands[:2])
    yield "```"


def _recipe(recipe: str) -> Iterator[str]:
    if recipe:
        # A fence must be longer than any in the text (CommonMark 0.31, fenced code blocks).
        longest = max((len(run) for run in re.findall(r"`{3,}", recipe)), default=2)
        fence = "`" * (longest + 1)
        yield from ("", "## Recipe", "", f"{fence}yaml", recipe.rstrip(), fence)


def _left_out(figures: ReportFigures) -> Iterator[str]:
    """What the front matter does not say, and why."""
    yield from ("", "## Not said above", "")
    yield (
        "- licence: that of the base and that of the data decide it, and ftcli knows neither; "
        "add `license:` to the front matter before you publish it"
    )
    if not figures.hub_base:
        yield (
            "- `base_model`: the run began from a local folder; add the base's hub id to the front "
            "matter if it has one"
        )
    if figures.evaluation is None or not figures.evaluation.held_out:
        yield "- `model-index`: no scores on held-out rows yet"


def _bulleted(lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield from (f"- {_line(line)}" for line in lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(_line(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _line(words: str) -> str:
    """On one line; what would be taken for HTML is not."""
    return " ".join(words.split()).replace("<", "&lt;")
