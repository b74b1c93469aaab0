"""Is fine-tuning right for these rows? Statistics, what prompting reaches, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ftcli.config.recipe import Recipe
from ftcli.console import Reporter, counted
from ftcli.data.dataset import IDEAL_ROWS, TOO_FEW_ROWS
from ftcli.errors import FtcliError
from ftcli.evaluation.advice.answer_form import AnswerForm
from ftcli.evaluation.advice.prompting import PromptingResult, prompting_key, try_prompting
from ftcli.evaluation.advice.row_statistics import (
    Instruction,
    PreparedRows,
    RowStatistics,
    statistics_of,
)

if TYPE_CHECKING:
    from ftcli.data.tokenizing.rendering import Renderer

# Prompting is enough if the lower ends of the scores' intervals reach this.
ENOUGH = 0.8
# Below these there is no sentence.
MIN_DUPLICATES, MIN_INSTRUCTION, MIN_INSTRUCTION_TOKENS = 0.02, 0.2, 20
MAX_FORMAT_CHARACTERS = 160  # a longer block is only in advice.json
# Instead of details that are longer than a line.
SHORT = {
    "json": "are JSON of one kind",
    "sql": "are SQL",
    "lines": "have the same kinds of lines",
    "sections": "have the same sections",
    "labels": "are one of a few labels",
}
REPLAY = (
    "Training on one task costs general ability: data.replay: builtin mixes in general "
    "instructions (docs/forgetting.md)."
)
Verdict = Literal["prompt", "fine-tune", "fine-tune if called often"]


class Advice(RowStatistics):
    """All of advice.json."""

    error_remedy = "prepare again"

    version: Literal[3] = 3  # changes when the same rows would give other statistics
    prompting: PromptingResult | None = None
    verdict: Verdict = "fine-tune"
    sentences: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As `prepare --json` prints it."""
        return self.model_dump(mode="json", exclude={"version", "fingerprint"})


def advice_file(folder: Path) -> Path:
    """In a data folder."""
    return folder / "advice.json"


def read_advice(folder: Path, fingerprint: str) -> Advice | None:
    """Stored advice on the same rows; None: missing, damaged, or on other rows."""
    with suppress(FtcliError):
        found = Advice.read(advice_file(folder))
        return found if found.fingerprint == fingerprint else None
    return None


def give_advice(
    recipe: Recipe, renderer: Renderer, rows: PreparedRows, reporter: Reporter
) -> Advice:
    """Advice on prepared rows: stored, else new.

    An error is only a warning: the rows are prepared.
    """
    prepared = rows.prepared
    try:
        stored = read_advice(rows.folder, prepared.fingerprint)
        found = stored or Advice(**vars(statistics_of(rows, renderer, reporter)))
        prompting = found.prompting
        if prompting is not None and prompting.key != prompting_key(
            recipe, prepared, prompting.shots_asked
        ):
            found = found.model_copy(update={"prompting": None})
        return _with_verdict(recipe, found, stored, rows)
    except Exception as error:  # noqa: BLE001 - the rows are prepared
        reporter.warn(f"no advice on these rows: {type(error).__name__}: {error}")
        count = prepared.rows_accepted
        size = size_in_words(count)
        return Advice(fingerprint=prepared.fingerprint, rows=count, sentences=(size,))


def with_prompting(
    advice: Advice,
    shots: int,
    recipe: Recipe,
    renderer: Renderer,
    rows: PreparedRows,
    reporter: Reporter,
) -> Advice:
    """The advice with the base's answers, stored or new; raises FtcliError as `try_prompting`."""
    same = advice.prompting is not None and advice.prompting.shots_asked == shots
    if same or advice.lengths is None:
        return advice
    prompting = try_prompting(recipe, renderer, rows, advice.format, shots, reporter)
    found = advice.model_copy(update={"prompting": prompting})
    return _with_verdict(recipe, found, advice, rows)


def _with_verdict(
    recipe: Recipe, found: Advice, stored: Advice | None, rows: PreparedRows
) -> Advice:
    """Add verdict and sentences; write the advice if it differs from what is stored."""
    has_format, replays = recipe.eval.format is not None, recipe.data.replay is not None
    advice = advise_on(found, format_is_set=has_format, replays=replays)
    if advice != stored:
        advice.write(advice_file(rows.folder))
    return advice


def advise_on(found: Advice, *, format_is_set: bool, replays: bool) -> Advice:
    """Add a verdict and sentences, the most important first.

    `format_is_set`: the recipe has an eval.format; `replays`: it has a data.replay.
    """
    verdict, first = _verdict(found)
    sentences = [first, *_held_out(found)]
    form = found.format
    if not format_is_set and form is not None and form.eval_format is not None:
        sentences.append(_to_measure(form, form.eval_format))
    if not replays and form is not None:
        sentences.append(REPLAY)
    sentences += [*_faults_of_rows(found), *_instruction(found.instruction)]
    if found.rows < TOO_FEW_ROWS and found.prompting is None:
        sentences.append("To see what prompting reaches, add --try-prompting.")
    return found.model_copy(update={"verdict": verdict, "sentences": tuple(sentences)})


