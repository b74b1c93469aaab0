"""Bottleneck adapters as a PEFT method: a small network after a block of frozen weights.

y = h + W_up · f(W_down · h), with h the output of the attention's or the MLP's last projection,
before the residual is added (Houlsby et al. 2019, figure 2; after the MLP alone: Pfeiffer et al.
2021). W_up and its bias are initialised to zero, so training starts exactly at the base.

PEFT 0.21 has no such method; importing this module registers one, and plain PEFT then opens the
folders that ftcli saves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from aenum import extend_enum
from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "bottleneck"
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


@dataclass
class BottleneckConfig(PeftConfig):
    """The `adapter_config.json` of bottleneck adapters."""

    target_modules: list[str] | set[str] | str | None = None
    """Projections that an adapter follows."""
    modules_to_save: list[str] | None = None
    bottleneck: int = 64
    """Inner width."""
    activation: str = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[NAME.upper()]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A projection with the adapters that follow it, by name."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    # Members of the untyped BaseTunerLayer; without these, nn.Module types them as weights.
    active_adapters: Any
    get_base_layer: Any
    set_adapter: Any
    _move_adapter_to_device_of_base_layer: Any

    def __init__(self, base_layer: nn.Module, name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.activations: dict[str, str] = {}
        self.merged_adapters: list[str] = []  # always empty: a non-linear update cannot be merged
        self._disable_adapters = False
        self._active_adapter = name
        self.update_layer(name, config)

    def update_layer(self, name: str, config: BottleneckConfig) -> None:
        """Add an adapter, initialised to the identity."""
        width = self.get_base_layer().out_features
        self.bottleneck_down[name] = nn.Linear(width, config.bottleneck)
        up = nn.Linear(config.bottleneck, width)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_up[name] = up
        self.activations[name] = config.activation
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[…, in] → […, out]; the projection alone if adapters are disabled."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name not in self.bottleneck_down:
                continue
            down: Any = self.bottleneck_down[name]
            up: Any = self.bottleneck_up[name]
            inner = ACTIVATIONS[self.activations[name]](down(result.to(down.weight.dtype)))
            result = result + up(inner).to(result.dtype)
        return result


class BottleneckModel(BaseTuner):
    """The base with adapters after the projections that the config names."""

    prefix = f"{NAME}_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: Mapping[str, list[str]] = MappingProxyType({})

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained yet
        self._replace_module(parent, target_name, layer, target)


if NAME.upper() not in PeftType.__members__:
    extend_enum(PeftType, NAME.upper(), NAME.upper())
if PeftType[NAME.upper()] not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name=NAME, config_cls=BottleneckConfig, model_cls=BottleneckModel)
