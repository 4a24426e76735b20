"""Passes of batches through a model that accumulate the gradients by its weights.

The gradient by the weight of a linear layer is the product of the gradient by what it returns with
what it got. So the weights stay frozen, in whatever form they are: in 4 bits, or adapted. Weights
of experts are parameters of their own, by which gradients are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tnlib_adapters.base_model.expert_parameters import ExpertParameter, expert_parameters
from tnlib_adapters.base_model.linear_modules import features

Loss = Callable[[nn.Module, Any], Tensor]
# Factors of the loss where gradients are in float16, until none of them overflows.
SCALES = (2.0**16, 2.0**8, 1.0)


@dataclass
class _Sums:
    """Dense gradients by name, the dtypes they came in, and what the loss was multiplied by."""

    gradients: dict[str, Tensor] = field(default_factory=dict)
    dtypes: set[torch.dtype] = field(default_factory=set)
    factor: float = 1.0

    def finite(self) -> bool:
        return all(bool(gradient.isfinite().all()) for gradient in self.gradients.values())


def accumulated(
    model: nn.Module,
    batches: Sequence[Any],
    names: Sequence[str],
    loss: Loss | None,
    done: Callable[[], object],
) -> dict[str, Tensor]:
    """Dense gradients in float32, (out_features, in_features); of experts (experts, out, in)."""
    known = expert_parameters(model)
    experts = {name: known[name] for name in names if name in known}
    modules = {name: model.get_submodule(name) for name in names if name not in experts}
    sums = _Sums()
    parameters = {name: _parameter(model, found) for name, found in experts.items()}
    earlier = {name: parameter.grad for name, parameter in parameters.items()}
    handles = [
        module.register_forward_hook(_watch(name, sums), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        for parameter in parameters.values():
            parameter.grad = None
            parameter.requires_grad_(True)
            sums.dtypes.add(parameter.dtype)
        for scale in SCALES:
            sums.gradients.clear()
            for number, batch in enumerate(batches):
                value = (loss or _model_loss)(model, _on(batch, model))
                _check_loss(value, f"the loss of batch {number}", names[0])
                sums.factor = scale if torch.float16 in sums.dtypes else 1.0
                (value * sums.factor).backward()  # type: ignore[no-untyped-call]
                _take(parameters, experts, sums)
                done()
            if sums.factor == 1 or sums.finite():
                break
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in parameters.items():
            parameter.grad = earlier[name]
            parameter.requires_grad_(False)
    if not sums.gradients:
        raise ValueError(f"no gradient reached {names[0]}: no batch calls it, nor any other")
    like = next(iter(sums.gradients.values()))
    for name in modules.keys() - sums.gradients.keys():
        sums.gradients[name] = like.new_zeros(features(modules[name]) or ())
    for name in experts.keys() - sums.gradients.keys():
        found = experts[name]
        shape = (found.n_experts, found.out_features, found.in_features)
        sums.gradients[name] = like.new_zeros(shape)
    return sums.gradients


def _parameter(model: nn.Module, found: ExpertParameter) -> nn.Parameter:
    owner: Any = model.get_submodule(found.module)
    owner = getattr(owner, "base_layer", owner)
    return getattr(owner, found.parameter)  # type: ignore[no-any-return]


def _take(
    parameters: Mapping[str, nn.Parameter], experts: Mapping[str, ExpertParameter], sums: _Sums
) -> None:
    """Add the gradients by weights of experts, and clear them."""
    for name, parameter in parameters.items():
        if parameter.grad is None:
            continue
        found = experts[name]
        gradient = parameter.grad.float() / sums.factor
        gradient = (gradient.mT if found.transposed else gradient)[:, found.rows]
        known = sums.gradients.get(name)
        sums.gradients[name] = gradient.clone() if known is None else known + gradient
    for parameter in parameters.values():
        parameter.grad = None


def _check_loss(value: Tensor, what: str, name: str) -> None:
    if not value.requires_grad:
        raise ValueError(f"{what} does not depend on {name}: it was not called, or loss= detaches")
    if value.is_meta:
        raise ValueError(f"{what} is on the meta device; load the model's weights first")
    if value.numel() != 1:
        raise ValueError(f"{what} is of shape {tuple(value.shape)}; one number is needed")
    if not value.isfinite():
        raise ValueError(
            f"{what} is not finite: {value.item()}; check its labels (are all of them masked?) and "
            "the dtype"
        )


def _watch(name: str, sums: _Sums) -> Callable[..., Tensor]:
    """A forward hook that adds to the gradient when the backward pass comes by."""

    def hook(module: nn.Module, args: Any, kwargs: Any, y: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # the first of the two passes of checkpointing
            return y
        x = (args[0] if args else next(iter(kwargs.values()))).detach()
        version = x._version
        sums.dtypes.add(y.dtype)
        if not y.requires_grad:
            y = y + torch.zeros((), dtype=y.dtype, device=y.device, requires_grad=True)

        def add(grad: Tensor) -> None:
            if x._version != version:
                raise ValueError(
                    f"{name}: its input was changed in place after the call, so the gradient by "
                    "the weight is lost; copy it before it is changed"
                )
            product = grad.flatten(0, -2).float().mT @ x.flatten(0, -2).float()
            product /= sums.factor
            known = sums.gradients.get(name)
            sums.gradients[name] = product if known is None else known + product

        y.register_hook(add)  # type: ignore[no-untyped-call]
        return y

    return hook


def _model_loss(model: nn.Module, batch: Any) -> Tensor:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"a batch is a {type(batch).__name__}; a mapping of the model's arguments is needed, "
            "or loss="
        )
    output = model(**batch)
    value: Tensor | None = getattr(output, "loss", None)
    if value is None:
        raise ValueError("the model returned no loss; put labels into the batches, or give loss=")
    return value


def _on(batch: Any, model: nn.Module) -> Any:
    """The batch on the device of the model."""
    device = next(model.parameters()).device
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _on(value, model) for key, value in batch.items()}
    return batch


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Frozen and without dropout, and as before afterwards."""
    trained = [value for value in model.parameters() if value.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for value in trained:
        value.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for value in trained:
            value.requires_grad_(True)
        for module, training in modes:
            module.training = training
