"""Examples → cleaned, split, tokenised Arrow files: the one preparation that all else reads.

Two passes over the data keep memory small: the first remembers 32 bytes a row to find duplicates
and decide the splits (24 of a row that may be replayed), the second renders and writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftcli.config.chat_template import names_file
from ftcli.config.loader import Loaded
from ftcli.config.recipe import Data
from ftcli.console import Reporter, shown_path
from ftcli.data.prepared import (
    PART_NAMES,
    TRUNCATION_BUDGET,
    LongestRow,
    Prepared,
    damaged_files,
    load_prepared,
    save_prepared,
    split_digests,
)
from ftcli.data.reading import read_examples
from ftcli.data.row import Reject
from ftcli.data.sides import Sides, files_of, find_sides, rows_parts, source_digests, sources_of
from ftcli.data.source import data_suffix
from ftcli.data.tokenizing.bulk import Item, encode_items
from ftcli.data.tokenizing.packing import SHARED_TOKENS, usually_shared
from ftcli.data.tokenizing.rendering import IGNORED, Encoded, Renderer
from ftcli.data.tokenizing.replay_rows import tell_few
from ftcli.data.tokenizing.rows import first_rows, record
from ftcli.data.tokenizing.tokenize import Tally, changed, tokenise
from ftcli.errors import DataError, FtcliError
from ftcli.memory.shapes import model_source
from ftcli.models.prompt_manifest import verify_run
from ftcli.runs.atomic import short_digest, whole_folder
from ftcli.runs.folder import RunFolder

FINGERPRINT_VERSION = 3
# Training rows that tell how much rows have in common.
LOOKED_AT = 256
# How many faults are named in an error.
NAMED = 5


def prepare(loaded: Loaded, renderer: Renderer, folder: Path, reporter: Reporter) -> Prepared:
    """Tokenise the recipe's data into `folder`, or find them there with the same fingerprint.

    Rows that are found are proven by the sha256 of their files. Says what is unusual about the
    template, and which files are made anew. Raises DataError: nothing to train on, leaks, or too
    much of the answers cut.
    """
    data, base = loaded.recipe.data, loaded.base
    covered = _covered(loaded, renderer)
    mark = short_digest(covered, 16)
    if renderer.note is not None:
        reporter.note(renderer.note)
    earlier = _earlier(folder, mark, reporter)
    if earlier is not None and _is_whole(earlier, folder, reporter):
        _tell(earlier, reporter)
        return earlier
    sides = find_sides(data, base, loaded.recipe.training.seed, reporter)
    with whole_folder(folder) as temporary:
        tally = tokenise(sides, base, renderer, temporary, reporter)
        _require_same_files(data, base, covered["files"])
        prepared = _prepared(loaded, mark, sides, tally, renderer)
        _require_rows(prepared, data)
        _require_answers(prepared, data, tally.longest)
        prepared = replace(
            prepared,
            digests=split_digests(temporary),
            shared_tokens=usually_shared(
                [row["input_ids"] for row in first_rows(temporary, "train", LOOKED_AT)]
            ),
        )
        save_prepared(prepared, temporary)
    _tell_others(earlier, prepared, reporter)
    _tell(prepared, reporter)
    return prepared


def _earlier(folder: Path, mark: str, reporter: Reporter) -> Prepared | None:
    """What was prepared here from the same sources."""
    try:
        earlier = load_prepared(folder)
    except FtcliError as error:
        reporter.warn(f"{error.file}: cannot be read; the rows are prepared anew")
        return None
    return earlier if earlier is not None and earlier.fingerprint == mark else None


def _is_whole(earlier: Prepared, folder: Path, reporter: Reporter) -> bool:
    """Whether the rows are still as they were written; says of each file what is not."""
    damaged = damaged_files(earlier, folder)
    for file, what in damaged.items():
        reporter.warn(f"{shown_path(file)}: {what}; the rows are prepared anew")
    if not damaged and not earlier.digests:
        reporter.note(f"note: {shown_path(folder)} holds no sha256 of its rows: prepared anew")
    return not damaged and bool(earlier.digests)


def _tell_others(earlier: Prepared | None, prepared: Prepared, reporter: Reporter) -> None:
    """The same sources give the same rows, unless a library or a digest itself has changed."""
    if earlier is not None and earlier.digests and earlier.digests != prepared.digests:
        reporter.warn(
            "the rows prepared anew have another sha256 than those of before, from the same "
            "sources: another version of tokenizers or pyarrow, or a changed prepared.json"
        )


def _require_same_files(data: Data, base: Path, before: dict[str, str]) -> None:
    now = source_digests(data, base)
    for role, file in files_of(data).items():
        if now[role] != before[role]:
            raise changed(file)


def fingerprint(loaded: Loaded, renderer: Renderer) -> str:
    """16 hex digits that change with anything that shapes the token ids."""
    return short_digest(_covered(loaded, renderer), 16)


def fingerprint_parts(loaded: Loaded, renderer: Renderer) -> dict[str, str]:
    """8 hex digits for each part of the fingerprint, by its name in the words of a message."""
    covered = _covered(loaded, renderer)
    rows = rows_parts(covered.pop("files"))
    return rows | {PART_NAMES[name]: short_digest(part, 8) for name, part in covered.items()}


def _covered(loaded: Loaded, renderer: Renderer) -> dict[str, Any]:
    """What shapes the token ids, part by part."""
    data = loaded.recipe.data
    # A key that came later leaves the fingerprints of recipes without it as they were.
    absent = {"replay"} if data.replay is None else set()
    tokenizer = renderer.tokenizer
    return {
        "version": FINGERPRINT_VERSION,
        "files": source_digests(data, loaded.base),
        "template": tokenizer.chat_template,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        # Roles of tokens, which stand in tokenizer_config.json beside the tokens themselves.
        "roles": [tokenizer.bos_token_id, renderer.pad_id, *renderer.stop_ids],
        "data": _without_paths(data, loaded.base).model_dump(
            exclude={"shuffle", "allow_truncation", "allow_leaks", *absent}
        ),
        "seed": loaded.recipe.training.seed,
    }


def _without_paths(data: Data, base: Path) -> Data:
    """Of each file only its kind: a path may be spelt in many ways, and the contents count."""

    def kind(source: str) -> str:
        return data_suffix(source) or source if (base / source).is_file() else source

    changes: dict[str, object] = {name: kind(file) for name, file in sources_of(data).items()}
    if data.replay is not None:
        replay = {"source": kind(data.replay.source)}
        changes["replay"] = data.replay.model_copy(update=replay)
    if data.template is not None and names_file(data.template, base):
        changes["template"] = None
    return data.model_copy(update=changes)


def preview(folder: Path, renderer: Renderer, count: int) -> Iterator[list[tuple[str, bool]]]:
    """The first training rows as pieces of text, each with whether it is trained on."""
    for row in first_rows(folder, "train", count):
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
    loaded: Loaded, mark: str, sides: Sides, tally: Tally, renderer: Renderer
) -> Prepared:
    common = len(tally.common or ())
    return Prepared(
        fingerprint=mark,
        model=model_source(loaded.recipe.model.id, loaded.base),
        train_source=loaded.recipe.data.train,
        max_length=loaded.recipe.data.max_length,
        rows_read=sides.rows_read,
        rows_rejected=tally.problems.count,
        duplicates=sides.duplicates,
        leaks=sides.leaks,
        train=tally.of("train"),
        validation=tally.of("validation"),
        test=tally.of("test"),
        answer_tokens=tally.answer_tokens,
        answer_tokens_lost=tally.lost,
        longest=max(tally.longest, tally.longest_replayed, key=lambda row: row.tokens),
        system=sides.data.system,
        plain_text=tally.plain_text,
        stop_ids=renderer.stop_ids,
        pad_id=renderer.pad_id,
        problems=tuple(tally.problems.first),
        rows_cut=tally.cut.count,
        cut=tuple(tally.cut.first),
        parts=fingerprint_parts(loaded, renderer),
        replay=tally.replayed,
        common_tokens=common if common >= SHARED_TOKENS else 0,
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


def _require_answers(prepared: Prepared, data: Data, longest: LongestRow) -> None:
    share = prepared.answer_tokens_lost / max(prepared.answer_tokens, 1)
    if share > TRUNCATION_BUDGET and not data.allow_truncation:
        raise DataError(
            "truncation",
            f"data.max_length {data.max_length} cuts {prepared.answer_tokens_lost} of "
            f"{prepared.answer_tokens} answer tokens ({share:.1%}){_rows_cut(prepared)}; raise it, "
            "shorten the rows, or set data.allow_truncation: true",
            file=longest.file,
            line=longest.line,
        )


def _rows_cut(prepared: Prepared) -> str:
    """`, the ends of 7 answers: rows.jsonl:4, …`, or nothing."""
    if not prepared.rows_cut:
        return ""
    named = ", ".join(f"{row.file}:{row.line}" for row in prepared.cut[:NAMED])
    more = ", …" if prepared.rows_cut > NAMED else ""
    return f", the ends of {prepared.rows_cut} answers: {named}{more}"


def _tell(prepared: Prepared, reporter: Reporter) -> None:
    """What is to be known of the rows, whenever they were prepared."""
    if prepared.replay is not None:
        tell_few(prepared.replay, prepared.train.rows, reporter)
    if prepared.rows_cut:
        reporter.note(
            f"note: data.max_length {prepared.max_length} cuts {prepared.answer_tokens_lost} "
            f"answer tokens{_rows_cut(prepared)}"
        )


def encode_file(
    source: str, loaded: Loaded, run: RunFolder, prepared: Prepared, reporter: Reporter
) -> list[dict[str, Any]]:
    """Rows of a further file, rendered as the run's own; says which are left out.

    Raises DataError when none can be used.
    """
    renderer = verify_run(loaded, run, prepared).renderer
    data = loaded.recipe.data.model_copy(update={"system": prepared.system})
    items: Iterator[Item] = (
        item if isinstance(item, Reject) else (item, "train")
        for item in read_examples(source, data, loaded.base)
    )
    rows, tally = [], Tally(data.max_length)
    for item in encode_items(items, renderer):
        if isinstance(item, Reject):
            tally.reject(item.origin, item.reason)
        elif (row := tally.take(*item)) is not None:
            rows.append(record(row, item[0]))
    if not rows and tally.problems.count:
        raise DataError("data_empty", f"no row can be used: {tally.problems.first[0]}", file=source)
    if tally.problems.count:
        named = " · ".join(str(fault) for fault in tally.problems.first[:NAMED])
        more = " · …" if tally.problems.count > NAMED else ""
        reporter.warn(f"{tally.problems.count} rows are left out: {named}{more}")
    return rows
