"""Each private name of a library that ftcli uses: there, and still needed."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import masking_utils
from transformers.integrations import sdpa_attention

from ftcli import compat
from tests.experts import mixture
from tests.tiny_models import falcon, llama


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bitsandbytes asks an installed package `kernels` for, on a CPU with bf16 units."""
    import bitsandbytes.functional

    (tmp_path / "kernels.py").write_text(
        "asked = []\n\ndef get_kernel(name, **_):\n    asked.append(name)\n    raise OSError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    monkeypatch.setattr(bitsandbytes.functional, "has_avx512bf16", lambda: True)
    # Each operation of torch can be registered once only.
    monkeypatch.setattr(bitsandbytes._ops, "register_kernel", lambda *_: lambda kernel: kernel)
    package: Any = import_module("kernels")
    found: list[str] = package.asked
    return found


def test_bitsandbytes_fetches_no_kernel_and_others_can_use_the_package(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, compat.CPU_OPERATIONS)
    import_module(compat.CPU_OPERATIONS)
    assert asked == []
    assert import_module("kernels").asked is asked


def test_bitsandbytes_would_fetch_one(asked: list[str]) -> None:
    """If this fails, bitsandbytes has changed, and `refuse_hub_kernel` has no effect."""
    package = import_module("bitsandbytes.backends.cpu")
    spec = PathFinder.find_spec(compat.CPU_OPERATIONS, package.__path__)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))
    assert asked == ["kernels-community/quantization-bitsandbytes"]


def test_layers_look_up_the_attention_that_is_named_for_a_while() -> None:
    model = llama()
    ids = torch.arange(1, 9)[None]
    before = model.config._attn_implementation
    with compat.attention_named(model, "nowhere"), pytest.raises((KeyError, ValueError)):
        model(input_ids=ids)
    assert model.config._attn_implementation == before == "sdpa"
    model(input_ids=ids)


def test_the_gradient_of_a_softmax_is_autograd_s() -> None:
    scores = torch.randn(3, 5, requires_grad=True)
    upstream = torch.randn(3, 5)
    probabilities = scores.softmax(dim=-1)
    (expected,) = torch.autograd.grad(probabilities, scores, upstream)
    assert torch.equal(compat.softmax_backward(upstream, probabilities.detach()), expected)


def test_experts_have_their_activation_in_a_method() -> None:
    rows = torch.randn(3, 64)
    gate, up = rows.chunk(2, dim=-1)
    gated = mixture("qwen3_moe").get_submodule("model.layers.0.mlp.experts")
    torch.testing.assert_close(compat.gate_experts(gated, rows), F.silu(gate) * up)
    plain = mixture("nemotron_h").get_submodule("model.layers.0.mixer.experts")
    torch.testing.assert_close(compat.gate_experts(plain, rows), rows.relu().square())


def test_falcon_s_linear_layers_are_of_a_class_of_its_own() -> None:
    """And compute what torch's do."""
    modeling: Any = import_module(compat.FALCON)
    own = modeling.FalconLinear
    assert issubclass(own, nn.Linear) and own is not nn.Linear
    assert any(type(module) is own for module in falcon().modules())
    with compat.plain_falcon_layers():
        plain = falcon()
    assert modeling.FalconLinear is own
    assert not any(type(module) is own for module in plain.modules())
    layer, hidden = own(4, 3), torch.randn(2, 4)
    torch.testing.assert_close(layer(hidden), nn.Linear.forward(layer, hidden))


def test_a_process_that_ends_runs_its_exit_functions_and_keeps_what_it_printed() -> None:
    code = (
        "import atexit; from ftcli.kernels.cpu import end_process\n"
        "atexit.register(print, 'registered'); print('printed'); end_process(3)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (3, "printed\nregistered\n")


def test_shared_keys_are_repeated_where_no_kernel_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same logits; if the first part fails, transformers has changed, and repeats by itself."""
    own = sdpa_attention.use_gqa_in_sdpa
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", own)
    asked: list[bool] = []
    sdpa = F.scaled_dot_product_attention

    def ask(*arguments: Any, enable_gqa: bool = False, **keywords: Any) -> torch.Tensor:
        asked.append(enable_gqa)
        return sdpa(*arguments, enable_gqa=enable_gqa, **keywords)

    monkeypatch.setattr(F, "scaled_dot_product_attention", ask)
    model, ids = llama(num_key_value_heads=1), torch.arange(1, 9)[None]
    with torch.no_grad():
        shared = model(input_ids=ids).logits
        assert asked and all(asked)
        asked.clear()
        compat.repeat_shared_keys()
        repeated = model(input_ids=ids).logits
    assert asked and not any(asked)
    assert torch.allclose(shared, repeated, atol=1e-6)


def test_fake_tensors_have_sizes_and_storages_that_stay_the_same_object() -> None:
    """What ftcli.models.architectures counts by."""
    with compat.fake_tensors():
        made = torch.empty(3, 4, dtype=torch.bfloat16)
        assert made.view(12).untyped_storage() is made.untyped_storage()
    assert made.untyped_storage().nbytes() == 24


def test_padded_rows_are_not_asked_whether_they_are_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the last part fails, transformers does not ask any more."""
    asked: list[int] = []
    own = masking_utils.find_packed_sequence_indices

    def count(positions: torch.Tensor) -> torch.Tensor | None:
        asked.append(positions.numel())
        return own(positions)

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", count)
    model, ids = llama(), torch.arange(1, 9)[None]
    with torch.no_grad(), compat.rows_known_as_padded():
        found = model(input_ids=ids, use_cache=False).logits
    assert asked == []
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, found)
    assert asked == [8]
