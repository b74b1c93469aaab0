"""Virtual tokens of prefix and prompt tuning, put in front of a model's input.

PEFT adds them in its own forward and generate, which our loss does not call. Here they enter the
model below PEFT as embeddings (soft prompt) or as the KV cache (prefix).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel, initialize_kv_prefix_from_past_key_values
from torch import Tensor
from transformers import PreTrainedModel


def virtual_tokens(model: PreTrainedModel) -> int:
    """Number of positions that the method puts in front of the input; 0 for other methods."""
    config = _config(model)
    return int(config.num_virtual_tokens) if config is not None else 0


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
    """Inputs of the causal model's `generate`, for ids [rows, tokens] padded on the left."""
    config = _config(model)
    if config is None:
        return {"input_ids": input_ids, "attention_mask": mask}
    before = model.get_prompt(batch_size=len(input_ids))
    count = config.num_virtual_tokens
    # The ids of virtual tokens are not embedded, but a repetition penalty sees them: the row's last
    # id adds none that the row does not have.
    ids = torch.cat((input_ids[:, -1:].expand(-1, count), input_ids), dim=1)
    seen = torch.ones(len(mask), count, dtype=mask.dtype, device=mask.device)
    if _is_prefix(config):
        whole = torch.cat((seen, mask), dim=1)
        return {"input_ids": ids, "attention_mask": whole, "cache": before}
    embedded = causal_model(model).get_input_embeddings()(input_ids)
    # Padding comes before the soft prompt, so that positions are the same as in training.
    return {
        "input_ids": ids,
        "inputs_embeds": _after_padding(before.to(embedded.dtype), embedded, mask),
        "attention_mask": torch.cat((mask, seen), dim=1).sort(dim=1, stable=True).values,
    }


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
            initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
        else:
            model.prompt_encoder[model.active_adapter].embedding.weight.copy_(embeddings(ids))


def _after_padding(prompt: Tensor, embedded: Tensor, mask: Tensor) -> Tensor:
    """Rows [padding, prompt, tokens] of embeddings; padding is where the mask is 0."""
    rows = []
    for row, keep in enumerate(mask.bool()):
        rows.append(torch.cat((embedded[row, ~keep], prompt[row], embedded[row, keep])))
    return torch.stack(rows)


def _config(model: PreTrainedModel) -> Any:
    """PEFT's config of the virtual tokens; None for methods without them."""
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return None
    return model.active_peft_config


def _is_prefix(config: Any) -> bool:
    return str(config.peft_type.value) == "PREFIX_TUNING"
