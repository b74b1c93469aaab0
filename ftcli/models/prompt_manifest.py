"""What a run promises of its prompts and its base: kept in contract.json, proven at each opening.

The tokenizer and the template are files that people edit, and a base is a folder that is replaced:
each changes what a tuned model is given to read, and the answers get worse without an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice, zip_longest
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from ftcli.config.chat_template import find_template
from ftcli.config.loader import Loaded
from ftcli.config.recipe import Full
from ftcli.config.rewriting import overridden
from ftcli.console import shown_path
from ftcli.data.example import Message
from ftcli.data.prepared import SPLITS, Prepared
from ftcli.data.templates.template import lay_template
from ftcli.data.tokenizing.rendering import Renderer, RowFault
from ftcli.data.tokenizing.rows import read_split
from ftcli.errors import FtcliError
from ftcli.memory.shapes import model_source
from ftcli.models.base_config import config_differences, outputs_config
from ftcli.models.base_files import base_fingerprint
from ftcli.models.load import load_tokenizer, renderer_of
from ftcli.runs.atomic import write_json
from ftcli.runs.folder import RunFolder, unreadable_contract
from ftcli.shell import command

GOLDEN_PROMPTS = 3
# For runs on plain texts: figures, white space and what lies beyond ASCII.
GOLDEN_TEXTS = (
    "A red chair, 129.90 EUR.",
    "  two spaces\n\n\tand a tab ",
    "Stühle 椅子 🪑",
)


@dataclass(frozen=True)
class PromptContract:
    """How a trained model is spoken to, and how its answers end: as in its training."""

    renderer: Renderer
    stop_ids: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True)
class GoldenPrompt:
    """A prompt, as messages or as a plain text, with the ids that the training saw."""

    messages: tuple[Message, ...]
    text: str | None
    ids: tuple[int, ...]

    def ids_by(self, renderer: Renderer) -> list[int]:
        """The ids that a renderer gives; raises RowFault."""
        if self.text is not None:
            return renderer.text_prompt_ids(self.text)
        return renderer.prompt_ids(self.messages)


@dataclass(frozen=True)
class RunContract:
    """What contract.json holds."""

    base: str | None
    """Fingerprint of the weights (ftcli.models.base_files); none where they could not be found."""
    template: str | None
    """sha256 of the chat template; none for plain texts on a model without one."""
    template_kwargs: Mapping[str, str | bool | int | float]
    system: str | None
    """data.system, as a template where it names a column."""
    stop_ids: tuple[int, ...]
    pad_id: int
    prompts: tuple[GoldenPrompt, ...]
    tokenizer: str | None = None
    """sha256 of vocabulary and rules; none in contracts of earlier versions."""
    config: Mapping[str, Any] | None = None
    """What of the base's config.json shapes its outputs; none in contracts of earlier versions."""


@dataclass(frozen=True)
class Base:
    """A base as it is on this machine now; none where a part of it is not here."""

    source: str
    weights: str | None
    """Their fingerprint (ftcli.models.base_files)."""
    config: Mapping[str, Any] | None


def base_at(source: str, revision: str | None) -> Base:
    """The base in a local folder, or a hub model in the local cache; raises ModelError."""
    weights = base_fingerprint(source, revision)
    return Base(source, weights, outputs_config(source, revision))


def contract_of(loaded: Loaded, run: RunFolder, prepared: Prepared) -> PromptContract:
    """How the run's model is spoken to, rebuilt from its folder and its recipe.

    Raises FtcliError (`contract_broken`) where that, or an adapter's base, is not as in training.
    """
    contract = load_contract(run)
    renderer = _rebuilt(loaded, run)
    found = _differences(contract, renderer)
    for system in (prepared.system, loaded.recipe.data.system):
        if not _same_system(contract.system, system):
            found.append(f"system prompt: {contract.system!r} → {system!r}")
            break
    model = loaded.recipe.model
    if isinstance(loaded.recipe.method, Full):
        found += _other_config(contract, outputs_config(str(run.model)), str(run.model))
    else:
        source = model_source(model.id, loaded.base)
        found += _other_base(contract, base_at(source, model.revision))
    _require_none(found, run)
    return PromptContract(renderer, contract.stop_ids, contract.pad_id)


