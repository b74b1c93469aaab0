"""Examples → cleaned, split, tokenised Arrow files: the one preparation that all else reads.

Two passes over the data keep memory small: the first remembers 32 bytes a row to find duplicates
and decide the splits, the second renders and writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ftcli.artifacts import RunFolder, sha256_file, whole_folder
from ftcli.console import Reporter
from ftcli.data.example import Example
from ftcli.data.reading import pinned_system, read_examples
from ftcli.data.source import Reject
from ftcli.data.split import plan_split
from ftcli.engine.contract import contract_of
from ftcli.engine.rendering import IGNORED, Encoded, Renderer, RowFault
from ftcli.engine.rows import RowWriter, read_split, record
from ftcli.errors import DataError
from ftcli.loading import Loaded
from ftcli.prepared import (
    SPLITS,
    TRUNCATION_BUDGET,
    Fault,
    LongestRow,
    Prepared,
    Split,
    SplitCounts,
    load_prepared,
    save_prepared,
    split_file,
)
from ftcli.recipe import Data
from ftcli.shapes import model_source

FINGERPRINT_VERSION = 1
NO_ROW = LongestRow("", 0, 0)
# How many leaks are named in an error.
NAMED = 5


def prepare(loaded: Loaded, renderer: Renderer, folder: Path, reporter: Reporter) -> Prepared:
    """Tokenise the recipe's data into `folder`, or find them there with the same fingerprint.

    Says what is unusual about the template. Raises DataError: nothing to train on, leaks, or too
    much of the answers cut.
    """
    data, seed = loaded.recipe.data, loaded.recipe.training.seed
    mark = fingerprint(loaded, renderer)
    if renderer.note is not None:
        reporter.note(renderer.note)
    earlier = load_prepared(folder)
    if earlier is not None and earlier.fingerprint == mark:
        return earlier
    first = _first_pass(data, loaded.base, seed)
    with whole_folder(folder) as temporary:
        tally = _second_pass(data, loaded.base, renderer, first, temporary, reporter)
        prepared = _prepared(loaded, mark, first, tally, renderer)
        _require_rows(prepared, data)
        _require_answers(prepared, data)
        save_prepared(prepared, temporary)
    return prepared


def fingerprint(loaded: Loaded, renderer: Renderer) -> str:
    """16 hex digits that change with anything that shapes the token ids."""
    data = loaded.recipe.data
    tokenizer = renderer.tokenizer
    parts = {
        "version": FINGERPRINT_VERSION,
        "files": {s: _file_digest(s, loaded.base) for s in _sources(data).values()},
        "template": tokenizer.chat_template,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        # Roles of tokens, which stand in tokenizer_config.json beside the tokens themselves.
        "roles": [tokenizer.bos_token_id, renderer.pad_id, *renderer.stop_ids],
        "data": data.model_dump(exclude={"shuffle", "allow_truncation", "allow_leaks"}),
        "seed": loaded.recipe.training.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _sources(data: Data) -> dict[Split, str]:
    """The files named in the recipe: train always, the others where they are no share."""
    sources: dict[Split, str] = {"train": data.train}
    if isinstance(data.validation, str):
        sources["validation"] = data.validation
    if isinstance(data.test, str):
        sources["test"] = data.test
    return sources


def _file_digest(source: str, base: Path) -> str:
    path = base / source
    return sha256_file(path) if path.is_file() else source


@dataclass(frozen=True)
class _First:
    """What the first pass decided: for each source, the side of its n-th readable example."""

    sides: dict[Split, list[str]]
    leaks: int
    duplicates: int
    system: str | None


def _first_pass(data: Data, base: Path, seed: int) -> _First:
    sides: dict[Split, list[str]] = {}
    leaking: list[str] = []
    duplicates = 0
    train_prompts: set[bytes] = set()
    for name, source in _sources(data).items():
        digests: list[tuple[bytes, bytes]] = []
        for item in read_examples(source, data, base):
            if isinstance(item, Example):
                digests.append((item.digest(), item.prompt_digest()))
                if name != "train" and item.prompt_digest() in train_prompts:
                    leaking.append(str(item.origin))
        shares = (_share(data.validation), _share(data.test)) if name == "train" else (0, 0)
        split = plan_split(digests, *shares, seed=seed, deduplicate=data.deduplicate)
        sides[name] = [_side(split.side(index), name) for index in range(len(digests))]
        duplicates += sides[name].count("duplicate")
        if name == "train":
            train_prompts = {
                prompt
                for (_, prompt), side in zip(digests, sides[name], strict=True)
                if side == "train"
            }
    if leaking and not data.allow_leaks:
        raise DataError(
            "leak",
            f"{len(leaking)} held-out rows have a prompt that is trained on too: "
            f"{', '.join(leaking[:NAMED])}; take them out, or set data.allow_leaks: true",
        )
    return _First(sides, len(leaking), duplicates, pinned_system(data, base))


def _share(held_out: float | int | str) -> float | int:
    return 0 if isinstance(held_out, str) else held_out


def _side(side: str, source: Split) -> str:
    return source if side == "train" else side


@dataclass
class _Tally:
    """Running counts of the second pass."""

    read: int = 0
    rejects: list[Fault] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    answer_tokens: int = 0
    lost: int = 0
    longest: LongestRow = NO_ROW
    plain_text: bool = False

    def count(self, side: str, row: Encoded, example: Example) -> None:
        tokens, trained = len(row.input_ids), row.trained_tokens
        self.rows[side] = self.rows.get(side, 0) + 1
        self.tokens[side] = self.tokens.get(side, 0) + tokens
        self.trained[side] = self.trained.get(side, 0) + trained
        self.plain_text = example.text is not None
        if tokens > self.longest.tokens:
            self.longest = LongestRow(example.origin.file, example.origin.line, tokens)


def _second_pass(
    data: Data,
    base: Path,
    renderer: Renderer,
    first: _First,
    folder: Path,
    reporter: Reporter,
) -> _Tally:
    tally = _Tally()
    total = sum(len(sides) for sides in first.sides.values())
    with ExitStack() as stack, reporter.meter("prepare", total) as meter:
        writers = {s: stack.enter_context(RowWriter(split_file(folder, s))) for s in SPLITS}
        for name, source in _sources(data).items():
            sides = iter(first.sides[name])
            for item in read_examples(source, data, base):
                tally.read += 1
                if isinstance(item, Reject):
                    tally.rejects.append(Fault(item.origin.file, item.origin.line, item.reason))
                    continue
                side = next(sides)
                if side != "duplicate" and (row := _encode(item, renderer, data, tally)):
                    writers[cast(Split, side)].write(row, item)
                    tally.count(side, row, item)
                if tally.read % 100 == 0:
                    meter.update(tally.read)
    return tally


def _encode(example: Example, renderer: Renderer, data: Data, tally: _Tally) -> Encoded | None:
    """Ids and labels within `max_length`; nothing when the row has to be rejected."""
    try:
        whole = renderer.encode(example)
    except RowFault as fault:
        tally.rejects.append(Fault(example.origin.file, example.origin.line, fault.message))
        return None
    limit = data.max_length
    row = Encoded(whole.input_ids[:limit], whole.labels[:limit], whole.prompt_tokens)
    tally.answer_tokens += whole.trained_tokens
    tally.lost += whole.trained_tokens - row.trained_tokens
    if row.trained_tokens == 0:
        reason = f"answer cut wholly at {limit} tokens (the row has {len(whole.input_ids)})"
        tally.rejects.append(Fault(example.origin.file, example.origin.line, reason))
        return None
    return row


def preview(folder: Path, renderer: Renderer, count: int) -> Iterator[list[tuple[str, bool]]]:
    """The first training rows as pieces of text, each with whether it is trained on."""
    for row in read_split(folder, "train").slice(0, count).to_pylist():
        yield pieces(renderer, Encoded(row["input_ids"], row["labels"], row["prompt_tokens"]))


def pieces(renderer: Renderer, row: Encoded) -> list[tuple[str, bool]]:
    """Decoded runs of tokens that are alike in being trained on or not."""
    runs: list[tuple[list[int], bool]] = []
    for id_, label in zip(row.input_ids, row.labels, strict=True):
        trained = label != IGNORED
        if not runs or runs[-1][1] != trained:
            runs.append(([], trained))
        runs[-1][0].append(id_)
    return [(str(renderer.tokenizer.decode(ids)), trained) for ids, trained in runs]


def _prepared(
    loaded: Loaded, mark: str, first: _First, tally: _Tally, renderer: Renderer
) -> Prepared:
    def counts(split: Split) -> SplitCounts:
        return SplitCounts(*(t.get(split, 0) for t in (tally.rows, tally.tokens, tally.trained)))

    return Prepared(
        fingerprint=mark,
        model=model_source(loaded.recipe.model.id, loaded.base),
        train_source=loaded.recipe.data.train,
        max_length=loaded.recipe.data.max_length,
        rows_read=tally.read,
        rows_rejected=len(tally.rejects),
        duplicates=first.duplicates,
        leaks=first.leaks,
        train=counts("train"),
        validation=counts("validation"),
        test=counts("test"),
        answer_tokens=tally.answer_tokens,
        answer_tokens_lost=tally.lost,
        longest=tally.longest,
        system=first.system,
        plain_text=tally.plain_text,
        stop_ids=renderer.stop_ids,
        pad_id=renderer.pad_id,
        problems=tuple(tally.rejects),
    )


def _require_rows(prepared: Prepared, data: Data) -> None:
    if prepared.train.rows:
        return
    if not prepared.rows_read:
        raise DataError("data_empty", "holds no rows", file=data.train)
    reasons = ", ".join(str(fault) for fault in prepared.problems[:NAMED])
    raise DataError(
        "data_empty",
        f"none of {prepared.rows_read} rows can be trained on: {reasons}",
        file=data.train,
    )


def _require_answers(prepared: Prepared, data: Data) -> None:
    share = prepared.answer_tokens_lost / max(prepared.answer_tokens, 1)
    if share > TRUNCATION_BUDGET and not data.allow_truncation:
        longest = prepared.longest
        raise DataError(
            "truncation",
            f"data.max_length {data.max_length} cuts {prepared.answer_tokens_lost} of "
            f"{prepared.answer_tokens} answer tokens ({share:.1%}); raise it, shorten the rows, or "
            "set data.allow_truncation: true",
            file=longest.file,
            line=longest.line,
        )


def encode_file(
    source: str, loaded: Loaded, run: RunFolder, prepared: Prepared
) -> list[dict[str, Any]]:
    """Rows of a further file, rendered as the run's own; raises DataError when none can be."""
    renderer = contract_of(loaded, run, prepared).renderer
    rows, tally = [], _Tally()
    for item in read_examples(source, loaded.recipe.data, loaded.base):
        if isinstance(item, Reject):
            tally.rejects.append(Fault(item.origin.file, item.origin.line, item.reason))
        elif (row := _encode(item, renderer, loaded.recipe.data, tally)) is not None:
            rows.append(record(row, item))
    if not rows and tally.rejects:
        raise DataError("data_empty", f"no row can be used: {tally.rejects[0]}", file=source)
    return rows
