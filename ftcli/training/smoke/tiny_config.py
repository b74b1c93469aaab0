"""A small version of any config.json: widths, layers and experts by the names of their keys.

The names are those of transformers' configuration files (5.24). No rule knows a model type: a key
that no pattern matches keeps its value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

# At least an NF4 block of 64 weights (bitsandbytes 0.50, functional.py).
HIDDEN = 64
# Layer types repeat, at the latest after six layers (Gemma 3).
LAYERS, TOWER_LAYERS = 8, 2
HEADS, STATE_HEADS = 4, 8
HEAD_DIM = HIDDEN // HEADS
INNER = 128
EXPERTS, ACTIVE_EXPERTS, GROUPS = 4, 2, 2
# Not copied from config.json: the tiny model is not quantised, and has no code.
LEFT_OUT = ("quantization_config", "auto_map")
# Keys of a config that contain the text model's (transformers' get_text_config).
TEXT_CONFIGS = ("thinker_config", "text_config", "decoder", "generator")
ROPE = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True)
class Short:
    """What is made short besides widths and layers, for models that no user's rows are read by."""

    vocab: int
    """Tokens of the vocabulary; ids of special tokens beyond it become its last ones."""
    window: int
    """Tokens that a sliding window, a chunk or a sparse attention reaches."""
    layers: int
    """Layers, if these have every layer type."""


@dataclass(frozen=True)
class _Level:
    """Sizes of a text model or a tower, and of its tiny version."""

    config: Mapping[str, Any]
    layers: int
    kept: int
    heads: int
    hidden: int
    tiny_hidden: int
    head_dim: int
    tiny_head_dim: int
    short: Short | None
    text: _Level | None = None
    """Of a tower: the text model's, whose hidden size it ends in."""

    @property
    def state_width(self) -> int:
        """Channels of the tiny version's state spaces."""
        expand = self.config.get("mamba_expand") or self.config.get("expand") or 2
        return int(expand) * self.tiny_hidden


def tiny_values(
    values: Mapping[str, Any],
    known: Mapping[str, Any],
    *,
    all_layers: bool = False,
    short: Short | None = None,
) -> dict[str, Any]:
    """A config.json with small widths and few layers.

    `known` is transformers' config of `values` as a dict, with all defaults. Of the layers the
    first LAYERS are kept if they have every layer type, else all, as with `all_layers`.
    """
    path = _text_path(known)
    text: Any = reduce(lambda config, key: config[key], path, known)
    found = _tiny(values, known, _level(text, short, all_layers=all_layers), path)
    found = {key: value for key, value in found.items() if key not in LEFT_OUT}
    return found if short is None else _renumbered(found, short.vocab)


