"""Is fine-tuning the right thing for these rows? Statistics, what prompting reaches, a verdict and
sentences that explain it."""

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

# Prompting does where the lower ends of the scores' intervals reach this share of all calls.
PROMPTING_DOES = 0.8
# Below these shares a sentence is not worth its line.
DUPLICATES_WORTH_SAYING, INSTRUCTION_WORTH_SAYING = 0.02, 0.2
INSTRUCTION_TOKENS = 20
MAX_FORMAT_CHARACTERS = 160  # characters; a longer block stands in advice.json alone
# What answers of a kind do, where its detail is longer than a terminal is wide.
SHORT = {
    "json": "are JSON of one kind",
    "sql": "are SQL",
    "lines": "have the same kinds of lines",
    "sections": "have the same sections",
    "labels": "are one of a few labels",
}
REPLAY = (
    "Rows of one task teach a model to do nothing else: data.replay: builtin mixes general "
    "instructions in (docs/forgetting.md)."
)


Verdict = Literal["prompt", "fine-tune", "fine-tune if called often"]


class Advice(RowStatistics):
    """All of advice.json."""

    error_remedy = "prepare again"

    version: Literal[3] = 3  # goes up when the same rows would give other statistics
    prompting: PromptingResult | None = None
    verdict: Verdict = "fine-tune"
    sentences: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Fields of advice.json as `prepare --json` shows them."""
        return self.model_dump(mode="json", exclude={"version", "fingerprint"})


def advice_file(folder: Path) -> Path:
    """Where the advice stands in a data folder."""
    return folder / "advice.json"


def read_advice(folder: Path, fingerprint: str) -> Advice | None:
    """Earlier advice on the same rows; None: it is missing, of other rows, or damaged."""
    with suppress(FtcliError):
        found = Advice.read(advice_file(folder))
        return found if found.fingerprint == fingerprint else None
    return None


def give_advice(
    recipe: Recipe, renderer: Renderer, rows: PreparedRows, reporter: Reporter
) -> Advice:
    """Advice on a preparation: read where it was kept, else made and kept.

    A preparation never fails for want of advice: a warning says what went wrong.
    """
    prepared = rows.prepared
    try:
        kept = read_advice(rows.folder, prepared.fingerprint)
        found = kept or Advice(**vars(statistics_of(rows, renderer, reporter)))
        prompting = found.prompting
        if prompting is not None and prompting.key != prompting_key(
            recipe, prepared, prompting.shots_asked
        ):
            found = found.model_copy(update={"prompting": None})
        return _concluded(recipe, found, kept, rows)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rows are prepared
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
    """The advice with scores of the base, which is asked unless the advice has the same scores.

    Raises FtcliError as `try_prompting`.
    """
    same = advice.prompting is not None and advice.prompting.shots_asked == shots
    if same or advice.lengths is None:
        return advice
    prompting = try_prompting(recipe, renderer, rows, advice.format, shots, reporter)
    found = advice.model_copy(update={"prompting": prompting})
    return _concluded(recipe, found, advice, rows)


def _concluded(recipe: Recipe, found: Advice, kept: Advice | None, rows: PreparedRows) -> Advice:
    """With its verdict; written where that is not what was kept."""
    has_format, replays = recipe.eval.format is not None, recipe.data.replay is not None
    advice = advise_on(found, format_is_set=has_format, replays=replays)
    if advice != kept:
        advice.write(advice_file(rows.folder))
    return advice


def advise_on(found: Advice, *, format_is_set: bool, replays: bool) -> Advice:
    """The same with a verdict and sentences, the most important first.

    `format_is_set`: the recipe has an eval.format already; `replays`: it has a data.replay.
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
        sentences.append("What prompting reaches on them: the same command with --try-prompting")
    return found.model_copy(update={"verdict": verdict, "sentences": tuple(sentences)})


def size_in_words(rows: int) -> str:
    """Whether this many examples are worth a fine-tuning (MISSION: when to fine-tune)."""
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
        often, reached = _prompting_reached(found.prompting)
        return ("fine-tune if called often", reached) if often else (verdict, f"{reached}. {size}")
    if not few and form is not None and form.fixed:
        size = f"{size} {_habit(form)}."
    elif not few and form is not None and found.rows < IDEAL_ROWS[0]:
        size = f"{size} These answers have none."
    return verdict, size


def _prompting_reached(prompting: PromptingResult) -> tuple[bool, str]:
    """Whether prompting does, and `97% in the format (83–99%) on 30 rows`."""
    scores = prompting.few_shot
    intervals = {name: scores[f"{name}_interval"] for name in prompting.decided_by}
    reached = " and ".join(
        f"{scores[name]:.0%} {prompting.decided_by[name]} ({low * 100:.0f}–{high:.0%})"
        for name, (low, high) in intervals.items()
    )
    reached += f" on {counted(prompting.rows, 'row')}"
    if all(low >= PROMPTING_DOES for low, _ in intervals.values()):
        return True, f"Prompting already reaches {reached}: fine-tune only if you call it often."
    if all(scores[name] >= PROMPTING_DOES for name in intervals):
        reached += f": too few to show that it reaches {PROMPTING_DOES:.0%}"
    return False, f"Prompting with {counted(prompting.shots, 'example')} reaches {reached}"


def _habit(form: AnswerForm) -> str:
    """`All answers are SQL`, `92% of the answers are 37–59 words long`."""
    answers = "All answers" if form.share == 1 else f"{form.share:.0%} of the answers"
    return f"{answers} {SHORT.get(form.kind, f'are {form.detail}')}"


def _to_measure(form: AnswerForm, eval_format: Mapping[str, Any]) -> str:
    """With the block for the recipe in one line, to be pasted."""
    has = "To measure that form" if form.fixed else f"{_habit(form)}; to measure that"
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
            f"training row ({_place(other)} and {_place(training)}): the score will flatter; take "
            "one of each out."
        )


def _faults_of_rows(found: Advice) -> Iterator[str]:
    """Contradictions, near duplicates, and labels that differ among these."""
    same, near = found.same_prompt_different_answers, found.near_duplicates
    if same is not None and same.prompts:
        shown = " and ".join(map(_place, same.shown[0][:2]))
        prompts = counted(same.prompts, "prompt has", "prompts have")
        yield (
            f"{prompts} several answers ({same.rows} rows, such as {shown}): where one alone is "
            "right, mend the others."
        )
    if near is not None and near.share >= DUPLICATES_WORTH_SAYING:
        first, second, _ = near.pairs_shown[0]
        yield (
            f"{near.share:.0%} of {near.rows_looked_at:,} training rows nearly equal another "
            f"({_place(first)} and {_place(second)}): they teach little that is new."
        )
    if near and near.disagreeing and found.format is not None and found.format.kind == "labels":
        rows = counted(near.disagreeing, "row has", "rows have")
        yield f"{rows} another label than a nearly equal row: check whether both are right."


def _instruction(found: Instruction | None) -> Iterator[str]:
    if found is None or found.tokens < INSTRUCTION_TOKENS:
        return
    if found.share_of_rows >= INSTRUCTION_WORTH_SAYING:
        yield (
            f"The same {found.tokens} tokens begin every prompt ({found.share_of_prompts:.0%} of "
            "it): a tuned model needs few of them; leave them out of rows and calls."
        )


def _place(origin: str) -> str:
    """A row's file without its folders, and its line."""
    return origin.rpartition("/")[2]
