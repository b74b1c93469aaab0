"""Statistics of prepared rows: near duplicates, contradictions, lengths, the form of answers, and
the beginning of all prompts."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from ftcli.console import Reporter
from ftcli.data.dataset import SPLITS, Dataset, Split, read_turns, row_batches
from ftcli.data.example import Message, Origin
from ftcli.evaluation.advice.answer_form import (
    COMMON,
    AnswerForm,
    answer_form,
    common_beginning,
    read_format,
)
from ftcli.evaluation.scorers.facts import question_of
from ftcli.evaluation.scorers.sql_databases import has_tables
from ftcli.evaluation.scorers.text import UNSPACED
from ftcli.runs.results import Result

if TYPE_CHECKING:
    from ftcli.data.tokenizing.rendering import Renderer

# Rows searched for near duplicates: about 6 kB of memory each.
COMPARED_ROWS = 20_000
# Enough answers to know the proportion of a form to within a percent.
SAMPLED_ROWS = 4_000
INSTRUCTION_ROWS = 500  # show which words all prompts have
ROWS_BETWEEN_REPORTS = 1000
# Jaccard similarity of near duplicates: one word in thirty differs.
SIMILAR = 0.8
SHINGLE = 3
WORD = re.compile(r"\w+")
ANSWER = 1  # start of an answer's checksums, so that they differ from a prompt's
# A pair of similarity 0.8 has an equal band with probability 99.8%, one of 0.4 with 15%.
BANDS, BAND = 16, 5
SHORT_ANSWER = 60  # characters: a label, a number, a name
SHOWN = 3
MAX_BINS = 12


@dataclass(frozen=True)
class Duplicates:
    """Rows that nearly equal a training row; rows are `file:line`."""

    rows: int
    rows_looked_at: int
    pairs_shown: tuple[tuple[str, str, float], ...]
    """The earlier row, the later one, and their Jaccard similarity."""


@dataclass(frozen=True)
class NearDuplicates(Duplicates):
    """Among training rows, and between held-out and training rows."""

    share: float
    held_out: Duplicates
    disagreeing: int
    """Near duplicates with different short answers."""


@dataclass(frozen=True)
class Contradictions:
    """Prompts that differ only in case and white space, with different answers."""

    prompts: int
    rows: int
    shown: tuple[tuple[str, ...], ...]
    """For the first such prompts, `file:line` of rows with different answers."""


@dataclass(frozen=True)
class Spread:
    """Tokens per row: 50th and 90th percentile, maximum; and their sum."""

    median: int
    p90: int
    max: int
    total: int


@dataclass(frozen=True)
class Histogram:
    """Rows between each edge and the next; the last edge is above every row."""

    edges: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Lengths:
    """Lengths of all rows, in tokens."""

    prompt: Spread
    answer: Spread
    histogram: Histogram


@dataclass(frozen=True)
class Instruction:
    """The common beginning of all prompts."""

    tokens: int
    share_of_prompts: float
    share_of_rows: float
    begins: str


class RowStatistics(Result):
    """Statistics of prepared rows; plain texts have only their number and lengths."""

    fingerprint: str
    rows: int
    near_duplicates: NearDuplicates | None = None
    format: AnswerForm | None = None
    same_prompt_different_answers: Contradictions | None = None
    lengths: Lengths | None = None
    instruction: Instruction | None = None


@dataclass(frozen=True)
class DataRow:
    """Turns that end with an answer, and their lengths in tokens."""

    origin: Origin
    messages: tuple[Message, ...]
    prompt_tokens: int
    answer_tokens: int
    held_out: bool = False

    @property
    def prompt(self) -> str:
        """All turns before the answer, on lines of their own."""
        return "\n".join(turn.content for turn in self.messages[:-1])

    @property
    def answer(self) -> str:
        return self.messages[-1].content


@dataclass(frozen=True)
class PreparedRows:
    """The task's rows of a data folder, without replayed rows."""

    folder: Path
    prepared: Dataset

    def all(self, one_batch_in: int = 1) -> Iterator[DataRow]:
        """Training rows first; `one_batch_in`: every n-th batch of neighbouring rows.

        Whole batches, because similar rows are often neighbours in the user's file.
        """
        for split in SPLITS:
            yield from self.of(split, one_batch_in)

    def of(self, split: Split, one_batch_in: int = 1) -> Iterator[DataRow]:
        """The rows of one split."""
        if self.prepared.counts(split).rows:
            for batch in islice(row_batches(self.folder, split), 0, None, one_batch_in):
                yield from _rows(batch, held_out=split != "train")


