"""Gradients of the loss by the weights of a model, by their leading singular directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tnlib import tt_svd
from tnlib_adapters.base_model.expert_parameters import expert_parameters
from tnlib_adapters.base_model.linear_modules import features
from tnlib_adapters.checks import positive_int
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.gradients.passes import Loss, accumulated, undisturbed
from tnlib_adapters.progress import is_shown

# Singular directions that are kept of every gradient.
KEPT = 64


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
        What the model is called with: mappings, moved to its device. A few are enough, and all
        that are given are used: of a loader give ``itertools.islice(loader, 4)``.
    modules : sequence of str
        Names of linear layers in `model`, and of weights of experts as :func:`find_expert_sites`
        has them. The gradient by one that no batch calls is zero.
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

    Returns
    -------
    dict of str to WeightGradient
        By name; of a weight of experts by ``name[0]``, ``name[1]`` and so on.

    Raises
    ------
    TypeError
        If a module is not a linear layer, or a batch is no mapping and there is no `loss`.
    ValueError
        If there is no batch, no loss, a loss or a gradient that is not finite, or an input of a
        layer that was changed in place after its call.

    Notes
    -----
    In float16 small gradients would be lost: there the loss is multiplied by a large number for the
    backward pass, and the gradients are divided by it.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> loss = lambda model, batch: model(batch).square().sum()
    >>> found = weight_gradients(model, [torch.ones(5, 4)], ["0", "2"], loss=loss)
    >>> {name: gradient.leading.shape for name, gradient in found.items()}
    {'0': (3, 4), '2': (2, 3)}
    """
    names = [*dict.fromkeys(modules)]
    batches = _checked(model, batches, names)
    positive_int("kept", kept)
    size = len(names)
    if at_once is not None:
        positive_int("at_once", at_once)
        size = min(at_once, size)
    groups = [names[k : k + size] for k in range(0, len(names), size)]
    work = sum(parameter.numel() for parameter in model.parameters()) * len(batches)
    shown = is_shown(progressbar, work)
    found: dict[str, WeightGradient] = {}
    total = len(groups) * len(batches) + len(names)
    with tqdm(total=total, desc="first gradients", disable=not shown) as bar, undisturbed(model):
        for group in groups:
            dense = accumulated(model, batches, group, loss, bar.update)
            for name in group:
                gradient = dense.pop(name)
                single = {name: gradient}
                if gradient.ndim == 3:
                    single = {f"{name}[{e}]": part for e, part in enumerate(gradient)}
                for key, part in single.items():
                    found[key] = _leading(key, part, kept, generator)
                bar.update()
    return found


def found_gradients(
    model: nn.Module,
    batches: Iterable[Any] | Mapping[str, WeightGradient],
    modules: Iterable[str],
    sizes: Iterable[object],
    **options: Any,
) -> dict[str, WeightGradient]:
    """The gradients by some weights, of batches or as they were found before.

    `sizes` are those of the networks: as many directions are kept as they can use.
    """
    names = [*modules]
    if not isinstance(batches, Mapping):
        largest = max((size for size in sizes if isinstance(size, int)), default=0)
        return weight_gradients(model, batches, names, kept=max(KEPT, 2 * largest), **options)
    if not all(isinstance(value, WeightGradient) for value in batches.values()):
        raise TypeError(
            f"batches is one batch, with {', '.join(map(str, [*batches][:4]))}; give a list of "
            "batches, or what weight_gradients found"
        )
    own = {n: [k for k in batches if k == n or k.startswith(f"{n}[")] for n in names}
    missing = [name for name, keys in own.items() if not keys]
    if missing:
        raise ValueError(f"there is no gradient for {missing[0]}; there are {sorted(batches)[:4]}")
    return {key: batches[key] for keys in own.values() for key in keys}


def _checked(model: nn.Module, batches: Iterable[Any], names: Sequence[str]) -> list[Any]:
    """The batches, after a look at what is asked for."""
    if torch.is_inference_mode_enabled():
        raise ValueError("there are no gradients inside torch.inference_mode(); leave it first")
    if not names:
        raise ValueError("modules is empty; names of linear layers are needed")
    experts = expert_parameters(model)
    for name in names:
        if name in experts:
            continue
        module = model.get_submodule(name)
        if features(module) is None:
            kind = type(module).__name__
            raise TypeError(f"{name}: the gradient by a {kind} is not that by a matrix")
    found = [*batches]
    if not found:
        raise ValueError("batches is empty; a few batches as for training are needed")
    return found


def _leading(
    name: str, gradient: Tensor, kept: int, generator: torch.Generator | None
) -> WeightGradient:
    gradient = gradient.double()
    if not gradient.isfinite().all():
        raise ValueError(f"the gradient by {name} is not finite; check the batches and the dtype")
    first, second = tt_svd(gradient, min(kept, *gradient.shape), rng=generator).cores
    update = LowRankUpdate(torch.as_tensor(first)[0], torch.as_tensor(second)[..., 0])
    return WeightGradient(update, float(gradient.square().sum()))
