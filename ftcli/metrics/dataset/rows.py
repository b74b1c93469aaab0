"""What rows are like: near duplicates, contradictions, lengths, and what all prompts begin with."""

from __future__ import annotations

import hashlib
import re
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple
from zlib import crc32

from ftcli.data.example import Message, Origin
from ftcli.metrics.text import UNSPACED

# From this Jaccard similarity on two rows are near duplicates: one word in thirty differs.
SIMILAR = 0.8
WORDS = 3
WORD = re.compile(r"\w+")
ANSWER = 1  # begins the checksum of an answer's words, so that they are not those of a prompt
# What stands in more than half of the prompts is the instruction.
COMMON = 0.5
# A pair of similarity 0.8 shares one of these bands of hashes with 99.8%, one of 0.4 with 15%.
BANDS, BAND = 16, 5
SEED = 1
SHORT_ANSWER = 60  # characters: a label, a number, a name
SHOWN = 3
MOST_BINS = 12
# So many prompts begin alike; the others may be mistakes.
ALIKE = 0.95


@dataclass(frozen=True)
class DataRow:
    """Turns that end with an answer, and their length in tokens as they are trained on."""

    origin: Origin
    messages: tuple[Message, ...]
    prompt_tokens: int
    answer_tokens: int
    held_out: bool = False

    @property
    def prompt(self) -> str:
        """All turns before the answer, one below the other."""
        return "\n".join(turn.content for turn in self.messages[:-1])

    @property
    def answer(self) -> str:
        return self.messages[-1].content


@dataclass(frozen=True)
class Duplicates:
    """Rows that nearly equal a training row; rows are named `file:line`."""

    rows: int
    rows_looked_at: int
    pairs_shown: tuple[tuple[str, str, float], ...]
    """The earlier row, the later one, and their Jaccard similarity."""


@dataclass(frozen=True)
class NearDuplicates(Duplicates):
    """Those of the training rows, and of held-out rows."""

    share: float
    held_out: Duplicates
    disagreeing: int
    """Near duplicates with another short answer."""


class _Compared(NamedTuple):
    """One row as it is compared."""

    origin: str
    answer: str
    """Empty where it is not short."""
    shingles: array[int]


Pair = tuple[_Compared, _Compared, float]


def near_duplicates(rows: Iterable[DataRow], prompts: Iterable[str]) -> NearDuplicates:
    """Compare each row with the training rows before it that have no near duplicate before them.

    Training rows come first. `prompts`: some of the rows', whose common words are left out.
    """
    from datasketch import MinHash

    common = _common_shingles(prompts)
    minhash = MinHash(BANDS * BAND, seed=SEED, hashfunc=int)
    # MinHashLSH takes 6 kB a row: a set for each band. Here a band has its latest row alone.
    latest: dict[int, _Compared] = {}
    compared = {False: 0, True: 0}
    pairs: dict[bool, list[Pair]] = {False: [], True: []}
    for row in rows:
        shingles = (_shingles(row.prompt) - common) | _shingles(row.answer, ANSWER)
        if not shingles:
            continue
        compared[row.held_out] += 1
        answer = _plain(row.answer) if len(row.answer) <= SHORT_ANSWER else ""
        new = _Compared(str(row.origin), answer, array("I", shingles))
        minhash.clear()
        minhash.update_batch(new.shingles)
        bands = minhash.hashvalues.reshape(BANDS, BAND)
        keys = [crc32(band.tobytes(), place) for place, band in enumerate(bands)]
        others = (latest[key] for key in keys if key in latest)
        found = ((other, new, _jaccard(shingles, other.shingles)) for other in others)
        if pair := next((pair for pair in found if pair[2] >= SIMILAR), None):
            pairs[row.held_out].append(pair)
        elif not row.held_out:
            latest.update(dict.fromkeys(keys, new))
    of_training = len(pairs[False]) + len({first.origin for first, *_ in pairs[False]})
    return NearDuplicates(
        share=of_training / max(compared[False], 1),
        rows=of_training,
        rows_looked_at=compared[False],
        pairs_shown=_shown(pairs[False]),
        held_out=Duplicates(len(pairs[True]), compared[True], _shown(pairs[True])),
        disagreeing=sum(
            "" not in (first.answer, new.answer) and first.answer != new.answer
            for first, new, _ in pairs[False] + pairs[True]
        ),
    )


