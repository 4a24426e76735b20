"""Normalisation layers that are trained: stored in float32 and by their size.

Gains of norms differ from model to model, near one or near a twentieth. Stored divided by their
size, a step of the learning rate changes them by the same part everywhere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.func import functional_call

from tnlib_adapters.base_model.linear_modules import without_values
from tnlib_adapters.base_model.offloaded import onloaded
from tnlib_adapters.layers.multipliers import MULTIPLIERS
from tnlib_adapters.networks.rate_scaling import power_of_two

_HALVES = (torch.float16, torch.bfloat16)
# Inputs of which the gain is measured.
_ROWS = 64


class TrainedNorm(nn.Module):
    """A copy of a norm of the base, its parameters in float32 at least and by their size.

    They are multiplied, and cast to the dtype of the base's norm, in every call, so that the copy
    starts as the base bit for bit. A step of usual size would be rounded away in half precision,
    and torch's ``GradScaler`` refuses float16 parameters. Values that accelerate keeps elsewhere
    are here in the copy.

    Parameters
    ----------
    original : torch.nn.Module
        The base's norm, which this module refers to and does not register.
    scaled : bool
        Store the parameters divided by a multiplier, a buffer: the power of two next to the gain.
    """

    def __init__(self, original: nn.Module, *, scaled: bool) -> None:
        super().__init__()
        self._scaled = scaled
        with onloaded(original):
            for name, value in original._parameters.items():
                wide = None if value is None else value.detach().clone().to(_wide(value.dtype))
                self.register_parameter(name, None if wide is None else nn.Parameter(wide))
            for name, buffer in original._buffers.items():
                self.register_buffer(name, None if buffer is None else buffer.detach().clone())
        # Neither is a submodule: what is trained is here.
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_computing", without_values(original))
        if scaled:
            self._divide(self._gain())

    @torch.no_grad()
    def _divide(self, gain: float) -> None:
        for value in self.parameters(recurse=False):
            value.div_(gain)
        self.register_buffer(MULTIPLIERS, next(self.parameters(False)).new_full((1,), gain))

    @torch.no_grad()
    def _gain(self) -> float:
        """The size of what it gives for random numbers without its bias, as a power of two.

        The weight does not say it: some norms multiply by one plus that.
        """
        values: dict[str, Tensor] = dict(self.named_parameters(recurse=False))
        weight = next(iter(values.values()))
        if weight.is_meta:
            return 1.0
        width = weight.shape[-1] if weight.ndim else 1
        drawn = torch.randn(_ROWS, width, generator=torch.Generator().manual_seed(0))
        try:
            y = functional_call(self._computing, values, drawn.to(weight)).float()
            size = float((y - y.mean(0)).square().mean().sqrt())
        except (RuntimeError, TypeError, ValueError):  # it takes other arguments
            size = float(weight.float().square().mean().sqrt())
        return power_of_two(size) if 0 < size < math.inf else 1.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the base's norm does, with these parameters."""
        self._computing.training = self.training
        values: dict[str, Tensor] = dict(self.named_buffers(recurse=False))
        factor = values.pop(MULTIPLIERS) if self._scaled else None
        for name, value in self.named_parameters(recurse=False):
            whole = value if factor is None else value * factor
            values[name] = whole.to(self._original._parameters[name].dtype)
        return functional_call(self._computing, values, args, kwargs)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected, errors
        )
        stored = any(prefix + name in state_dict for name in self._parameters)
        if self._scaled and stored and prefix + MULTIPLIERS not in state_dict:
            errors.append(
                f"{prefix.rstrip('.')} comes without multipliers: it was saved without rate "
                "scaling; load it with rate_scaling=False"
            )

    def as_base(self) -> nn.Module:
        """The trained norm as a module of the base's class and dtype."""
        with onloaded(self._original):
            norm: nn.Module = copy.deepcopy(self._original)
        norm.load_state_dict(as_base(self.state_dict()))
        for name, parameter in norm.named_parameters(recurse=False):
            parameter.requires_grad_(self.get_parameter(name).requires_grad)
        return norm

    def __getattr__(self, name: str) -> Any:
        """What else the base's norm has, such as its epsilon."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            computing = self.__dict__.get("_computing")
            if computing is None or name.startswith("_"):
                raise
            return getattr(computing, name)


def train_norms_apart(model: nn.Module, adapter_name: str, *, scaled: bool) -> None:
    """Train the norms of an adapter in float32 and by their size, where they are not so already."""
    for wrapper in _wrapped_norms(model):
        if adapter_name in wrapper.modules_to_save:
            norm = wrapper.original_module
            parameters = [*norm.parameters(False)]
            elsewhere = hasattr(norm, "_hf_hook") and any(p.is_meta for p in parameters)
            widened = elsewhere or any(p.dtype in _HALVES for p in parameters)
            by_size = scaled and is_multiplied(norm)
            if widened or by_size:
                trained = wrapper.modules_to_save[adapter_name]
                apart = TrainedNorm(norm, scaled=by_size).train(trained.training)
                for parameter, old in zip(apart.parameters(), trained.parameters(), strict=True):
                    parameter.requires_grad_(old.requires_grad)
                wrapper.modules_to_save[adapter_name] = apart


def narrow_norms(model: nn.Module, adapter_name: str) -> None:
    """Store the norms of an adapter in the dtype of the base's."""
    for wrapper in _wrapped_norms(model):
        norms = wrapper.modules_to_save
        norm = dict(norms).get(adapter_name)
        if isinstance(norm, TrainedNorm):
            dtype = next(wrapper.original_module.parameters(False)).dtype
            norms[adapter_name] = norm.to(dtype) if norm._scaled else norm.as_base()


def put_norms_back(model: nn.Module) -> None:
    """Give trained norms the base's class back, for all adapters."""
    for wrapper in _wrapped_norms(model):
        for name, norm in wrapper.modules_to_save.items():
            if isinstance(norm, TrainedNorm):
                wrapper.modules_to_save[name] = norm.as_base()


def as_base(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with the values of norms as a base has them, where they are stored divided."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        owner, dot, last = name.rpartition(".")
        factor = state.get(f"{owner}{dot}{MULTIPLIERS}")
        if last != MULTIPLIERS:
            found[name] = value if factor is None else value * factor
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer with parameters."""
    return "Norm" in type(module).__name__ and next(module.parameters(False), None) is not None


def is_multiplied(module: nn.Module) -> bool:
    """Whether rate scaling stores a module's parameters divided.

    Those of a norm without statistics or parts.
    """
    return is_norm(module) and not (module._buffers or module._modules)


def _wrapped_norms(model: nn.Module) -> list[ModulesToSaveWrapper]:
    return [
        module
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper) and is_norm(module.original_module)
    ]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