@contextmanager
def proven_base(runs: Sequence[RunFolder], source: str, revision: str | None) -> Iterator[None]:
    """Raise where the base that the block loads is not the one that these runs began with.

    Before the block, or behind it where the weights have to be fetched first. Raises FtcliError
    (`contract_broken`).
    """
    before = base_at(source, revision)
    for run in runs:
        _require_none(_other_base(load_contract(run), before), run)
    yield
    if before.weights is None or before.config is None:
        after = base_at(source, revision)
        after = replace(after, weights=after.weights or "not found")
        for run in runs:
            _require_none(_other_base(load_contract(run), after), run)


def settle_contract(
    run: RunFolder, renderer: Renderer, prepared: Prepared, base: Base, *, begun: bool
) -> None:
    """Write the contract of a run that begins; prove that of a run that goes on.

    Raises FtcliError (`contract_broken`). The base of the latter is for `proven_base`.
    """
    if begun and (run.contract.is_file() or run.steps_saved()):
        _require_none(_differences(load_contract(run), renderer), run)
        return
    contract = RunContract(
        base=base.weights,
        template=_template_digest(renderer),
        template_kwargs=dict(renderer.template_kwargs),
        system=prepared.system,
        stop_ids=renderer.stop_ids,
        pad_id=renderer.pad_id,
        prompts=tuple(_golden_prompts(renderer, prepared, run)),
        tokenizer=None,  # a third of a second, which the proof would take once more
        config=base.config,
    )
    _require_none(_differences(contract, renderer), run)
    write_json(run.contract, asdict(replace(contract, tokenizer=_tokenizer_digest(renderer))))


def load_contract(run: RunFolder) -> RunContract:
    """contract.json of a run; raises FtcliError where it is missing or cannot be read."""
    file = run.require_contract()
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        prompts = tuple(_golden_prompt(prompt) for prompt in values["prompts"])
        fixed = {"stop_ids": tuple(values["stop_ids"]), "prompts": prompts}
        return RunContract(**{**values, **fixed})
    except (ValueError, TypeError, KeyError) as error:
        raise unreadable_contract(file, error) from error


def _golden_prompt(values: Mapping[str, Any]) -> GoldenPrompt:
    messages = tuple(Message(**message) for message in values["messages"])
    return GoldenPrompt(messages, values["text"], tuple(values["ids"]))


def _golden_prompts(
    renderer: Renderer, prepared: Prepared, run: RunFolder
) -> Iterator[GoldenPrompt]:
    """Prompts of the first held-out rows, or else of training rows, as they were tokenised."""
    if prepared.plain_text:
        for text in GOLDEN_TEXTS:
            yield GoldenPrompt((), text, tuple(renderer.text_prompt_ids(text)))
        return
    tables = (
        read_split(run.data, split) for split in reversed(SPLITS) if prepared.counts(split).rows
    )
    rows = (row for table in tables for row in table.slice(0, GOLDEN_PROMPTS).to_pylist())
    for row in islice(rows, GOLDEN_PROMPTS):
        messages = tuple(Message(*turn) for turn in json.loads(row["messages"])[:-1])
        ids = row["input_ids"][: row["prompt_tokens"]]
        if len(ids) < row["prompt_tokens"]:  # cut within its prompt, which loss_on: all allows
            ids = renderer.prompt_ids(messages)
        yield GoldenPrompt(messages, None, tuple(ids))


def _rebuilt(loaded: Loaded, run: RunFolder) -> Renderer:
    """What the run's own tokenizer and recipe give, and a template that `--set` asks for."""
    tokenizer = load_tokenizer(str(run.trained()))
    template = overridden(loaded).get("data.template")
    if template is not None:
        lay_template(tokenizer, find_template(template, loaded.base))
    return renderer_of(tokenizer, loaded.recipe.data)


