"""`ftcli generate`: answer a prompt or a file of prompts with finished runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.console import Reporter, shown_path
from ftcli.data.example import Message, RowError
from ftcli.data.formats import fill
from ftcli.errors import Stopped, UsageError
from ftcli.inference.answers_file import (
    AnswersFile,
    PromptFile,
    made_with,
    read_prompt_file,
)
from ftcli.inference.several_adapters import Member, chosen, find_members
from ftcli.runs.locks import exclusive_file_lock
from ftcli.runs.signals import StopSignals
from ftcli.training.opening import open_run

if TYPE_CHECKING:
    from ftcli.inference.generation import Answer
    from ftcli.inference.several_adapters import AdapterSet


@dataclass(frozen=True)
class GenerateOptions:
    """Arguments of the command: a run, and other adapters on its base."""

    run: Path
    overrides: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    """NAME=RUN, or NAME=OTHER:WEIGHT+…."""
    use: str | None = None
    """Name of the adapter that answers prompts without one; None: RUN's."""
    seed: int | None = None
    """Makes sampling repeatable."""

    def open(self) -> tuple[Member, ...]:
        """RUN and the other adapters; raises FtcliError."""
        run = open_run(self.run, self.overrides)
        members = find_members(run, self.adapters, self.overrides)
        chosen(members, self.use)  # a wrong name is an error before anything is loaded
        return members


@dataclass(frozen=True)
class AnswersResult:
    """Result of answering a file."""

    output: Path
    rows: int
    answered_before: int
    rejected: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}


@dataclass(frozen=True)
class Generator:
    """Trained models on one base, each prompted as in its training."""

    members: tuple[Member, ...]
    adapters: AdapterSet

    def answer(
        self, prompt: str, name: str | None = None, on_text: Callable[[str], object] | None = None
    ) -> Answer:
        """One member's answer to a prompt, by default RUN's; `on_text` gets it piece by piece."""
        from ftcli.inference.generation import stream_answer

        member = chosen(self.members, name)
        settings = member.opened.recipe.generation
        ids = self._ids(member, prompt)
        return stream_answer(self.adapters.use(member.name), ids, settings, on_text)

    def answers(self, name: str, prompts: Sequence[Sequence[Message]]) -> list[Answer]:
        """One member's answers to conversations."""
        from ftcli.inference.generation import answer_prompts

        model = self.adapters.use(name)
        ids = [model.prompt_format.renderer.prompt_ids(list(messages)) for messages in prompts]
        settings = chosen(self.members, name).opened.recipe.generation
        return answer_prompts(model, ids, settings)

    def _ids(self, member: Member, prompt: str) -> list[int]:
        renderer = self.adapters.models[member.name].prompt_format.renderer
        if member.opened.prepared.plain_text:
            return renderer.text_prompt_ids(prompt)
        messages, system = [Message("user", prompt)], member.opened.prepared.system
        if system is not None:
            try:
                messages.insert(0, Message("system", fill(system, {}, "data.system")))
            except RowError as error:
                raise UsageError(
                    "prompt",
                    f"data.system is filled from columns ({error}); answer a file with --input",
                ) from error
        return renderer.prompt_ids(messages)


def open_generator(options: GenerateOptions) -> Generator:
    """Load the base once, and every adapter onto it."""
    return _load(options.open(), options.seed)


def answer_file(
    options: GenerateOptions, *, source: Path, output: Path, reporter: Reporter
) -> AnswersResult:
    """Answer every row of a file; resumes where the same command stopped.

    The output has the row's columns, its `line`, `answer` and `stopped`, and `adapter` if there are
    several. A row's own `adapter` goes before `--use`. Raises MachineError (`output_locked`) if
    another process writes the same file.
    """
    members = options.open()
    for member in members:
        if member.opened.prepared.plain_text:
            raise UsageError(
                "prompt", f"{member.name} was trained on plain texts; give one as PROMPT"
            )
    with exclusive_file_lock(output, "output_locked", "take another --output"):
        prompts = read_prompt_file(members, chosen(members, options.use).name, source)
        answers = AnswersFile(output, prompts.rows, source)
        made = made_with(members, options.seed)
        answers.require_made_with(made)
        if prompts.ignores_adapter_column:
            reporter.note(f"{source}: without --adapter the column `adapter` is ignored")
        done = answers.count()
        if done < len(prompts.rows):
            stops = StopSignals(reporter.note)
            with stops.caught(), _resumable(answers, prompts, stops):
                generator = _load(members, options.seed)
                answers.begin(made)
                _answer_rest(generator, prompts, answers, done, reporter)
    return AnswersResult(output, len(prompts.rows), done, prompts.rejected)


@contextmanager
def _resumable(answers: AnswersFile, prompts: PromptFile, stops: StopSignals) -> Iterator[None]:
    """Raise Stopped with the number of answered rows after a signal."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Stopped(
            f"stopped: {answers.count()} of {len(prompts.rows)} rows are answered in "
            f"{shown_path(answers.path)}; the same command resumes",
            stops.number or signal.SIGINT,
        ) from interrupt


def _load(members: tuple[Member, ...], seed: int | None) -> Generator:
    from ftcli.inference.generation import seed_sampling
    from ftcli.inference.open_model import load_tuned_model
    from ftcli.inference.several_adapters import AdapterSet
    from ftcli.models.prompt_manifest import verify_run

    if seed is not None:
        seed_sampling(seed)
    first, *others = members
    adapters = AdapterSet(first.name, load_tuned_model(first.opened))
    for member in others:
        opened = member.opened
        prompt_format = verify_run(opened.recipe, opened.run, opened.prepared)
        if member.parts:
            adapters.add_sum(member.name, member.parts, prompt_format)
        elif opened.run.path == first.opened.run.path:
            adapters.add_name(member.name, first.name)
        else:
            adapters.add(member.name, opened.run.adapter, prompt_format)
    return Generator(members, adapters)


def _answer_rest(
    generator: Generator, prompts: PromptFile, output: AnswersFile, done: int, reporter: Reporter
) -> None:
    """Answer batch by batch; write a row as soon as all rows before it are written."""
    from ftcli.inference.several_adapters import batches_by_name
    from ftcli.memory.step import ANSWERED_ROWS

    rest = prompts.rows[done:]
    waiting: dict[int, Answer] = {}
    written = 0
    with reporter.meter("answers", len(prompts.rows)) as meter:
        for batch in batches_by_name([row.adapter for row in rest], ANSWERED_ROWS):
            name = rest[batch[0]].adapter
            answers = generator.answers(name, [rest[index].messages for index in batch])
            waiting |= dict(zip(batch, answers, strict=True))
            while written in waiting:
                output.append(done + written, waiting.pop(written))
                written += 1
            meter.update(done + written)
