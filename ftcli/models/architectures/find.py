"""The architecture of a model by its name: known, measured before, or measured now.

What was measured is kept under the user's cache folder, for this config and these versions of the
libraries and of the code that measures.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.config.section import looks_like_path
from ftcli.console import on_terminal, print_message
from ftcli.memory.architecture import (
    Architecture,
    Measured,
    Way,
    read_architecture,
    write_architecture,
)
from ftcli.memory.known_models import (
    config_values,
    known_architecture,
    known_config,
    known_hub_id,
    require_no_namesake,
)
from ftcli.runs.atomic import write_text
from ftcli.shell import shown_source

if TYPE_CHECKING:
    from ftcli.models.architectures.ways import Measurer

# Keys of config.json that change nothing here.
IGNORED = ("_name_or_path", "transformers_version", "eos_token_id", "bos_token_id", "pad_token_id")
LIBRARIES = ("torch", "transformers")


def find_architecture(model_id: str, revision: str | None = None) -> Architecture:
    """The architecture of a local folder, a config.json, an alias, or a model of the hub.

    Known models answer without network. Raises UsageError (`model_unknown`) and ModelError
    (`model_missing`, `config_unreadable`, and what `measure` and `hub_file` raise).
    """
    hub_id = known_hub_id(model_id)
    if (config := known_config(hub_id)) is not None:
        require_no_namesake(hub_id)
        known = known_architecture(model_id)
        if known is not None:
            measuring = _Measuring(partial(_config_of, config), _file_of(_text(config)), known)
            return replace(known, measure=measuring)
        return replace(architecture_of(config), name=model_id, hub_id=hub_id)
    local = looks_like_path(model_id)
    name = shown_source(model_id) if local else model_id
    values = config_values(model_id, revision)
    return replace(architecture_of(values), name=name, hub_id=None if local else model_id)


def architecture_of(values: Mapping[str, object]) -> Architecture:
    """The architecture that a config.json makes; raises ModelError."""
    return _kept_or_measured(_text(values))


def _text(values: Mapping[str, object]) -> str:
    return json.dumps(values, sort_keys=True)


def architecture_of_model(model: Any) -> Architecture:
    """The architecture of a loaded model of transformers, without its adapter."""
    return architecture_of_config(model.config)


def architecture_of_config(config: Any) -> Architecture:
    """The architecture that a config of transformers makes; raises ModelError."""
    key = _normal(config)
    if key not in _of_configs:
        _of_configs[key] = _opened(key, lambda: config)
    return _of_configs[key]


# What was found in this process, by transformers' own form of the config.
_of_configs: dict[str, Architecture] = {}


def _normal(config: Any) -> str:
    """A config without what loading changes: the type of the weights, the attention's name."""
    return _text(_without_loading(json.loads(config.to_json_string())))


def _without_loading(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    changed = (*IGNORED, "dtype", "use_cache", "quantization_config", "architectures")
    return {key: _without_loading(each) for key, each in values.items() if key not in changed}


@cache
def _kept_or_measured(text: str) -> Architecture:
    return _opened(text, lambda: _config_of(json.loads(text)))


def _config_of(values: Mapping[str, Any]) -> Any:
    from ftcli.models.architectures.measure import config_of

    return config_of(values)


def _opened(text: str, config: Callable[[], Any]) -> Architecture:
    """From the cache; or measured, and put there for this text and for transformers' form of it."""
    file = _file_of(text)
    if (found := _read(file)) is not None:
        return replace(found, measure=_Measuring(config, file, found))
    from ftcli.models.architectures.measure import stored_bytes

    made = config()
    normal = _normal(made)
    found = _of_configs.get(normal) or _read(_file_of(normal)) or _measured(made)
    found = replace(found, stored_bytes=stored_bytes(made))
    for each in {file, _file_of(normal)}:
        _keep(found, each)
    found = replace(found, measure=_Measuring(config, file, found))
    _of_configs.setdefault(normal, found)
    return found


def _read(file: Path) -> Architecture | None:
    try:
        return read_architecture(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _measured(config: Any) -> Architecture:
    from ftcli.models.architectures.measure import measure

    if on_terminal():
        kind = config.model_type
        print_message(f"Measuring the layers of {kind}, once for this config", style="dim")
    return measure(config)


class _Measuring:
    """Measures a way of computing when it is asked for, unless `file` has it; keeps it there."""

    def __init__(self, config: Callable[[], Any], file: Path, kept: Architecture) -> None:
        self._config, self._file, self._kept = config, file, kept
        self._measurer: Measurer | None = None

    def __call__(self, way: Way) -> Measured:
        before = _read(self._file)
        ways = self._kept.ways if before is None else before.ways
        if (known := next((each for each in ways if each.way == way), None)) is not None:
            return known
        if self._measurer is None:
            from ftcli.models.architectures.ways import Measurer

            self._measurer = Measurer(self._config())
        found = self._measurer.way(way)
        _keep(replace(self._kept, ways=[*ways, found]), self._file)
        return found


def _file_of(text: str) -> Path:
    values = json.loads(text)
    own = {key: value for key, value in values.items() if key not in IGNORED}
    code = (Path(__file__).parent.joinpath(name).read_bytes() for name in CODE)
    parts = [_text(own).encode(), *code]
    parts += [version(library).encode() for library in LIBRARIES]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches, "ftcli", "architectures", f"{digest}.json")


# What a measurement depends on: its own code, and the forward of experts.
CODE = (
    *("cut_model.py", "measure.py", "model_class.py", "saved_bytes.py", "ways.py"),
    "../../kernels/experts.py",
)


def _keep(architecture: Architecture, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, write_architecture(architecture))
    except OSError:  # a cache: the next command measures again
        return
