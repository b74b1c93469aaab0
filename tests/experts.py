"""Tiny random mixtures of experts, one of each kind of experts."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from ftcli.kernels.expert_stacks import expert_stacks, quantise_experts

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# A dense layer first, then routed and shared experts.
DENSE_FIRST: dict[str, Any] = {"n_group": 2, "topk_group": 2, "first_k_dense_replace": 1}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen3_moe": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 64},
    "olmoe": {},
    "gpt_oss": {},  # stacks [experts, in, out], biases, gate and up interleaved
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},  # transposed
    "deepseek_v3": {
        **DENSE_FIRST,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
    "glm4_moe": DENSE_FIRST,
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 64,
        "mamba_n_heads": 8,
        "mamba_d_state": 16,
        "mamba_d_head": "auto",
        "mamba_n_groups": 1,
        "mamba_expand": 2,
    },
    "nemotron_h": {  # no gate: `up_proj`
        "layers_block_type": ["moe", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 1,
        "moe_shared_expert_intermediate_size": 64,
        "n_group": 1,
        "topk_group": 1,
    },
    # Its experts do not run through transformers' interface.
    "llama4_text": {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 64},
}
REPLACEABLE = [name for name in MIXTURES if name != "llama4_text"]
IDS = torch.arange(1, 41).reshape(2, 20)


def mixture(kind: str, **sizes: Any) -> PreTrainedModel:
    """A model of this type, with numbers in all biases."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | MIXTURES.get(kind, {}) | sizes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def nf4(*, double: bool = True) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )


def in_4_bits(model: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model with its experts in 4 bits, and a plain model of the same numbers."""
    plain = deepcopy(model)
    quantise_experts(model, nf4(), torch.device("cpu"))
    for stack in expert_stacks(model):
        weight = getattr(plain.get_submodule(stack.path), stack.name)
        weight.data = getattr(stack.module, stack.name).detach().clone()
    return model, plain


def through(model: PreTrainedModel, ids: Tensor = IDS) -> dict[str, Tensor]:
    """Logits, and the gradients of all trainable weights and of the embedded tokens."""
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    handle = model.get_input_embeddings().register_forward_hook(keep)
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    handle.remove()
    logits.float().log_softmax(-1).square().mean().backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    found = {"logits": logits, "embedded": embedded[0].grad, **trained}
    return {name: deepcopy(it.detach()) for name, it in found.items() if it is not None}
