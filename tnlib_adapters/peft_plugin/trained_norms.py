"""Normalisation layers that are trained in float32 and compute as the base's do."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.func import functional_call

from tnlib_adapters.base_model.linear_modules import without_values
from tnlib_adapters.base_model.offloaded import onloaded

_HALVES = (torch.float16, torch.bfloat16)


class TrainedNorm(nn.Module):
    """A copy of a norm of the base, with parameters in float32 at least.

    They are cast to the dtype of the base's norm in every call, so that the copy starts as the base
    bit for bit. A step of usual size would be rounded away in half precision, and torch's
    ``GradScaler`` refuses float16 parameters. Values that accelerate keeps elsewhere are here in
    the copy.

    Parameters
    ----------
    original : torch.nn.Module
        The base's norm, which this module refers to and does not register.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        with onloaded(original):
            for name, value in original._parameters.items():
                wide = None if value is None else value.detach().clone().to(_wide(value.dtype))
                self.register_parameter(name, None if wide is None else nn.Parameter(wide))
            for name, buffer in original._buffers.items():
                self.register_buffer(name, None if buffer is None else buffer.detach().clone())
        # Neither is a submodule: what is trained is here.
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_computing", without_values(original))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the base's norm does, with these parameters."""
        self._computing.training = self.training
        values: dict[str, Tensor] = dict(self.named_buffers(recurse=False))
        for name, value in self.named_parameters(recurse=False):
            values[name] = value.to(self._original._parameters[name].dtype)
        return functional_call(self._computing, values, args, kwargs)

    def as_base(self) -> nn.Module:
        """The trained norm as a module of the base's class and dtype."""
        with onloaded(self._original):
            norm: nn.Module = copy.deepcopy(self._original)
        norm.load_state_dict(self.state_dict())
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


def widen_norms(model: nn.Module, adapter_name: str) -> None:
    """Train the norms of an adapter in float32 over a base in half precision or off-loaded."""
    for wrapper in _wrapped_norms(model):
        if adapter_name in wrapper.modules_to_save:
            norm = wrapper.original_module
            parameters = [*norm.parameters(False)]
            elsewhere = hasattr(norm, "_hf_hook") and any(p.is_meta for p in parameters)
            if elsewhere or any(p.dtype in _HALVES for p in parameters):
                trained = wrapper.modules_to_save[adapter_name]
                wide = TrainedNorm(norm).train(trained.training)
                for parameter, old in zip(wide.parameters(), trained.parameters(), strict=True):
                    parameter.requires_grad_(old.requires_grad)
                wrapper.modules_to_save[adapter_name] = wide


def narrow_norms(model: nn.Module, adapter_name: str | None = None) -> None:
    """Undo :func:`widen_norms`, by default for all adapters: norms get the base's class back."""
    for wrapper in _wrapped_norms(model):
        for name, norm in wrapper.modules_to_save.items():
            if adapter_name in (None, name) and isinstance(norm, TrainedNorm):
                wrapper.modules_to_save[name] = norm.as_base()


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer with parameters."""
    return "Norm" in type(module).__name__ and next(module.parameters(False), None) is not None


def _wrapped_norms(model: nn.Module) -> list[ModulesToSaveWrapper]:
    return [
        module
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper) and is_norm(module.original_module)
    ]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
