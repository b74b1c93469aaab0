from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ftcli.errors import ModelError
from ftcli.memory import Choices, Stack, estimate, textbook
from ftcli.memory.architecture import Architecture
from ftcli.memory.trained import trainable_parameters, trained_tensors
from ftcli.models.architectures.find import find_architecture

LLAMA_7B = find_architecture("7b")

choices_of_any_kind = st.builds(
    Choices,
    mode=st.sampled_from(["full", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning"]),
    precision=st.sampled_from(["bf16", "fp16", "fp32", "pure-bf16"]),
    optimizer=st.sampled_from(["adamw", "adamw-8bit", "paged-adamw-8bit", "sgd"]),
    rank=st.integers(1, 256),
    dropout=st.sampled_from([0.0, 0.1]),
    dora=st.booleans(),
    layers=st.sampled_from([None, None, (0,), (3, 5), (20, 21, 22)]),
    rank_pattern=st.sampled_from([(), (), (("o_proj", 5),), (("layers.3.*.o_proj", 300),)]),
    modules_to_save=st.sampled_from([(), ("embed_tokens",), ("embed_tokens", "lm_head")]),
    bottleneck=st.integers(1, 256),
    placement=st.sampled_from(["attention", "mlp", "both"]),
    four_bit_base=st.booleans(),
    virtual_tokens=st.integers(1, 100),
    projection=st.booleans(),
    micro_batch=st.integers(1, 16),
    seq_len=st.integers(1, 8192),
    gradient_accumulation=st.sampled_from([1, 4]),
    gradient_checkpointing=st.booleans(),
    attention=st.sampled_from(["sdpa", "flash", "eager"]),
    loss=st.sampled_from(["chunked", "full"]),
    label_share=st.floats(0.01, 1),
    stack=st.sampled_from([Stack(), Stack(trl_head=True)]),
).filter(lambda choices: choices.layers is None or "layers.3" not in str(choices.rank_pattern))
shapes = st.sampled_from(["qwen2.5-7b", "gemma-2-2b", "mixtral-8x7b"]).map(
    lambda name: find_architecture(name)
)


def assume_possible(architecture: Architecture, choices: Choices) -> None:
    """Experts are not linear, so that a bottleneck has nothing to follow there."""
    assume(not (architecture.has_experts and choices.mode == "bottleneck"))


def test_weights_of_7b_in_bf16_are_two_bytes_per_parameter() -> None:
    assert estimate(LLAMA_7B, Choices("lora")).breakdown["weights"] == 6_738_415_616 * 2


def test_full_fine_tuning_takes_16_bytes_per_parameter_before_activations() -> None:
    for precision in ("bf16", "fp32"):
        found = estimate(LLAMA_7B, Choices("full", precision=precision))  # type: ignore[arg-type]
        assert found.breakdown["weights"] == 4 * 6_738_415_616
        assert found.breakdown["optimizer"] == 8 * 6_738_415_616
        assert found.peak_bytes > 16 * 6_738_415_616
    pure = estimate(LLAMA_7B, Choices("full", precision="pure-bf16"))
    assert 8 < pure.peak_bytes / 6_738_415_616 < 8.2


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.127)])
def test_nf4_takes_its_bits(double: bool, bits: float) -> None:
    found = estimate(LLAMA_7B, Choices("qlora", double_quantization=double)).breakdown
    rest = 2 * (LLAMA_7B.parameters - LLAMA_7B.linear_parameters)
    quantised = found["weights"] + found["quantization"] - rest
    assert quantised * 8 / LLAMA_7B.linear_parameters == pytest.approx(bits, abs=5e-4)


def test_adapters_gradients_and_states_are_fp32() -> None:
    found = estimate(LLAMA_7B, Choices("qlora", gradient_accumulation=2))
    assert found.trainable_parameters == 39_976_960
    assert found.breakdown["adapter"] == 4 * 39_976_960
    assert found.breakdown["gradients"] == 4 * 39_976_960
    assert found.breakdown["optimizer"] == 8 * 39_976_960


def test_modules_to_save_are_in_fp32() -> None:
    plain = estimate(LLAMA_7B, Choices("lora"))
    saved = estimate(LLAMA_7B, Choices("lora", modules_to_save=("lm_head",)))
    matrix = 32_000 * 4096
    assert saved.trainable_parameters == plain.trainable_parameters + matrix
    assert saved.breakdown["adapter"] == plain.breakdown["adapter"] + 4 * matrix
    assert saved.breakdown["optimizer"] == plain.breakdown["optimizer"] + 8 * matrix


