"""Prompt manifest: how a run was prompted and on which base. Its training writes
prompt_manifest.json, and every command that opens the run verifies it.

If a tokenizer, a template or the folder of a base is edited or replaced, a tuned model gets other
inputs, and its answers get worse without an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice, zip_longest
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from ftcli.config.data import find_template
from ftcli.config.loader import load_recipe
from ftcli.config.recipe import Full, Recipe
from ftcli.console import shown_path
from ftcli.data.dataset import SPLITS, Dataset
from ftcli.data.example import Message, RowError
from ftcli.data.tokenizing.answer_text import AnswerReader
from ftcli.data.tokenizing.arrow_rows import read_split
from ftcli.data.tokenizing.choose_template import set_template
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.errors import FtcliError
from ftcli.memory.known_models import model_source
from ftcli.models.architectures.model_class import open_config
from ftcli.models.files.base_files import base_fingerprint, model_folder
from ftcli.models.load import load_tokenizer, renderer_of
from ftcli.runs.atomic import write_json
from ftcli.runs.folder import RunFolder, unreadable_prompt_manifest
from ftcli.shell import command

RECORDED_PROMPTS = 3
# For runs on plain texts: digits, white space and characters beyond ASCII.
RECORDED_TEXTS = (
    "A red chair, 129.90 EUR.",
    "  two spaces\n\n\tand a tab ",
    "Stühle 椅子 🪑",
)

# Keys of config.json without effect on the logits: names, versions and types, which saving again
# changes; tokens, which the manifest has itself; options of loading; and additional outputs.
IGNORED_KEYS = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class PromptFormat:
    """How a trained model is prompted and how its answers end, as in its training."""

    renderer: Renderer
    stop_ids: tuple[int, ...]
    pad_id: int

    @cached_property
    def reader(self) -> AnswerReader:
        return AnswerReader(self.renderer)


@dataclass(frozen=True)
class RecordedPrompt:
    """A prompt (messages or a plain text) with its token ids in the training."""

    messages: tuple[Message, ...]
    text: str | None
    ids: tuple[int, ...]

    def ids_by(self, renderer: Renderer) -> list[int]:
        """The prompt's ids by this renderer; raises RowError."""
        if self.text is not None:
            return renderer.text_prompt_ids(self.text)
        return renderer.prompt_ids(self.messages)


@dataclass(frozen=True)
class PromptManifest:
    """Content of prompt_manifest.json."""

    base: str | None
    """Fingerprint of the weights (base_files.py); None if they were not found."""
    template: str | None
    """sha256 of the chat template; None for plain texts on a model without one."""
    template_kwargs: Mapping[str, str | bool | int | float]
    system: str | None
    """data.system, as a template if it names a column."""
    stop_ids: tuple[int, ...]
    pad_id: int
    prompts: tuple[RecordedPrompt, ...]
    tokenizer: str
    """sha256 of the tokenizer's vocabulary and rules."""
    config: Mapping[str, Any] | None
    """Keys of the base's config.json that affect its outputs; None if it was not found."""


@dataclass(frozen=True)
class Base:
    """A base as it is on this machine now; None for missing parts."""

    source: str
    weights: str | None
    """Fingerprint (base_files.py)."""
    config: Mapping[str, Any] | None


def base_at(source: str, revision: str | None) -> Base:
    """The base in a local folder, or a hub model in the local cache; raises ModelError."""
    weights = base_fingerprint(source, revision)
    return Base(source, weights, output_config(source, revision))


def output_config(source: str, revision: str | None = None) -> dict[str, Any] | None:
    """The keys of config.json that affect a model's outputs, as transformers reads them: with
    defaults, and newer names for older ones. None: not on this machine. Raises ModelError."""
    if model_folder(source, revision) is None:
        return None
    text = open_config(source, revision).to_json_string(use_diff=False)
    return {"quantization_config": None, **_without_ignored(json.loads(text))}


