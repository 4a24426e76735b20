"""Gradients of the loss by the weights of a model, without training them.

The gradient by the weight of a linear layer is the product of the gradient by what it returns with
what it got. So the weights stay frozen, in whatever form they are: in 4 bits, or adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tnlib import tt_svd
from tnlib_adapters.base_model.linear_modules import features
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.progress import is_shown

# Singular directions that are kept of every gradient.
KEPT = 64

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class WeightGradient:
    """The gradient by one weight.

    Attributes
    ----------
    leading : LowRankUpdate
        Its leading singular directions, in float64.
    energy : float
        Square of its Frobenius norm, all directions counted.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> loss = lambda model, batch: model(batch).sum()
    >>> found = weight_gradients(model, [torch.ones(1, 4)], ["0"], loss=loss)["0"]
    >>> round(found.energy, 5), found.leading.dense().round().tolist()[0]
    (12.0, [1.0, 1.0, 1.0, 1.0])
    """

    leading: LowRankUpdate
    energy: float


def weight_gradients(
    model: nn.Module,
    batches: Iterable[Any],
    modules: Iterable[str],
    *,
    loss: Loss | None = None,
    at_once: int | None = None,
    kept: int = KEPT,
    generator: torch.Generator | None = None,
    progressbar: bool | None = None,
) -> dict[str, WeightGradient]:
    """The gradients of the loss, summed over some batches, by the weights of linear layers.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, adapted or not; it is left as it is.
    batches : sequence
        What the model is called with: mappings, moved to its device. A few are enough.
    modules : sequence of str
        Names of linear layers in `model`.
    loss : callable, optional
        Makes a loss of the model and a batch; by default ``model(**batch).loss``.
    at_once : int, optional
        For how many layers dense gradients are held at a time, for which the batches are gone
        through again and again; all by default.
    kept : int
        Singular directions that are kept of every gradient.
    generator : torch.Generator, optional
        Randomness of the decompositions.
    progressbar : bool, optional
        Show progress; by default for large models only.

    Raises
    ------
    TypeError
        If a module is not a linear layer.
    ValueError
        If there is no batch, no loss, or a gradient that is not finite.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> loss = lambda model, batch: model(batch).square().sum()
    >>> found = weight_gradients(model, [torch.ones(5, 4)], ["0", "2"], loss=loss)
    >>> {name: gradient.leading.shape for name, gradient in found.items()}
    {'0': (3, 4), '2': (2, 3)}
    """
    names, batches = [*modules], [*batches]
    if not batches:
        raise ValueError("batches is empty; a few batches as for training are needed")
    for name in names:
        module = model.get_submodule(name)
        if features(module) is None and not hasattr(module, "base_layer"):
            kind = type(module).__name__
            raise TypeError(f"{name}: the gradient by a {kind} is not that by a matrix")
    size = min(at_once or len(names), len(names))
    groups = [names[k : k + size] for k in range(0, len(names), size)]
    work = sum(parameter.numel() for parameter in model.parameters()) * len(batches)
    shown = is_shown(progressbar, work)
    found: dict[str, WeightGradient] = {}
    total = len(groups) * len(batches) + len(names)
    with tqdm(total=total, desc="first gradients", disable=not shown) as bar, _undisturbed(model):
        for group in groups:
            dense = _accumulated(model, batches, group, loss or _model_loss, bar.update)
            for name in group:
                found[name] = _leading(name, dense.pop(name), kept, generator)
                bar.update()
    return found


def _accumulated(
    model: nn.Module,
    batches: Sequence[Any],
    names: Sequence[str],
    loss: Loss,
    done: Callable[[], object],
) -> dict[str, Tensor]:
    """Dense gradients in float32, (out_features, in_features) each."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(_watch(name, found), with_kwargs=True)
        for name in names
    ]
    try:
        for batch in batches:
            value = loss(model, _on(batch, model))
            if not value.requires_grad:
                raise ValueError(
                    f"the loss does not depend on {names[0]}: it was not called, or loss= detaches"
                )
            value.backward()  # type: ignore[no-untyped-call]
            done()
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"no gradient reached {missing[0]}: no batch calls it; leave it out")
    return found


def _watch(name: str, found: dict[str, Tensor]) -> Callable[..., Tensor]:
    """A forward hook that adds to the gradient when the backward pass comes by."""

    def hook(module: nn.Module, args: Any, kwargs: Any, y: Tensor) -> Tensor:
        x = (args[0] if args else next(iter(kwargs.values()))).detach()
        if not y.requires_grad:
            y = y + torch.zeros((), dtype=y.dtype, device=y.device, requires_grad=True)

        def add(grad: Tensor) -> None:
            product = grad.flatten(0, -2).float().mT @ x.flatten(0, -2).float()
            found[name] = found[name] + product if name in found else product

        y.register_hook(add)  # type: ignore[no-untyped-call]
        return y

    return hook


def _leading(
    name: str, gradient: Tensor, kept: int, generator: torch.Generator | None
) -> WeightGradient:
    gradient = gradient.double()
    if not gradient.isfinite().all():
        raise ValueError(f"the gradient by {name} is not finite; check the batches and the dtype")
    first, second = tt_svd(gradient, min(kept, *gradient.shape), rng=generator).cores
    update = LowRankUpdate(torch.as_tensor(first)[0], torch.as_tensor(second)[..., 0])
    return WeightGradient(update, float(gradient.square().sum()))


def _model_loss(model: nn.Module, batch: Any) -> Tensor:
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
def _undisturbed(model: nn.Module) -> Iterator[None]:
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
