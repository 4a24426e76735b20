"""Many calls with the same cores: what depends on them alone is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

from torch import nn
from tqdm.auto import tqdm

from tnlib_adapters.layers.base_layer import base_weight
from tnlib_adapters.layers.update import Update
from tnlib_adapters.progress import is_shown


class Adapted(Protocol):
    """A layer with updates: a :class:`NetworkLinear`, or a layer of the PEFT plug-in."""

    @property
    def adapted(self) -> tuple[nn.Module, list[Update]]:
        """The base layer, and the updates that apply to it."""


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """The adapted linear layers of a model by name; there may be none beside adapted experts.

    Raises
    ------
    ValueError
        If nothing is adapted.
    """
    found = {
        name: cast(Adapted, module)
        for name, module in model.named_modules()
        if isinstance(getattr(type(module), "adapted", None), property)
    }
    if not found and any(getattr(module, "of_experts", False) for module in model.modules()):
        return {}
    if not found:
        raise ValueError(
            f"this {type(model).__name__} has no adapted layers; adapt it with peft.get_peft_model "
            "and one of these methods, or with NetworkLinear"
        )
    return found


@contextmanager
def cached(model: nn.Module, *, progressbar: bool | None = None) -> Iterator[None]:
    """Fold factors and fuse weights once, for the calls without gradients in this context.

    Low-rank updates are cached as two factors, those of experts are not. Of DoTA the sum with the
    base weight is cached, one dense copy of every adapted weight in float32 or wider; over other
    bases it is the dense update. All of that is held outside the modules' state and dropped at the
    end, and earlier by ``train()``, by loading and by moving the model. Calls that record gradients
    compute as ever, and so do those after cores or weights changed in place (but for changes
    through ``.data``, and in compiled calls). Under autocast nothing is added to base weights, so
    DoTA gains little there.

    Parameters
    ----------
    model : torch.nn.Module
        With layers adapted by these methods. Active adapters count; others are used without a
        cache.
    progressbar : bool, optional
        Show progress; by default for large models only.

    Raises
    ------
    ValueError
        If the model has no adapted layers.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters import DoTAConfig, NetworkLinear, cached
    >>> layer = NetworkLinear.from_linear(torch.nn.Linear(64, 48), DoTAConfig(r=4)).eval()
    >>> with cached(layer), torch.no_grad():
    ...     layer(torch.randn(1, 64)).shape
    torch.Size([1, 48])
    """
    layers = [layer.adapted for layer in adapted_layers(model).values()]
    work = sum(base_weight(base).numel() for base, _ in layers)
    shown = is_shown(progressbar, work)
    made: list[Update] = []
    try:
        for base, updates in tqdm(layers, desc="caching", disable=not shown, unit="layer"):
            for update in updates:
                if not update.has_cached_update:
                    update.compute_cached(base)
                    made.append(update)
        yield
    finally:
        for update in made:
            update.forget()