def _template_digest(renderer: Renderer) -> str | None:
    """sha256 of the chat template; some tokenizers have several, by name."""
    template = renderer.tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenizer_digest(renderer: Renderer) -> str:
    """sha256 of vocabulary and rules, without how batches were last padded and cut."""
    rules = json.loads(renderer.tokenizer.backend_tokenizer.to_str())
    kept = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


# What differs, old → new


def _differences(contract: RunContract, renderer: Renderer) -> list[str]:
    tokens = {
        "stop tokens": (contract.stop_ids, renderer.stop_ids),
        "pad token": ((contract.pad_id,), (renderer.pad_id,)),
    }
    found = [
        f"{name}: {_shown_tokens(renderer, old)} → {_shown_tokens(renderer, new)}"
        for name, (old, new) in tokens.items()
        if old != new
    ]
    template, arguments = _template_digest(renderer), dict(renderer.template_kwargs)
    if contract.template != template:
        found.append(f"chat template: {_short(contract.template)} → {_short(template)}")
    if contract.template_kwargs != arguments:
        old = json.dumps(contract.template_kwargs)
        found.append(f"data.template_kwargs: {old} → {json.dumps(arguments)}")
    for number, prompt in enumerate(contract.prompts, start=1):
        found += [f"golden prompt {number}, {text}" for text in _other_ids(prompt, renderer)]
    if not found and contract.tokenizer is not None:
        digest = _tokenizer_digest(renderer)
        if contract.tokenizer != digest:
            found.append(f"tokenizer: {_short(contract.tokenizer)} → {_short(digest)}")
    return found


def _other_ids(prompt: GoldenPrompt, renderer: Renderer) -> list[str]:
    """The first token that differs, or nothing."""
    try:
        ids = prompt.ids_by(renderer)
    except RowFault as fault:
        return [f"in use: {fault.message}"]
    for place, (old, new) in enumerate(zip_longest(prompt.ids, ids), start=1):
        if old != new:
            before, after = (_shown_tokens(renderer, [] if i is None else [i]) for i in (old, new))
            return [f"token {place}: {before} → {after}"]
    return []


def _other_base(contract: RunContract, base: Base) -> list[str]:
    """The differences in weights and config.json; nothing where one side is not known."""
    found = _other_config(contract, base.config, base.source)
    if None not in (base.weights, contract.base) and base.weights != contract.base:
        change = f"{_short(contract.base)} → {_short(base.weights)}"
        found.insert(0, f"weights of the base ({base.source}): {change}")
    return found


def _other_config(
    contract: RunContract, config: Mapping[str, Any] | None, source: str
) -> list[str]:
    if contract.config is None or config is None:
        return []
    differences = config_differences(contract.config, config)
    return [f"config.json ({source}): {line}" for line in differences]


def _same_system(kept: str | None, asked: str | None) -> bool:
    """Whether data.system is the same; a column is named as such or as `{column}`."""
    return asked == kept or f"{{{asked}}}" == kept


def _shown_tokens(renderer: Renderer, ids: Sequence[int]) -> str:
    return ", ".join(f"{i} {renderer.tokenizer.decode([i])!r}" for i in ids) or "none"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def _require_none(found: Sequence[str], run: RunFolder) -> None:
    if found:
        raise FtcliError(
            "contract_broken",
            f"{shown_path(run.path)} is no longer what was trained:\n  "
            + "\n  ".join(found)
            + "\nput back what has changed, or train anew: "
            + command("train", run.path, "--fresh"),
        )


def generation_config(
    tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], pad_id: int
) -> GenerationConfig:
    """Greedy, and stopping where the training's answers ended."""
    return GenerationConfig(
        eos_token_id=list(stop_ids), pad_token_id=pad_id, bos_token_id=tokenizer.bos_token_id
    )
