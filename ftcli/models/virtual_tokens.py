"""Virtual tokens of prefix and prompt tuning, put in front of a model's input.

PEFT adds them in its own forward and generate, which our loss does not call. Here they enter the
model below PEFT as embeddings (soft prompt) or as the KV cache (prefix).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, initialize_kv_prefix_from_past_key_values
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ftcli.errors import ModelError


def virtual_tokens(model: PreTrainedModel) -> int:
    """Number of positions that the method puts in front of the input; 0 for other methods."""
    config = _config(model)
    return int(config.num_virtual_tokens) if config is not None else 0


def has_prefix(model: PreTrainedModel) -> bool:
    """Whether the virtual tokens are keys and values in the cache."""
    config = _config(model)
    return config is not None and _is_prefix(config)


def causal_model(model: PreTrainedModel) -> PreTrainedModel:
    """The causal language model below a PEFT wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def backbone_inputs(model: PreTrainedModel, input_ids: Tensor) -> dict[str, Any]:
    """Inputs of the backbone, for ids [rows, tokens] padded on the right.

    The last `tokens` positions of its output belong to the ids.
    """
    config = _config(model)
    if config is None:
        return {"input_ids": input_ids, "use_cache": False}
    before = model.get_prompt(batch_size=len(input_ids))
    if _is_prefix(config):
        return {"input_ids": input_ids, "cache": before, "use_cache": False}
    embedded = causal_model(model).get_input_embeddings()(input_ids)
    return {
        "inputs_embeds": torch.cat((before.to(embedded.dtype), embedded), dim=1),
        "use_cache": False,
    }


def generation_inputs(model: PreTrainedModel, input_ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Inputs of the causal model's `generate`, for ids [rows, tokens] padded on the left.

    Call it within `generating`.
    """
    config = _config(model)
    if config is None:
        return {"input_ids": input_ids, "attention_mask": mask}
    count = config.num_virtual_tokens
    # The ids of virtual tokens are not read, but a repetition penalty sees them: the row's last id
    # adds none that the row does not have.
    more = input_ids[:, -1:].expand(-1, count)
    seen = torch.ones(len(mask), count, dtype=mask.dtype, device=mask.device)
    if _is_prefix(config):
        return {
            "input_ids": torch.cat((more, input_ids), dim=1),
            "attention_mask": torch.cat((seen, mask), dim=1),
            "cache": model.get_prompt(batch_size=len(input_ids)),
        }
    # Padding comes before the soft prompt, so that positions are the same as in training.
    rows = zip(input_ids, more, mask.bool(), strict=True)
    return {
        "input_ids": torch.stack(
            [torch.cat((row[~keep], own, row[keep])) for row, own, keep in rows]
        ),
        "attention_mask": torch.cat((mask, seen), dim=1).sort(dim=1, stable=True).values,
    }


@contextmanager
def generating(model: PreTrainedModel, mask: Tensor) -> Iterator[None]:
    """Within the block, the first tokens of each row are embedded as the soft prompt, if there is
    one; `mask` [rows, tokens] is that of `generation_inputs`.

    In the embedding layer, because many classes cannot generate from embeddings.
    """
    config, network = _config(model), causal_model(model)
    count = 0 if config is None or _is_prefix(config) else config.num_virtual_tokens
    places = mask.bool() & (mask.cumsum(dim=1) <= count)
    prompt = model.get_prompt(batch_size=len(mask)).flatten(0, 1) if count else None

    def embed(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        later = output.shape[1] - places.shape[1]
        if prompt is None or later < 0:  # a token after a cache
            return None
        where = F.pad(places, (0, later))
        return output.masked_scatter(where[..., None], prompt.to(output.dtype))

    handle = network.get_input_embeddings().register_forward_hook(embed)
    try:
        yield
    finally:
        handle.remove()
        for module in network.modules():
            # M-RoPE's offsets of these rows (transformers 5.24, Qwen2-VL).
            if getattr(module, "rope_deltas", None) is not None:
                module.rope_deltas = None


def init_virtual_tokens(model: PreTrainedModel, init_ids: Sequence[int]) -> None:
    """Initialise virtual tokens from these ids, cut or repeated to fit; without ids, random ones.

    A soft prompt gets their embeddings, a prefix the base's keys and values of them; training from
    noise is slower (Li and Liang 2021, section 7.4; Lester et al. 2021, 3.2).
    """
    config, base = _config(model), causal_model(model)
    embeddings = base.get_input_embeddings()
    count, device = config.num_virtual_tokens, embeddings.weight.device
    if device.type == "meta":  # sizes without weights
        return
    if init_ids:
        ids = torch.tensor((list(init_ids) * count)[:count], device=device)
    else:
        ids = torch.randint(embeddings.num_embeddings, (count,)).to(device)
    with torch.no_grad():
        if _is_prefix(config):
            cache = base(input_ids=ids[None], use_cache=True).cache
            try:
                initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
            except ValueError as error:
                raise ModelError(
                    "method_refused",
                    f"{type(base).__name__}: PEFT gives a prefix other sizes than its keys and "
                    "values have; take method.mode: lora",
                ) from error
        else:
            model.prompt_encoder[model.active_adapter].embedding.weight.copy_(embeddings(ids))


def _config(model: PreTrainedModel) -> Any:
    """PEFT's config of the virtual tokens; None for methods without them."""
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return None
    return model.active_peft_config


def _is_prefix(config: Any) -> bool:
    return str(config.peft_type.value) == "PREFIX_TUNING"
