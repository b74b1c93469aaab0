"""Answers side by side, with what is wrong in them marked, as many as a page can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ftcli.metrics.scorer import BY_WORDS
from ftcli.secrets import masker
from ftcli.stages.report.elsewhere import Told
from ftcli.stages.report.evaluations import SIDES, Evaluation
from ftcli.stages.report.marks import Excerpt, Found, Shown, Tag, excerpt, findings_of, shown
from ftcli.stages.report.over_rows import Equal, References
from ftcli.stages.report.plain import Plain, count, mapping, number, text
from ftcli.stages.report.scored import Score
from ftcli.stages.report.verdict import FaultShare

# A browser on a telephone stays quick with so many rows, and a page of some MB can be sent.
MOST_ROWS = 500
MOST_CHARACTERS = 2_000_000
MOST_FAILURES = 20

RowTag = Literal["format", "content", "term", "banned", "endless", "better", "worse"]
TAGS: Mapping[RowTag, str] = {
    "format": "failed the format",
    "content": "wrong content",
    "term": "terms not in the prompt",
    "banned": "banned claims",
    "endless": "never stopped",
    "better": "changed for the better",
    "worse": "changed for the worse",
}
# Every answer moves the first of these a little; those by words tell no better row.
NOT_OF_ONE_ROW = {"loss", "perplexity", "rouge_l", "chrf", *BY_WORDS}


@dataclass(frozen=True)
class AnswerShown:
    """What one side answered."""

    side: str
    shown: Shown
    tokens: int
    stopped: bool
    findings: tuple[Found, ...]


@dataclass(frozen=True)
class Sample:
    """One held-out row."""

    number: int
    """Its place in the file of answers, from 1."""
    place: str
    prompt: Shown
    reference: Shown
    facts: Shown | None
    """Where they are not the prompt."""
    answers: tuple[AnswerShown, ...]
    tags: tuple[RowTag, ...]

    @property
    def characters(self) -> int:
        texts = [self.prompt, self.reference, *(answer.shown for answer in self.answers)]
        return sum(each.length for each in texts + ([self.facts] if self.facts else []))


@dataclass(frozen=True)
class KindCount:
    """How many answers of each side have a finding of one kind."""

    kind: str
    tag: Tag
    answers: Mapping[str, int]


@dataclass(frozen=True)
class Failure:
    """One thing that is wrong with a tuned answer, with the words that prove it."""

    place: str
    number: int
    found: Found
    excerpt: Excerpt | None


@dataclass(frozen=True)
class Samples:
    """Rows of an evaluation, as far as the page shows them."""

    rows: tuple[Sample, ...]
    total: int
    file: str
    """Where all of them are, relative to the run."""
    tags: Mapping[RowTag, int]
    """How many of the shown rows have each."""
    kinds: tuple[KindCount, ...]
    """Of all rows."""
    failures: tuple[Failure, ...]
    total_failures: int
    at_fault: int
    """Tuned answers that make a banned claim."""
    judged: bool
    """Whether the file says what is wrong with them."""
    whole: int
    """Rows of the file that have something of the tuned model."""
    twins: Mapping[str, str]
    """Score → an earlier one that is equal in every row."""
    labels: bool
    """Whether the answers of the data are a few labels."""

    @property
    def faults(self) -> FaultShare | None:
        """None where nothing looked at the answers."""
        return FaultShare(self.at_fault, self.total) if self.judged else None

    @property
    def shown_numbers(self) -> frozenset[int]:
        """Of the rows that are shown."""
        return frozenset(row.number for row in self.rows)


@dataclass
class _Gathering:
    """What is kept while the rows go by: not more of them than can be shown.

    Those that a person has to see, failures and changes for the worse, before the others.
    """

    telling: list[Sample] = field(default_factory=list)
    others: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    total: int = 0
    total_failures: int = 0
    at_fault: int = 0
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    tag_of: dict[str, Tag] = field(default_factory=dict)

    def add(self, sample: Sample, texts: Mapping[str, str]) -> None:
        self.total += 1
        kept = self.telling if set(sample.tags) - {"better"} else self.others
        if len(kept) < MOST_ROWS:
            kept.append(sample)
        for answer in sample.answers:
            self._count(answer)
            if answer.side == "tuned":
                self._keep_failures(sample, answer, texts["tuned"])

    def _count(self, answer: AnswerShown) -> None:
        self.tag_of.update({found.kind: found.tag for found in answer.findings})
        for kind in {found.kind for found in answer.findings}:
            self.kinds[kind, answer.side] += 1
        if answer.side == "tuned":
            self.at_fault += any(found.tag == "banned" for found in answer.findings)

    def _keep_failures(self, sample: Sample, answer: AnswerShown, whole: str) -> None:
        faults = [found for found in answer.findings if found.tag != "note"]
        self.total_failures += len(faults)
        room = MOST_FAILURES - len(self.failures)
        for found in faults[:room]:
            cut = excerpt(whole, found)
            self.failures.append(Failure(sample.place, sample.number, found, cut))

    def chosen(self) -> tuple[Sample, ...]:
        """Telling rows first, as long as there is room; in the file's order."""
        kept: list[Sample] = []
        room = MOST_CHARACTERS
        for sample in [*self.telling, *self.others][:MOST_ROWS]:
            room -= sample.characters
            if room < 0:
                break
            kept.append(sample)
        return tuple(sorted(kept, key=lambda sample: sample.number))