def size_in_words(rows: int) -> str:
    """Whether this many rows are worth a fine-tuning."""
    low, high = IDEAL_ROWS
    if rows < TOO_FEW_ROWS:
        few = counted(rows, "row is", "rows are")
        return f"{few} few: under {TOO_FEW_ROWS}, a good prompt usually does better."
    if rows < low:
        return f"{rows} rows are enough for a fixed format; {low}–{high:,} is the good range."
    if rows <= high:
        return f"Good size for fine-tuning ({low}–{high:,} rows is the good range)."
    return f"{rows:,} rows are plenty; beyond {high:,}, cleaner rows help more than further ones."


def _verdict(found: Advice) -> tuple[Verdict, str]:
    """And the first sentence."""
    size, few = size_in_words(found.rows), found.rows < TOO_FEW_ROWS
    verdict: Verdict = "prompt" if few else "fine-tune"
    form = found.format
    if found.prompting is not None:
        enough, reached = _prompting_reached(found.prompting)
        return ("fine-tune if called often", reached) if enough else (verdict, f"{reached}. {size}")
    if not few and form is not None and form.fixed:
        size = f"{size} {_form_in_words(form)}."
    elif not few and form is not None and found.rows < IDEAL_ROWS[0]:
        size = f"{size} These answers have no fixed format."
    return verdict, size


def _prompting_reached(prompting: PromptingResult) -> tuple[bool, str]:
    """Whether prompting is enough, and `… reaches 97% format valid (83–99%) on 30 rows`."""
    examples = counted(prompting.shots, "example")
    if not prompting.decided_by:
        return False, (
            f"No score shows whether prompting is enough for free text: compare what the base "
            f"wrote with {examples} to your answers ({prompting.rows} in advice.json)"
        )
    scores = prompting.few_shot
    intervals = {name: scores[f"{name}_interval"] for name in prompting.decided_by}
    reached = " and ".join(
        f"{scores[name]:.0%} {prompting.decided_by[name]} ({low * 100:.0f}–{high:.0%})"
        for name, (low, high) in intervals.items()
    )
    reached += f" on {counted(prompting.rows, 'row')}"
    if all(low >= ENOUGH for low, _ in intervals.values()):
        return True, f"Prompting already reaches {reached}: fine-tune only if you call it often."
    if all(scores[name] >= ENOUGH for name in intervals):
        reached += f": too few to show that it reaches {ENOUGH:.0%}"
    return False, f"Prompting with {examples} reaches {reached}"


def _form_in_words(form: AnswerForm) -> str:
    """`All answers are SQL`, `92% of the answers are 37–59 words long`."""
    answers = "All answers" if form.share == 1 else f"{form.share:.0%} of the answers"
    verb = "have" if form.kind == "opening" else "are"
    return f"{answers} {SHORT.get(form.kind, f'{verb} {form.detail}')}"


def _to_measure(form: AnswerForm, eval_format: Mapping[str, Any]) -> str:
    """With the block for the recipe on one line."""
    has = "To measure that form" if form.fixed else f"{_form_in_words(form)}; to measure that"
    text: str = yaml.safe_dump(
        {"eval": {"format": dict(eval_format)}},
        default_flow_style=True,
        width=10_000,
        sort_keys=False,
        allow_unicode=True,
    )
    block = text.strip().removeprefix("{").removesuffix("}")
    if len(block) > MAX_FORMAT_CHARACTERS:
        block = "take the eval_format of advice.json"
    return f"{has}: {block}"


def _held_out(found: Advice) -> Iterator[str]:
    held_out = found.near_duplicates.held_out if found.near_duplicates else None
    if held_out is not None and held_out.rows:
        training, other, _ = held_out.pairs_shown[0]
        yield (
            f"{held_out.rows} of {counted(held_out.rows_looked_at, 'held-out row')} nearly equal a "
            f"training row ({_place(other)} and {_place(training)}): scores will be too good; "
            "remove one of each."
        )


def _faults_of_rows(found: Advice) -> Iterator[str]:
    """Contradictions, near duplicates, and near duplicates with other labels."""
    same, near = found.same_prompt_different_answers, found.near_duplicates
    if same is not None and same.prompts:
        shown = " and ".join(map(_place, same.shown[0][:2]))
        prompts = counted(same.prompts, "prompt has", "prompts have")
        yield (
            f"{prompts} several answers ({same.rows} rows, for example {shown}): if only one is "
            "right, fix the others."
        )
    if near is not None and near.share >= MIN_DUPLICATES:
        first, second, _ = near.pairs_shown[0]
        yield (
            f"{near.share:.0%} of {near.rows_looked_at:,} training rows nearly equal another "
            f"({_place(first)} and {_place(second)}): they teach little."
        )
    if near and near.disagreeing and found.format is not None and found.format.kind == "labels":
        rows = counted(near.disagreeing, "row has", "rows have")
        yield f"{rows} a nearly equal row with another label: check both."


def _instruction(found: Instruction | None) -> Iterator[str]:
    if found is None or found.tokens < MIN_INSTRUCTION_TOKENS:
        return
    if found.share_of_rows >= MIN_INSTRUCTION:
        yield (
            f"Every prompt begins with the same {found.tokens} tokens "
            f"({found.share_of_prompts:.0%} of it): a tuned model does not need them; leave them "
            "out of rows and calls."
        )


def _place(origin: str) -> str:
    """File name and line of a row."""
    return origin.rpartition("/")[2]
