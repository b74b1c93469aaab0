"""`ftcli generate`: use finished runs from the shell."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.config.recipe import Generation
from ftcli.console import Reporter, shown_path
from ftcli.data.example import Message
from ftcli.data.formats import fill
from ftcli.data.turns import RowError
from ftcli.errors import Stopped, UsageError
from ftcli.inference.answers_file import answered, begin, made_with, require_same_making
from ftcli.inference.questions import Questions, read_questions
from ftcli.inference.serving import Member, chosen, find_members
from ftcli.runs.atomic import append_json
from ftcli.runs.locks import one_writer_of
from ftcli.runs.signals import StopSignals
from ftcli.training.opening import OpenRun, open_run

if TYPE_CHECKING:
    from ftcli.inference.answer import Answer
    from ftcli.inference.several_adapters import AdapterSet


@dataclass(frozen=True)
class Request:
    """What the command line asks of whom."""

    run: Path
    overrides: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    """NAME=RUN, or NAME=OTHER:WEIGHT+…, beside RUN itself."""
    use: str | None = None
    """Who answers what names nobody; none: RUN."""
    seed: int | None = None
    """Makes sampling repeatable."""

    def open(self) -> tuple[Member, ...]:
        """RUN and the adapters beside it; raises FtcliError."""
        run = open_run(self.run, self.overrides)
        members = find_members(run, self.adapters, self.overrides)
        chosen(members, self.use)  # a wrong name is said before anything is loaded
        return members


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
    """Tuned models on one base, each spoken to as in its training."""

    members: tuple[Member, ...]
    adapters: AdapterSet

    def answer(self, prompt: str, name: str | None = None) -> Iterator[str]:
        """Pieces of one member's answer to a prompt, as they come; RUN's where none is named."""
        from ftcli.inference.generation import stream_answer

        member = chosen(self.members, name)
        model = self.adapters.use(member.name)
        renderer, prepared = model.contract.renderer, member.opened.prepared
        if prepared.plain_text:
            ids = renderer.text_prompt_ids(prompt)
        else:
            ids = renderer.prompt_ids(_conversation(prompt, prepared.system))
        yield from stream_answer(model, ids, _settings(member))

    def answers(self, name: str, prompts: Sequence[tuple[Message, ...]]) -> list[Answer]:
        """One member's answers to some conversations."""
        from ftcli.inference.generation import answer_prompts
        from ftcli.inference.trained import prompts_of

        model = self.adapters.use(name)
        settings = _settings(chosen(self.members, name))
        return answer_prompts(model, prompts_of(model, prompts), settings, lambda _: None)


def open_generator(request: Request) -> Generator:
    """Load the base once, and every adapter onto it."""
    return _load(request.open(), request.seed)


def answer_file(request: Request, *, source: Path, output: Path, reporter: Reporter) -> BatchResult:
    """Answer every row of a file into a jsonl file; goes on where the same request stopped.

    Each line holds `prompt`, `completion` and `stopped`, and `adapter` where there are several. A
    row's own `adapter` goes before `--use`. Raises MachineError (`output_locked`) where another
    process writes the same file.
    """
    members = request.open()
    _require_conversations(members)
    with one_writer_of(output, "output_locked", "take another --output"):
        return _answer_into(output, members, request, source, reporter)


def _answer_into(
    output: Path, members: tuple[Member, ...], request: Request, source: Path, reporter: Reporter
) -> BatchResult:
    made = made_with(members, request.seed)
    require_same_making(output, made)
    found = read_questions(members, chosen(members, request.use).name, source)
    if found.ignores_names:
        reporter.note(f"{source}: without --adapter the rows' `adapter` is ignored")
    done = answered(output, found.asked)
    if done < len(found.asked):
        stops = StopSignals(reporter.note)
        with stops.caught(), _resumable(output, found, stops):
            generator = _load(members, request.seed)
            begin(output, made)
            _answer_rest(generator, found, done, output, reporter)
    return BatchResult(output, len(found.asked), done, found.rejected)


@contextmanager
def _resumable(output: Path, found: Questions, stops: StopSignals) -> Iterator[None]:
    """Say what is answered already when a signal ends it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        done = len(output.read_text(encoding="utf-8").splitlines()) if output.is_file() else 0
        raise Stopped(
            f"stopped: {done} of {len(found.asked)} rows are answered in {shown_path(output)}; the "
            "same command goes on",
            stops.number or signal.SIGINT,
        ) from interrupt


def _load(members: tuple[Member, ...], seed: int | None) -> Generator:
    from ftcli.inference.generation import seed_sampling
    from ftcli.inference.several_adapters import adapter_set, renamed, with_adapter, with_sum
    from ftcli.inference.trained import load_tuned_model
    from ftcli.models.prompt_manifest import contract_of

    if seed is not None:
        seed_sampling(seed)
    first, *others = members
    model = load_tuned_model(first.opened.loaded, first.opened.run, first.opened.prepared)
    adapters = adapter_set(first.name, model)
    for member in others:
        opened: OpenRun = member.opened
        contract = contract_of(opened.loaded, opened.run, opened.prepared)
        if member.parts:
            adapters = with_sum(adapters, member.name, member.parts, contract)
        elif opened.run.path == first.opened.run.path:
            adapters = renamed(adapters, first.name, member.name)
        else:
            adapters = with_adapter(adapters, member.name, opened.run.adapter, contract)
    return Generator(members, adapters)


def _settings(member: Member) -> Generation:
    return member.opened.loaded.recipe.generation


def _conversation(prompt: str, system: str | None) -> list[Message]:
    if system is None:
        return [Message("user", prompt)]
    try:
        return [Message("system", fill(system, {}, "data.system")), Message("user", prompt)]
    except RowError as error:
        raise UsageError(
            "prompt", f"data.system is filled from columns ({error}); answer a file with --input"
        ) from error


def _require_conversations(members: Sequence[Member]) -> None:
    for member in members:
        if member.opened.prepared.plain_text:
            raise UsageError(
                "prompt", f"{member.name} was trained on plain texts; give one as PROMPT"
            )


def _answer_rest(
    generator: Generator, found: Questions, done: int, output: Path, reporter: Reporter
) -> None:
    """Answer batch by batch, and write a row as soon as all before it are written."""
    from ftcli.inference.several_adapters import batches_by_name
    from ftcli.memory.phases import ANSWERED_ROWS

    rest = found.asked[done:]
    waiting: dict[int, dict[str, Any]] = {}
    written = 0
    with reporter.meter("answers", len(found.asked)) as meter:
        for batch in batches_by_name([asked.name for asked in rest], ANSWERED_ROWS):
            name = rest[batch[0]].name
            answers = generator.answers(name, [rest[index].messages for index in batch])
            for index, answer in zip(batch, answers, strict=True):
                line = {"prompt": rest[index].messages[-1].content, "completion": answer.text}
                who = {"adapter": name} if len(generator.members) > 1 else {}
                waiting[index] = line | {"stopped": answer.stopped} | who
            while written in waiting:
                append_json(output, waiting.pop(written))
                written += 1
            meter.update(done + written)