def test_tied_ends_are_trained_as_one_matrix() -> None:
    architecture = find_architecture("smollm2-135m")
    assert architecture.tied
    ways = [("lm_head",), ("embed_tokens",), ("embed_tokens", "lm_head")]
    found = [estimate(architecture, Choices("lora", modules_to_save=saved)) for saved in ways]
    assert found[0] == found[1] == found[2]
    plain = estimate(architecture, Choices("lora")).trainable_parameters
    assert found[0].trainable_parameters == plain + architecture.vocab * architecture.hidden


def test_layers_before_the_first_update_keep_nothing() -> None:
    def activations(*layers: int, rebuilt: bool = False) -> int:
        choices = Choices("lora", layers=layers or None, gradient_checkpointing=rebuilt)
        return estimate(LLAMA_7B, choices).timeline["head and loss"]["activations"]

    last, middle, first = activations(31), activations(16), activations(0)
    layer = (first - last) / 31
    assert middle - last == pytest.approx(15 * layer)
    assert layer < last < 2 * layer  # its own, and the inputs of the update
    assert activations() > first + 31 * (last - layer)
    assert activations(31, rebuilt=True) == activations(0, rebuilt=True)


def test_ranks_of_their_own_count_by_the_first_key_that_matches() -> None:
    q_proj, width = 2 * 4096, 32

    def trained(*pattern: tuple[str, int]) -> int:
        choices = Choices("lora", rank=8, target_modules=("q_proj",), rank_pattern=pattern)
        return trainable_parameters(LLAMA_7B, choices)

    assert trained() == width * 8 * q_proj
    assert trained(("q_proj", 4)) == width * 4 * q_proj
    assert trained(("layers.0.*", 64), ("q_proj", 4)) == (64 + 31 * 4) * q_proj
    with pytest.raises(ModelError, match="no module gets its rank from 'model"):
        trained(("self_attn.q_proj", 4), ("model.layers.0.*", 4))


def test_a_24_gb_card_takes_qlora_of_13b_and_lora_of_7b_but_not_full() -> None:
    card = "RTX 4090 24GB"
    assert estimate(find_architecture("13b"), Choices("qlora")).fits[card]
    assert estimate(LLAMA_7B, Choices("lora")).fits[card]
    assert not estimate(LLAMA_7B, Choices("full", precision="pure-bf16")).fits[card]


def test_textbook_figures_are_named_by_what_they_count() -> None:
    found = {figure.label: figure.total_bytes / 1e9 for figure in textbook(LLAMA_7B)}
    assert found["fp32"] == pytest.approx(107.8, abs=0.05)
    assert found["bf16 mixed"] == pytest.approx(107.8, abs=0.05)
    assert found["pure bf16"] == pytest.approx(53.9, abs=0.05)


def test_paged_states_leave_the_gpu() -> None:
    own = estimate(LLAMA_7B, Choices("full", precision="pure-bf16", optimizer="adamw-8bit"))
    paged = estimate(LLAMA_7B, Choices("full", precision="pure-bf16", optimizer="paged-adamw-8bit"))
    assert own.managed_bytes == 0
    moved = own.breakdown["optimizer"] - paged.breakdown["optimizer"]
    assert paged.managed_bytes == moved > 2 * LLAMA_7B.linear_parameters


def test_tokens_without_labels_get_no_logits() -> None:
    architecture = find_architecture("llama-3.1-8b")
    all_labels = Choices("lora", micro_batch=4, gradient_checkpointing=False)
    some = replace(all_labels, label_share=0.1)
    most, least = estimate(architecture, all_labels), estimate(architecture, some)
    assert least.phases["head and loss"] < most.phases["head and loss"] - 410 * architecture.vocab


def test_a_model_that_caps_its_scores_is_sized_for_eager() -> None:
    found = estimate(find_architecture("gemma-2-2b"), Choices("lora", attention="sdpa"))
    assert found.assumptions["attention"] == "eager"


@given(shapes, choices_of_any_kind)
def test_the_items_are_those_of_the_peak(architecture: Architecture, choices: Choices) -> None:
    assume_possible(architecture, choices)
    found = estimate(architecture, choices)
    items = dict(found.breakdown)
    assert found.device_bytes == found.reserved_bytes + items.pop("context")
    assert sum(items.values()) == found.peak_bytes == max(found.phases.values())
    assert found.phases[found.peak_phase] == found.peak_bytes <= found.reserved_bytes
    assert min(items.values()) >= 0


