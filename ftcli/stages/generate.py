"""`ftcli generate`: use a finished run from the shell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.artifacts import append_json, write_text
from ftcli.console import Reporter
from ftcli.data.example import Message
from ftcli.data.formats import fill
from ftcli.data.prompts import read_prompts
from ftcli.data.row import Reject
from ftcli.data.turns import RowError
from ftcli.errors import DataError, FtcliError, UsageError
from ftcli.recipe import Generation
from ftcli.stages.opening import OpenRun, open_run

if TYPE_CHECKING:
    from ftcli.engine.inference import Model


@dataclass(frozen=True)
class BatchResult:
    """What answering a file came to."""

    output: Path
    rows: int
    answered_before: int
    rejected: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "rows": self.rows,
            "answered_before": self.answered_before,
            "rejected": list(self.rejected),
        }


@dataclass(frozen=True)
class Generator:
    """A tuned model with the training's template, system prompt and stop tokens."""

    opened: OpenRun
    model: Model
    settings: Generation

    def answer(self, prompt: str) -> Iterator[str]:
        """Pieces of the answer to one prompt, as they come."""
        from ftcli.engine.inference import stream_answer

        renderer = self.model.contract.renderer
        if self.opened.prepared.plain_text:
            ids = renderer.text_prompt_ids(prompt)
        else:
            ids = renderer.prompt_ids(_conversation(prompt, self.opened.prepared.system))
        yield from stream_answer(self.model, ids, self.settings)


def open_generator(path: Path, overrides: Sequence[str], seed: int | None) -> Generator:
    """Load a finished run for generation; a seed makes sampling repeatable."""
    opened = open_run(path, overrides)

    from ftcli.engine.inference import seed_sampling
    from ftcli.engine.trained import load_tuned_model

    if seed is not None:
        seed_sampling(seed)
    model = load_tuned_model(opened.loaded, opened.run, opened.prepared)
    return Generator(opened, model, opened.loaded.recipe.generation)


def answer_file(
    path: Path,
    overrides: Sequence[str],
    *,
    source: Path,
    output: Path,
    seed: int | None,
    reporter: Reporter,
) -> BatchResult:
    """Answer every row of a file into a jsonl file; rows already answered there are kept.

    Each line holds `prompt`, `completion` and `stopped`.
    """
    opened = open_run(path, overrides)
    if opened.prepared.plain_text:
        raise UsageError("prompt", "the run was trained on plain texts; give one as PROMPT")
    prompts: list[tuple[Message, ...]] = []
    rejects: list[str] = []
    data = opened.loaded.recipe.data.model_copy(update={"system": opened.prepared.system})
    for item in read_prompts(str(source.absolute()), data, Path.cwd()):
        if isinstance(item, Reject):
            rejects.append(f"{item.origin}: {item.reason}")
        else:
            prompts.append(item)
    if not prompts:
        reason = f": {rejects[0]}" if rejects else ""
        raise DataError("data_empty", f"holds no prompt{reason}", file=str(source))
    done = _answered(output, prompts)
    if done < len(prompts):
        generator = open_generator(path, overrides, seed)
        _answer_rest(generator, prompts, done, output, reporter)
    return BatchResult(output, len(prompts), done, tuple(rejects))


def _conversation(prompt: str, system: str | None) -> list[Message]:
    if system is None:
        return [Message("user", prompt)]
    try:
        return [Message("system", fill(system, {}, "data.system")), Message("user", prompt)]
    except RowError as error:
        raise UsageError(
            "prompt", f"data.system is filled from columns ({error}); answer a file with --input"
        ) from error


def _answered(output: Path, prompts: Sequence[tuple[Message, ...]]) -> int:
    """How many answers are there already; raises FtcliError when they are to other prompts."""
    if not output.is_file():
        return 0
    text = output.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:  # a line that was cut while it was written
        write_text(output, whole + "\n" if whole else "")
    lines = whole.split("\n") if whole else []
    for number, line in enumerate(lines, start=1):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if number > len(prompts) or prompt != prompts[number - 1][-1].content:
            raise FtcliError(
                "output_taken",
                "is not the answer to this input's row; name another --output",
                file=str(output),
                line=number,
            )
    return len(lines)


def _answer_rest(
    generator: Generator,
    prompts: Sequence[tuple[Message, ...]],
    done: int,
    output: Path,
    reporter: Reporter,
) -> None:
    from ftcli.engine.inference import ANSWERED_ROWS, answer_batch
    from ftcli.engine.trained import prompts_of

    model = generator.model
    output.parent.mkdir(parents=True, exist_ok=True)
    with reporter.meter("answers", len(prompts)) as meter:
        for start in range(done, len(prompts), ANSWERED_ROWS):
            part = prompts[start : start + ANSWERED_ROWS]
            answers = answer_batch(model, prompts_of(model, part), generator.settings)
            for messages, answer in zip(part, answers, strict=True):
                line = {"prompt": messages[-1].content, "completion": answer.text}
                append_json(output, line | {"stopped": answer.stopped})
            meter.update(start + len(part))