def _text_path(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of the text model's config; none if the config is its own."""
    for key in TEXT_CONFIGS:
        if isinstance(found := config.get(key), Mapping) and found.get("model_type"):
            return (key, *_text_path(found))
    return ()


def _level(
    config: Mapping[str, Any],
    short: Short | None,
    *,
    all_layers: bool = False,
    text: _Level | None = None,
) -> _Level:
    heads = _first(config, HEAD_COUNT, 1)
    hidden = _first(config, HIDDEN_WIDTH, heads)
    own = _first(config, re.compile("head_dim|d_kv|kv_channels"), 0)
    head_dim = own or max(1, hidden // heads)
    narrow, wide = heads * head_dim < hidden, heads * head_dim > hidden
    if config.get("qk_rope_head_dim"):  # the part that is rotated; the others keep their ratio
        narrow, wide, head_dim = False, False, config["qk_rope_head_dim"]
    layers = _first(config, LAYER_COUNT, 1)
    kept, most = min(layers, TOWER_LAYERS), LAYERS if short is None else short.layers
    if text is None:
        needed = max(most, _layers_needed(config, layers))
        kept = layers if all_layers else min(layers, needed)
        kept = layers if needed > LAYERS else kept
    return _Level(
        config=config,
        layers=layers,
        kept=kept,
        heads=heads,
        hidden=hidden,
        tiny_hidden=2 * HIDDEN if own and narrow else HIDDEN,
        head_dim=head_dim,
        tiny_head_dim=HEAD_DIM * (2 if own and wide else 1),
        short=short,
        text=text,
    )


def _tiny(
    values: Mapping[str, Any], known: Mapping[str, Any], level: _Level, path: tuple[str, ...]
) -> dict[str, Any]:
    """The values made small, and those of `known` that become smaller; `path` leads to the text
    model's config."""
    found = dict(values)
    for key, value in {**known, **values}.items():
        small: Any
        if key in ROPE and isinstance(value, Mapping):
            small = _tiny_rope(value, level.tiny_head_dim, level.config)
        elif isinstance(value, Mapping):
            default = known.get(key)
            whole = {**default, **value} if isinstance(default, Mapping) else value
            if str(key).isdigit():  # the sizes of one layer
                if int(key) >= level.kept:
                    found.pop(key, None)
                    continue
                below = replace(_level({**level.config, **whole}, level.short), kept=level.kept)
            elif whole.get("model_type") and path[:1] != (key,):
                below = _level(whole, level.short, text=level.text or level)
            else:
                below = level
            small = _tiny(value, whole, below, path[1:] if path[:1] == (key,) else ("",))
        else:
            small = _tiny_value(str(key), value, level)
        if key in values or small != value:
            found[key] = small
    return found


# Layers

LAYER_COUNT = re.compile(
    r"num_hidden_layers|num_layers|n_layers?|layers|depth|num_blocks|"
    r"(num_)?(encoder|decoder)_layers|num_global_layers"
)
# Lists of layer numbers.
LAYER_NUMBERS = re.compile(r"\w*(_layers?|layer_ids|_idxs|_indices|_indexes)")
# Numbers of a tower's layers in the config that contains it.
TOWER_NUMBERS = re.compile(r"(vision|spatial|deepstack)_\w+|feature_layer")
# Layer types repeat after so many layers.
PERIOD = re.compile(r"\w+(_period|_step|_pattern|_every_n_layers|_interval|layer_group_size)")
# Other layers come after these.
FIRST_LAYERS = re.compile(r"first_k_dense_replace|num_dense_layers|\w+_start_index|\w+_index_end")
# Numbers of layers whose sum is the number of all.
LAYER_PARTS = re.compile(r"n_(input|recurrent|output)_layers")


def _layers_needed(config: Mapping[str, Any], layers: int) -> int:
    """How many of the first layers have every layer type."""
    if any(map(LAYER_PARTS.fullmatch, config)) or config.get("num_kv_shared_layers"):
        return layers
    columns = [column for key, value in config.items() for column in _by_layer(key, value, layers)]
    types = list(zip(*columns, strict=True))
    needed = [1 + types.index(each) for each in set(types)]
    # Layers of this type share a block, and Zamba's class refuses one that is shared with none.
    needed += [number for number, each in enumerate(types, 1) if "hybrid" in each][1:2]
    for key, value in config.items():
        if isinstance(value, int) and 0 < value < layers:
            needed += [value] if PERIOD.fullmatch(key) else []
            needed += [value + 1] if FIRST_LAYERS.fullmatch(key) else []
            needed += [layers // value] if key == "num_layers_per_stack" else []
    return max(needed, default=1)


def _by_layer(key: str, value: Any, layers: int) -> Iterator[Sequence[object]]:
    """What a value says of each layer, if it does."""
    if _are_layer_numbers(key, value):
        yield [number in value for number in range(layers)]
    elif _is_by_layer(key, value, layers):
        yield [str(each) for each in value]


def _is_by_layer(key: str, value: Any, layers: int) -> bool:
    """Whether a list, or a text as `M-M*-`, has one entry for each layer."""
    is_text = isinstance(value, str) and key.endswith("_pattern")
    return (is_text or isinstance(value, list)) and len(value) == layers > 1


def _are_layer_numbers(key: str, value: Any) -> bool:
    if not isinstance(value, list) or not value or not LAYER_NUMBERS.fullmatch(key):
        return False
    if any(isinstance(each, bool) or not isinstance(each, int) for each in value):
        return False
    return value == sorted(set(value)) or min(value) < 0


def _tiny_value(key: str, value: Any, level: _Level) -> Any:
    """A number, list or text of a config made small."""
    if level.text is not None or TOWER_NUMBERS.fullmatch(key):
        last = (TOWER_LAYERS if level.text is None else level.kept) - 1
        if _are_layer_numbers(key, value):
            return [max(-last, min(number, last)) for number in value]
        if key.endswith("_layer") and isinstance(value, int):
            return max(-last, min(value, last))
    elif _are_layer_numbers(key, value):
        return [number for number in value if number < level.kept]
    if key == "attention_types":  # GPT-Neo: [[types of a period, repeats]]
        return [[types, max(1, level.kept // len(types))] for types, _ in value]
    if _is_by_layer(key, value, level.layers):
        value = value[: level.kept]
    if isinstance(value, list):
        return [_tiny_value(key, each, level) if _is_number(each) else each for each in value]
    return _tiny_number(key, value, level) if _is_number(value) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# Sizes

# Before RULES: the hidden size and the number of heads are also looked up by these.
HEAD_COUNT = re.compile(r"(\w+_)?(attention_heads|n_heads?|num_heads)(_per_layer)?")
HIDDEN_WIDTH = re.compile(
    r"(\w+_)?hidden_size(_global)?|d_model|n_embd|dim|embedding_size|lru_width|latent_channels|"
    r"codebook_dim|adapter_input_size|"
    r"(\w+_)?(embed|emb|embedding|proj|projection|output|input|in|out)_dim"
)
INNER_WIDTH = (
    r"(\w+_)?(intermediate_size(_mlp)?|ffn_dim|d_ff|dff|dim_ff|n_inner|d_inner|mlp_dim|"
    r"ffn_hidden_size|feed_forward_size|expert_dim|projection_hidden_dim)"
)


def _first(config: Mapping[str, Any], pattern: re.Pattern[str], default: int) -> int:
    """The first number whose key matches."""
    found = (value for key, value in config.items() if pattern.fullmatch(str(key)))
    return next((number for number in found if _is_number(number)), default)


def _tiny_hidden(size: int, at: _Level) -> int:
    """Widths of the text model's hidden states stay equal to them, and multiples stay multiples."""
    text = at.text or at
    if size % text.hidden == 0 and size // text.hidden <= HEADS:
        return size // text.hidden * text.tiny_hidden
    return at.tiny_hidden


def _tiny_heads(count: int, at: _Level) -> int:
    return HEADS * math.ceil(count / at.heads)


def _tiny_kv_heads(count: int, at: _Level) -> int:
    """As many as heads, one for all, or grouped."""
    if count == at.heads:
        return HEADS
    return 1 if count == 1 else HEADS // 2


def _tiny_head_dim(size: int, at: _Level) -> int:
    """Other widths of heads keep their ratio, to a multiple of 8."""
    return max(1, round(size / at.head_dim * at.tiny_head_dim / 8)) * 8


def _at_most(limit: int) -> Callable[[int, _Level], int]:
    return lambda number, _: min(number, limit)


def _exactly(size: int) -> Callable[[int, _Level], int]:
    return lambda *_: size


# The first pattern that matches a key decides.
RULES: tuple[tuple[str, Callable[[int, _Level], int]], ...] = (
    (LAYER_COUNT.pattern, lambda n, at: min(n, at.kept)),
    (r"num_layers_per_stack", lambda n, at: max(1, n * at.kept // at.layers)),
    (r"moe_layer_end_index", lambda n, at: min(n, at.kept - 1)),
    # State spaces.
    (r"n_mamba_heads", _at_most(STATE_HEADS)),
    (r"mamba_headdim", lambda _, at: at.state_width // STATE_HEADS),
    (r"mamba_(n|num)_heads", lambda _, at: at.state_width // HEAD_DIM),
    (r"mamba_(d_head|head_dim)", _exactly(HEAD_DIM)),
    (r"mamba_d_ssm", lambda _, at: at.state_width),
    (r"mamba_dt_rank|time_step_rank", lambda _, at: math.ceil(at.tiny_hidden / 16)),
    (r"mamba_d_state|(ssm_)?state_size", _at_most(HEAD_DIM)),
    (r"(mamba_)?n_?groups", _at_most(GROUPS)),
    # Linear attention: an eighth, so that ratios stay.
    (r"linear_(\w+_)?(heads|head_dim)", lambda n, _: max(1, n // 8)),
    # Attention.
    (r"(\w+_)?(num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups)", _tiny_kv_heads),
    (r"index_n_heads", _at_most(32)),  # with few, scores are often all zero, and tie
    (HEAD_COUNT.pattern, _tiny_heads),
    (r"(\w+_)?(head_dim|d_head|head_size|d_kv|dim_head|kv_channels)", _tiny_head_dim),
    (r"rotary_dim", lambda n, at: min(n, at.tiny_head_dim // 2)),
    (r"(\w+_)?(lora_rank|lowrank)|hidden_size_per_layer_input", _exactly(HIDDEN)),
    # Experts.
    (r"(\w+_)?(num_experts|num_local_experts|n_routed_experts)", _at_most(EXPERTS)),
    (r"num_experts_per_tok(en)?|moe_k|moe_top_?k|top_k_experts", _at_most(ACTIVE_EXPERTS)),
    (r"n_group|num_expert_group|o_groups|zero_expert_num", _at_most(GROUPS)),
    (r"topk_group", _exactly(1)),
    # Widths.
    (HIDDEN_WIDTH.pattern, _tiny_hidden),
    (INNER_WIDTH, _exactly(INNER)),
    (r"base_channels", _at_most(HIDDEN // 2)),
    (r"ngram_vocab_size_base", _at_most(1000)),
)
SHORT_RULES: tuple[tuple[str, Callable[[int, Short], int]], ...] = (
    (r"(\w+_)?vocab_size(_per_layer_input)?", lambda n, short: min(n, short.vocab)),
    (
        r"(\w+_)?(sliding_window(_size)?|attention_chunk_size|attention_window_size|chunk_size)|"
        r"local_attention|keep_window_size|index_topk",
        lambda n, short: min(n, short.window),
    ),
)


def _tiny_number(key: str, value: int, level: _Level) -> int:
    if (short := level.short) is not None:
        for pattern, shorten in SHORT_RULES:
            if re.fullmatch(pattern, key):
                return shorten(value, short)
    found = (rule for pattern, rule in RULES if re.fullmatch(pattern, key))
    return next(found, lambda number, _: number)(value, level)


def _tiny_rope(
    values: Mapping[str, Any], head_dim: int, config: Mapping[str, Any], share: Any = None
) -> dict[str, Any]:
    """The same RoPE parameters; lists with one factor per frequency are shortened, and M-RoPE's
    sections scaled.

    `share` is the default of partial_rotary_factor.
    """
    share = values.get("partial_rotary_factor", share or config.get("partial_rotary_factor", 1.0))
    frequencies = math.ceil(int(head_dim * share) / 2) if isinstance(share, int | float) else 1

    def tiny(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):  # parameters per layer type (Gemma 3)
            return _tiny_rope(value, head_dim, config, share)
        if key in ("mrope_section", "xdrope_section"):
            return _scaled(value, frequencies)
        return value[:frequencies] if isinstance(value, list) else value

    return {key: tiny(key, value) for key, value in values.items()}


def _scaled(parts: Sequence[int], total: int) -> list[int]:
    """Whole numbers in the same proportion, with another sum."""
    ends = [round(total * sum(parts[: end + 1]) / sum(parts)) for end in range(len(parts))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


# Token ids

TOKEN = re.compile(r"\w*(token_ids?|token_index|_start_id|_end_id|_line_id|_patch_id)")
# Tokens in whose place a picture or a sound is read.
MODALITY = re.compile(r"(image|video|audio|vision|im|img|slice|boi|eoi|boa|eoa)_\w+")


def _renumbered(config: dict[str, Any], vocab: int) -> dict[str, Any]:
    """The config with the ids that its vocabulary lacks, and those of pictures and sounds, as its
    last tokens."""
    found = list(_token_ids(config))
    moved = sorted({id_ for key, id_ in found if id_ >= vocab or MODALITY.fullmatch(key)})
    places = {id_: vocab - 1 - place for place, id_ in enumerate(moved)}

    def renumber(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: renumber(name, each) for name, each in value.items()}
        if isinstance(value, list):
            return [renumber(key, each) for each in value]
        return places.get(value, value) if TOKEN.fullmatch(str(key)) else value

    return {key: renumber(key, value) for key, value in config.items()}


def _token_ids(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _token_ids(value)
        elif TOKEN.fullmatch(str(key)):
            each = value if isinstance(value, list) else [value]
            yield from ((str(key), id_) for id_ in each if isinstance(id_, int))