def _jaccard(one: set[int], other: array[int]) -> float:
    both = len(one.intersection(other))
    return both / (len(one) + len(other) - both)


def _shown(pairs: Sequence[Pair]) -> tuple[tuple[str, str, float], ...]:
    return tuple((first.origin, new.origin, round(value, 3)) for first, new, value in pairs[:SHOWN])


def _common_shingles(prompts: Iterable[str]) -> set[int]:
    """Those of more than half of the prompts."""
    each = [_shingles(prompt) for prompt in prompts]
    counts = Counter(chain.from_iterable(each))
    return {shingle for shingle, count in counts.items() if count > COMMON * len(each)}


def _shingles(text: str, start: int = 0) -> set[int]:
    """Checksums of each three words in a row; a shorter text is one shingle."""
    words = WORD.findall(UNSPACED.sub(r" \g<0> ", text.lower()))
    last = max(len(words) - WORDS, 0) + 1 if words else 0
    groups = (" ".join(words[place : place + WORDS]) for place in range(last))
    return {crc32(group.encode("utf-8", "surrogatepass"), start) for group in groups}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Contradictions:
    """Prompts that are equal but for case and white space, with answers that are not."""

    prompts: int
    rows: int
    shown: tuple[tuple[str, ...], ...]
    """`file:line` of a few rows with different answers, of the first such prompts."""


def contradictions(rows: Iterable[DataRow]) -> Contradictions:
    """Compare rows by digests of prompt and answer: 32 bytes a row are held."""
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
    """64 bits: two of a million prompts are taken for one with a chance of 3 in 10^8."""
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(found.digest(), "big")


@dataclass(frozen=True)
class Spread:
    """Tokens: half of the rows have no more than the median, nine of ten no more than p90."""

    median: int
    p90: int
    max: int
    total: int


@dataclass(frozen=True)
class Histogram:
    """Rows from each edge up to the next; the last edge is above every row."""

    edges: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Lengths:
    """Lengths of all rows, in tokens."""

    prompt: Spread
    answer: Spread
    histogram: Histogram


def lengths(rows: Iterable[DataRow]) -> Lengths | None:
    """Of prompts and answers; none: no rows."""
    import numpy

    both = array("q")
    for row in rows:
        both.extend((row.prompt_tokens, row.answer_tokens))
    if not both:
        return None
    step = max(both) // MOST_BINS + 1
    edges = tuple(range(0, max(both) + step + 1, step))
    spreads, bins = [], []
    for tokens in numpy.array(both).reshape(-1, 2).T:
        median, p90 = numpy.percentile(tokens, [50, 90], method="inverted_cdf")
        spreads.append(Spread(int(median), int(p90), int(tokens.max()), int(tokens.sum())))
        bins.append(tuple(numpy.histogram(tokens, edges)[0].tolist()))
    return Lengths(spreads[0], spreads[1], Histogram(edges, bins[0], bins[1]))


def shared_instruction(rows: Sequence[DataRow]) -> str:
    """The system prompt and the beginning of the first question that nearly all rows share."""
    systems = [row.messages[0].content for row in rows if row.messages[0].role == "system"]
    system, often = Counter(systems).most_common(1)[0] if systems else ("", 0)
    questions = [
        next((turn.content for turn in row.messages if turn.role == "user"), "") for row in rows
    ]
    parts = (system if often >= ALIKE * len(rows) else "", shared_beginning(questions))
    return "\n".join(filter(None, parts))


def shared_beginning(texts: Sequence[str], alike: float = ALIKE) -> str:
    """The longest text of whole lines, or of whole words, with which so many of the texts begin.

    Nothing where it would be the whole of them: then it is the question and no instruction.
    """

    def commonest(length: int) -> tuple[int, str]:
        beginnings = Counter(text[:length] for text in texts if len(text) >= length)
        return max(((often, text) for text, often in beginnings.items()), default=(0, ""))

    lengths = range(1, max(map(len, texts), default=0) + 1)
    # The longer a beginning is, the fewer texts share it.
    length = bisect_right(lengths, -alike * len(texts), key=lambda each: -commonest(each)[0])
    found = commonest(length)[1]
    if sum(text.strip() == found.strip() for text in texts) > len(texts) / 2:
        return ""
    # After the last whole line stands the name of the row's first field; of the last word the
    # texts may share the first letters only.
    whole = re.match(r"[\s\S]*\n|[\s\S]*\s\Z|[\s\S]*(?=\s)", found)
    return whole.group() if whole else ""