@given(shapes, choices_of_any_kind)
def test_trained_tensors_add_up(architecture: Architecture, choices: Choices) -> None:
    assume_possible(architecture, choices)
    tensors = trained_tensors(architecture, choices)
    assert sum(each.elements * each.count for each in tensors) == trainable_parameters(
        architecture, choices
    )


# What the search rests on (ftcli.memory.fit.search)


@given(
    shapes,
    choices_of_any_kind,
    st.sampled_from(["seq_len", "micro_batch", "rank", "bottleneck", "virtual_tokens"]),
    st.integers(1, 64),
)
def test_more_never_takes_less(
    architecture: Architecture, choices: Choices, name: str, more: int
) -> None:
    assume_possible(architecture, choices)
    larger = replace(choices, **{name: getattr(choices, name) + more})
    before, after = estimate(architecture, choices), estimate(architecture, larger)
    assert after.peak_bytes >= before.peak_bytes
    assert after.high_bytes >= before.high_bytes


@given(shapes, choices_of_any_kind, st.integers(1, 64))
def test_more_layers_never_take_less(
    architecture: Architecture, choices: Choices, more: int
) -> None:
    assume_possible(architecture, choices)
    first, *others = architecture.kinds
    numbers = tuple(range(architecture.layers, architecture.layers + more))
    deeper = replace(
        architecture,
        kinds=(replace(first, layers=first.layers + numbers), *others),
        parameters=architecture.parameters + more * first.parameters,
    )
    before, after = estimate(architecture, choices), estimate(deeper, choices)
    assert after.peak_bytes >= before.peak_bytes
    assert after.high_bytes >= before.high_bytes


# By a kernel that never holds the scores: eager's are fp32 in any precision, with a 16-bit copy.
KERNEL = {"attention": "sdpa"}
WEIGHTS = {"mode": "full", **KERNEL}
# Of what is otherwise the same: fewer bits, and more.
BITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"double_quantization": True}, {"double_quantization": False}),
    (KERNEL | {"four_bit_base": True}, KERNEL | {"four_bit_base": False}),
    (KERNEL | {"weights_dtype": "bf16"}, KERNEL | {"weights_dtype": "fp32"}),
    ({"optimizer": "paged-adamw-8bit"}, {"optimizer": "adamw-8bit"}),
    (WEIGHTS | {"precision": "pure-bf16"}, WEIGHTS | {"precision": "bf16"}),
    (WEIGHTS | {"precision": "pure-bf16"}, WEIGHTS | {"precision": "fp32"}),
]


# With all logits, 16-bit ones leave larger gaps in the allocator than fp32 ones.
trained_choices = choices_of_any_kind.map(
    lambda choices: replace(choices, loss="chunked", stack=Stack())
)


@given(shapes, trained_choices, st.sampled_from(BITS))
def test_more_bits_never_take_less(
    architecture: Architecture, choices: Choices, bits: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    assume_possible(architecture, choices)
    few, many = (replace(choices, **kind) for kind in bits)
    assert estimate(architecture, few).high_bytes <= estimate(architecture, many).high_bytes


@given(shapes, trained_choices.filter(lambda choices: choices.precision != "pure-bf16"))
def test_states_of_8_bits_never_take_more(architecture: Architecture, choices: Choices) -> None:
    """With fp32 weights: bitsandbytes keeps an embedding's states in fp32, AdamW in its dtype."""
    assume_possible(architecture, choices)
    few, many = (replace(choices, optimizer=name) for name in ("adamw-8bit", "adamw"))
    assert estimate(architecture, few).high_bytes <= estimate(architecture, many).high_bytes


def test_checkpointing_keeps_one_residual_of_each_layer() -> None:
    rebuilt, kept = (
        estimate(LLAMA_7B, Choices("lora", gradient_checkpointing=checkpointing))
        for checkpointing in (True, False)
    )
    assert rebuilt.breakdown["activations"] < kept.breakdown["activations"] / 4
    more = estimate(LLAMA_7B, Choices("lora", seq_len=1025)).phases["optimizer step"]
    assert more == rebuilt.phases["optimizer step"]


@given(shapes, choices_of_any_kind)
def test_checkpointing_never_takes_more(architecture: Architecture, choices: Choices) -> None:
    assume_possible(architecture, choices)
    kept = estimate(architecture, replace(choices, gradient_checkpointing=False))
    rebuilt = estimate(architecture, replace(choices, gradient_checkpointing=True))
    assert rebuilt.phases["head and loss"] <= kept.phases["head and loss"]