def _without_ignored(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_ignored(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in IGNORED_KEYS
    }


def verify_run(recipe: Recipe, run: RunFolder, prepared: Dataset) -> PromptFormat:
    """The run's prompt format, rebuilt from its folder and its recipe.

    Raises FtcliError (`prompt_manifest`) if it or an adapter's base differs from the training.
    """
    manifest = read_prompt_manifest(run)
    renderer = _rebuilt(recipe, run)
    found = _differences(manifest, renderer)
    for system in (prepared.system, recipe.data.system):
        if not _same_system(manifest.system, system):
            found.append(f"system prompt: {manifest.system!r} → {system!r}")
            break
    model = recipe.model
    if isinstance(recipe.method, Full):
        found += _other_config(manifest, output_config(str(run.model)), str(run.model))
    else:
        source = model_source(model.id)
        found += _other_base(manifest, base_at(source, model.revision))
    _raise_if_any(found, run)
    return PromptFormat(renderer, manifest.stop_ids, manifest.pad_id)


@contextmanager
def verified_base(runs: Sequence[RunFolder], source: str, revision: str | None) -> Iterator[None]:
    """Raise FtcliError (`prompt_manifest`) if the block loads another base than these runs have.

    Checked before the block, and again after it if the weights had to be downloaded first.
    """
    before = base_at(source, revision)
    for run in runs:
        _raise_if_any(_other_base(read_prompt_manifest(run), before), run)
    yield
    if before.weights is None or before.config is None:
        after = base_at(source, revision)
        after = replace(after, weights=after.weights or "not found")
        for run in runs:
            _raise_if_any(_other_base(read_prompt_manifest(run), after), run)


def write_or_verify_manifest(
    run: RunFolder, renderer: Renderer, prepared: Dataset, base: Base, *, begun: bool
) -> None:
    """Write the manifest of a new run; verify the prompts of a resumed one (`verified_base`
    verifies its base). Raises FtcliError (`prompt_manifest`)."""
    if begun and (run.prompt_manifest.is_file() or run.steps_saved()):
        _raise_if_any(_differences(read_prompt_manifest(run), renderer), run)
        return
    manifest = PromptManifest(
        base=base.weights,
        template=_template_digest(renderer),
        template_kwargs=dict(renderer.template_kwargs),
        system=prepared.system,
        stop_ids=renderer.stop_ids,
        pad_id=renderer.pad_id,
        prompts=tuple(_recorded_prompts(renderer, prepared, run)),
        tokenizer=_tokenizer_digest(renderer),
        config=base.config,
    )
    _raise_if_any(_other_prompts(manifest.prompts, renderer), run)  # rows tokenised differently
    write_json(run.prompt_manifest, asdict(manifest))


def read_prompt_manifest(run: RunFolder) -> PromptManifest:
    """prompt_manifest.json of a run; raises FtcliError if it is missing or cannot be read."""
    file = run.require_prompt_manifest()
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        prompts = tuple(
            RecordedPrompt(
                tuple(Message(**message) for message in prompt["messages"]),
                prompt["text"],
                tuple(prompt["ids"]),
            )
            for prompt in values["prompts"]
        )
        fixed = {"stop_ids": tuple(values["stop_ids"]), "prompts": prompts}
        return PromptManifest(**{**values, **fixed})
    except (ValueError, TypeError, KeyError) as error:
        raise unreadable_prompt_manifest(file, error) from error


def _recorded_prompts(
    renderer: Renderer, prepared: Dataset, run: RunFolder
) -> Iterator[RecordedPrompt]:
    """Prompts of the first held-out rows, or else of training rows, as tokenised."""
    if prepared.plain_text:
        for text in RECORDED_TEXTS:
            yield RecordedPrompt((), text, tuple(renderer.text_prompt_ids(text)))
        return
    tables = (
        read_split(run.data, split) for split in reversed(SPLITS) if prepared.counts(split).rows
    )
    rows = (row for table in tables for row in table.slice(0, RECORDED_PROMPTS).to_pylist())
    for row in islice(rows, RECORDED_PROMPTS):
        messages = tuple(Message(*turn) for turn in json.loads(row["messages"])[:-1])
        ids = row["input_ids"][: row["prompt_tokens"]]
        if len(ids) < row["prompt_tokens"]:  # truncated within its prompt (loss_on: all)
            ids = renderer.prompt_ids(messages)
        yield RecordedPrompt(messages, None, tuple(ids))


def _rebuilt(recipe: Recipe, run: RunFolder) -> Renderer:
    """The renderer of the run's own tokenizer and recipe, with a template set by `--set`."""
    tokenizer = load_tokenizer(str(run.trained()))
    template = recipe.data.template
    if template is not None and template != load_recipe(run.recipe).recipe.data.template:
        set_template(tokenizer, find_template(template))
    return renderer_of(tokenizer, recipe.data)


def _template_digest(renderer: Renderer) -> str | None:
    """sha256 of the chat template or, if a tokenizer has several by name, of all."""
    template = renderer.tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenizer_digest(renderer: Renderer) -> str:
    """sha256 of vocabulary and rules, without the last settings for padding and truncation."""
    rules = json.loads(renderer.tokenizer.backend_tokenizer.to_str())
    kept = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


# Differences, old → new


def _differences(manifest: PromptManifest, renderer: Renderer) -> list[str]:
    tokens = {
        "stop tokens": (manifest.stop_ids, renderer.stop_ids),
        "pad token": ((manifest.pad_id,), (renderer.pad_id,)),
    }
    found = [
        f"{name}: {_shown_tokens(renderer, old)} → {_shown_tokens(renderer, new)}"
        for name, (old, new) in tokens.items()
        if old != new
    ]
    template, arguments = _template_digest(renderer), dict(renderer.template_kwargs)
    if manifest.template != template:
        found.append(f"chat template: {_short(manifest.template)} → {_short(template)}")
    if manifest.template_kwargs != arguments:
        old = json.dumps(manifest.template_kwargs)
        found.append(f"data.template_kwargs: {old} → {json.dumps(arguments)}")
    found += _other_prompts(manifest.prompts, renderer)
    if not found and manifest.tokenizer != (digest := _tokenizer_digest(renderer)):
        found.append(f"tokenizer: {_short(manifest.tokenizer)} → {_short(digest)}")
    return found


def _other_prompts(prompts: Sequence[RecordedPrompt], renderer: Renderer) -> list[str]:
    """The first differing token of each prompt."""
    found = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            ids = prompt.ids_by(renderer)
        except RowError as fault:
            found.append(f"recorded prompt {number}, in use: {fault.message}")
            continue
        pairs = enumerate(zip_longest(prompt.ids, ids), start=1)
        for place, (old, new) in pairs:
            if old != new:
                shown = [_shown_tokens(renderer, [] if i is None else [i]) for i in (old, new)]
                found.append(f"recorded prompt {number}, token {place}: {shown[0]} → {shown[1]}")
                break
    return found


def _other_base(manifest: PromptManifest, base: Base) -> list[str]:
    """Differences in weights and config.json; none if one side is unknown."""
    found = _other_config(manifest, base.config, base.source)
    if None not in (base.weights, manifest.base) and base.weights != manifest.base:
        change = f"{_short(manifest.base)} → {_short(base.weights)}"
        found.insert(0, f"weights of the base ({base.source}): {change}")
    return found


def _other_config(
    manifest: PromptManifest, config: Mapping[str, Any] | None, source: str
) -> list[str]:
    if manifest.config is None or config is None:
        return []
    lines = _config_differences(manifest.config, config)
    return [f"config.json ({source}): {line}" for line in lines]


def _config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """`key: old → new` for keys that both have; versions of transformers have different keys."""
    for key in sorted(old.keys() & new.keys()):
        before, after = old[key], new[key]
        if isinstance(before, dict) and isinstance(after, dict):
            yield from (f"{key}.{line}" for line in _config_differences(before, after))
        elif before != after:
            yield f"{key}: {_shortened(before)} → {_shortened(after)}"


def _shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _same_system(kept: str | None, asked: str | None) -> bool:
    """Whether data.system is the same; a column may be given by name or as `{column}`."""
    return asked == kept or f"{{{asked}}}" == kept


def _shown_tokens(renderer: Renderer, ids: Sequence[int]) -> str:
    return ", ".join(f"{i} {renderer.tokenizer.decode([i])!r}" for i in ids) or "none"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def _raise_if_any(found: Sequence[str], run: RunFolder) -> None:
    if found:
        raise FtcliError(
            "prompt_manifest",
            f"{shown_path(run.path)} is no longer what was trained:\n  "
            + "\n  ".join(found)
            + "\nrestore what has changed, or train again: "
            + command("train", run.path, "--fresh"),
        )


def generation_config(
    tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], pad_id: int
) -> GenerationConfig:
    """Greedy decoding, stopped by the tokens that end answers in the training."""
    return GenerationConfig(
        eos_token_id=list(stop_ids), pad_token_id=pad_id, bos_token_id=tokenizer.bos_token_id
    )