def _rows(batch: Any, *, held_out: bool) -> Iterator[DataRow]:
    import pyarrow.compute as pc

    tokens = pc.list_value_length(batch.column("input_ids")).to_pylist()
    names = ("prompt_tokens", "messages", "file", "line")
    columns = (batch.column(name).to_pylist() for name in names)
    for length, prompt, turns, file, line in zip(tokens, *columns, strict=True):
        prompt = min(prompt, length)  # the prompt itself may be truncated
        yield DataRow(Origin(file, line), read_turns(turns), prompt, length - prompt, held_out)


def statistics_of(rows: PreparedRows, renderer: Renderer, reporter: Reporter) -> RowStatistics:
    prepared, count = rows.prepared, rows.prepared.rows_accepted
    found = RowStatistics(fingerprint=prepared.fingerprint, rows=count, lengths=lengths(rows.all()))
    if prepared.plain_text:
        return found
    one_batch_in = math.ceil(count / COMPARED_ROWS)
    step = math.ceil(count / one_batch_in / SAMPLED_ROWS)
    sample = list(islice(rows.all(one_batch_in), 0, None, step))
    instruction_rows = sample[:: math.ceil(len(sample) / INSTRUCTION_ROWS)]
    compared = _metered("near duplicates", rows.all(one_batch_in), count // one_batch_in, reporter)
    same_prompts = _metered("same prompts", rows.all(), count, reporter)
    return RowStatistics(
        fingerprint=found.fingerprint,
        rows=count,
        lengths=found.lengths,
        near_duplicates=near_duplicates(compared, (row.prompt for row in instruction_rows)),
        format=_format(sample),
        same_prompt_different_answers=contradictions(same_prompts),
        instruction=_instruction(sample, renderer),
    )


def _metered(
    label: str, rows: Iterable[DataRow], count: int, reporter: Reporter
) -> Iterator[DataRow]:
    with reporter.meter(label, count) as meter:
        for number, row in enumerate(rows, 1):
            yield row
            if number % ROWS_BETWEEN_REPORTS == 0 and number < count:
                meter.update(number)


def near_duplicates(rows: Iterable[DataRow], prompts: Iterable[str]) -> NearDuplicates:
    """Compare each row with earlier training rows that are not near duplicates themselves.

    `rows`: training rows first. `prompts`: a sample; shingles of more than half of them are the
    instruction and are left out.
    """
    from datasketch import MinHash, MinHashLSH

    asked = [_shingles(prompt) for prompt in prompts]
    often = Counter(chain.from_iterable(asked))
    instruction = {shingle for shingle, count in often.items() if count > len(asked) / 2}
    minhash = MinHash(BANDS * BAND, hashfunc=int)
    index = MinHashLSH(num_perm=BANDS * BAND, params=(BANDS, BAND))
    compared = [0, 0]  # training rows, held-out rows
    kept: list[tuple[str, str, array[int]]] = []
    # The earlier row, the later row, their similarity; of training rows, of held-out rows.
    pairs: tuple[list[tuple[str, str, float]], ...] = ([], [])
    disagreeing = 0
    for row in rows:
        shingles = (_shingles(row.prompt) - instruction) | _shingles(row.answer, ANSWER)
        if not shingles:
            continue
        compared[row.held_out] += 1
        origin = str(row.origin)
        answer = _plain(row.answer) if len(row.answer) <= SHORT_ANSWER else ""
        minhash.clear()
        minhash.update_batch(shingles)
        for place in sorted(index.query(minhash)):
            first, other, earlier = kept[place]
            both = len(shingles.intersection(earlier))
            if (similarity := both / (len(shingles) + len(earlier) - both)) >= SIMILAR:
                pairs[row.held_out].append((first, origin, round(similarity, 3)))
                disagreeing += "" not in (answer, other) and answer != other
                break
        else:
            if not row.held_out:
                index.insert(len(kept), minhash, check_duplication=False)
                kept.append((origin, answer, array("I", shingles)))
    found, held_out = pairs
    count = len(found) + len({first for first, *_ in found})
    return NearDuplicates(
        share=count / max(compared[0], 1),
        rows=count,
        rows_looked_at=compared[0],
        pairs_shown=tuple(found[:SHOWN]),
        held_out=Duplicates(len(held_out), compared[1], tuple(held_out[:SHOWN])),
        disagreeing=disagreeing,
    )


def _shingles(text: str, start: int = 0) -> set[int]:
    """Checksums of all word trigrams; a shorter text is one shingle."""
    words = WORD.findall(UNSPACED.sub(r" \g<0> ", text.lower()))
    last = max(len(words) - SHINGLE, 0) + 1 if words else 0
    groups = (" ".join(words[place : place + SHINGLE]) for place in range(last))
    return {crc32(group.encode("utf-8", "surrogatepass"), start) for group in groups}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def contradictions(rows: Iterable[DataRow]) -> Contradictions:
    """Compare digests of prompts and answers: 32 bytes per row in memory."""
    import numpy

    digests, lines, files = array("Q"), array("q"), list[str]()
    for row in rows:
        turns = (f"{turn.role}\0{_plain(turn.content)}" for turn in row.messages[:-1])
        digests.extend((_digest("\0".join(turns)), _digest(_plain(row.answer))))
        lines.append(row.origin.line)
        files.append(sys.intern(row.origin.file))
    prompts, answers = numpy.array(digests, numpy.uint64).reshape(-1, 2).T
    different = numpy.unique(numpy.stack([prompts, answers]), axis=1)[0]
    values, counts = numpy.unique(different, return_counts=True)
    found = numpy.flatnonzero(numpy.isin(prompts, values[counts > 1]))
    shown: dict[int, dict[int, str]] = {}
    for place in found.tolist():
        answer, origin = int(answers[place]), str(Origin(files[place], lines[place]))
        shown.setdefault(int(prompts[place]), {}).setdefault(answer, origin)
    first = tuple(tuple(group.values())[:SHOWN] for group in list(shown.values())[:SHOWN])
    return Contradictions(len(shown), len(found), first)


def _digest(text: str) -> int:
    """64 bits: a collision among a million prompts has probability 3 in 10^8."""
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(found.digest(), "big")


def lengths(rows: Iterable[DataRow]) -> Lengths | None:
    """Of prompts and answers; None: no rows."""
    import numpy

    counts = (count for row in rows for count in (row.prompt_tokens, row.answer_tokens))
    both = numpy.fromiter(counts, numpy.int64).reshape(-1, 2)
    if not len(both):
        return None
    longest = int(both.max())
    step = longest // MAX_BINS + 1
    edges = tuple(range(0, longest + step + 1, step))
    spreads, bins = [], []
    for tokens in both.T:
        median, p90 = numpy.percentile(tokens, [50, 90], method="inverted_cdf")
        spreads.append(Spread(int(median), int(p90), int(tokens.max()), int(tokens.sum())))
        bins.append(tuple(numpy.histogram(tokens, edges)[0].tolist()))
    return Lengths(spreads[0], spreads[1], Histogram(edges, bins[0], bins[1]))


def _format(sample: Sequence[DataRow]) -> AnswerForm:
    """The form of the answers; `eval_format` only if the recipe accepts it."""
    form = answer_form([row.answer for row in sample])
    conversations = (question_of(row.messages, None).conversation for row in sample)
    if form.kind == "sql" and all(map(has_tables, conversations)):
        form = replace(form, eval_format={"type": "sql", "table": "prompt"})
    return form if read_format(form.eval_format) else replace(form, eval_format=None)


def _instruction(sample: Sequence[DataRow], renderer: Renderer) -> Instruction:
    """The common beginning of prompts, and its proportion of all tokens."""
    text = common_instruction(sample)
    tokens = len(renderer.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
    prompts = sum(row.prompt_tokens for row in sample)
    whole = prompts + sum(row.answer_tokens for row in sample)
    shared = tokens * len(sample)
    return Instruction(tokens, shared / max(prompts, 1), shared / max(whole, 1), text[:80])


def common_instruction(rows: Sequence[DataRow]) -> str:
    """The system prompt and the beginning of the first question that nearly all rows have."""
    systems = [row.messages[0].content for row in rows if row.messages[0].role == "system"]
    system, often = Counter(systems).most_common(1)[0] if systems else ("", 0)
    questions = [
        next((turn.content for turn in row.messages if turn.role == "user"), "") for row in rows
    ]
    parts = (system if often >= COMMON * len(rows) else "", common_beginning(questions))
    return "\n".join(filter(None, parts))