def samples_of(
    evaluation: Evaluation, lines: Iterable[Plain], file: str, told: Told, *, judged: bool = True
) -> Samples | None:
    """From a file of answers; none where it holds no row."""
    scores = [row.score for row in evaluation.scores]
    gathering, equal = _Gathering(), Equal([score.name for score in scores])
    mask, references = masker(), References()
    for kept in lines:
        line = {**kept, "file": told(text(kept.get("file")))}
        equal.add(line)
        references.add(text(line.get("reference")))
        texts = {side: mask(text(answer.get("text"))) for side, answer in _sides(line)}
        asked = {name: mask(text(line.get(name))) for name in ("prompt", "reference", "facts")}
        gathering.add(_sample(gathering.total + 1, line, scores, texts | asked), texts)
    if not gathering.total:
        return None
    rows = gathering.chosen()
    return Samples(
        rows=rows,
        total=gathering.total,
        file=file,
        tags={tag: sum(tag in row.tags for row in rows) for tag in TAGS},
        kinds=_kind_counts(gathering),
        failures=tuple(gathering.failures),
        total_failures=gathering.total_failures,
        at_fault=gathering.at_fault,
        judged=judged,
        whole=equal.whole,
        twins=equal.twins(),
        labels=references.are_labels,
    )


def first_samples(evaluation: Evaluation, file: str, told: Told) -> Samples | None:
    """Of an evaluation that kept its first rows only."""
    lines = [{**plain, "sides": _answers_in(plain)} for plain in evaluation.samples]
    return samples_of(evaluation, lines, file, told, judged=False)


def _answers_in(plain: Plain) -> dict[str, Any]:
    return {side: plain[side] for side in SIDES if mapping(plain.get(side))}


def _sides(line: Plain) -> Iterator[tuple[str, Plain]]:
    """Base, prompted, tuned, as far as they are there and have answered."""
    answers = mapping(line.get("sides"))
    for side in SIDES:
        answer = mapping(answers.get(side))
        if isinstance(answer.get("text"), str):
            yield side, answer


def _sample(number_: int, line: Plain, scores: Sequence[Score], texts: Mapping[str, str]) -> Sample:
    sides = dict(_sides(line))
    answers = tuple(
        AnswerShown(
            side=side,
            shown=shown(texts[side], findings),
            tokens=count(answer.get("tokens")),
            stopped=answer.get("stopped") is True,
            findings=findings,
        )
        for side, answer in sides.items()
        # Places are those of the text as it was; what is masked has others.
        for findings in [findings_of(answer, placed=texts[side] == answer["text"])]
    )
    prompt, facts = texts["prompt"], texts["facts"]
    place = f"{text(line.get('file'))}:{count(line.get('line'))}"
    return Sample(
        number=number_,
        place=place,
        prompt=shown(prompt),
        reference=shown(texts["reference"]),
        facts=shown(facts) if facts and facts != prompt else None,
        answers=answers,
        tags=tuple(_tags(sides, answers, scores)),
    )


def _tags(
    sides: Mapping[str, Plain], answers: Sequence[AnswerShown], scores: Sequence[Score]
) -> Iterator[RowTag]:
    tuned = next((answer for answer in answers if answer.side == "tuned"), None)
    if tuned is not None:
        found = {finding.tag for finding in tuned.findings}
        yield from (tag for tag in TAGS if tag in found)
        if not tuned.stopped:
            yield "endless"
    if "base" in sides and tuned is not None:
        change = _change(sides["base"], sides["tuned"], scores)
        if change:
            yield "better" if change > 0 else "worse"


def _change(base: Plain, tuned: Plain, scores: Sequence[Score]) -> int:
    """1: better in a score and worse in none, -1 the other way round, 0: neither."""
    signs = set()
    for score in scores:
        before, after = _ratio(base, score.name), _ratio(tuned, score.name)
        if score.better is None or score.name in NOT_OF_ONE_ROW or before is None or after is None:
            continue
        if before != after:
            signs.add(1 if (after > before) == (score.better == "higher") else -1)
    return signs.pop() if len(signs) == 1 else 0


def _ratio(answer: Plain, name: str) -> float | None:
    if name == "stop_rate" and isinstance(answer.get("stopped"), bool):
        return float(answer["stopped"])
    found = mapping(answer.get("counts")).get(name)
    if not isinstance(found, list) or len(found) != 2:
        return None
    top, bottom = number(found[0]), number(found[1])
    return top / bottom if top is not None and bottom else None


def _kind_counts(gathering: _Gathering) -> tuple[KindCount, ...]:
    found = []
    for kind, tag in gathering.tag_of.items():
        answers: dict[str, int] = {side: gathering.kinds[kind, side] for side in SIDES}
        found.append(KindCount(kind, tag, answers))
    order = [*TAGS, "note"]
    return tuple(sorted(found, key=lambda each: (order.index(each.tag), each.kind)))
