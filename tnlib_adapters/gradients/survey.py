"""How much of the first gradients of a model and its data each method can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from tnlib.common.table import aligned
from tnlib_adapters.gradients.fits import check_fitted, fitted, held_energy
from tnlib_adapters.gradients.passes import Loss
from tnlib_adapters.gradients.weight_gradients import WeightGradient, found_gradients
from tnlib_adapters.networks.expert_network import expert_by_expert
from tnlib_adapters.parameter_count import Count, counted, targeted
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.declarations import declared


@dataclass(frozen=True)
class SurveyRow:
    """One method in a survey.

    Attributes
    ----------
    name : str
        What it was called.
    parameters : int
        Trained parameters of its cores.
    held : float
        Which part of the energy of its weights' gradients its network holds.

    Examples
    --------
    >>> SurveyRow("LoTR", parameters=46_080, held=0.87).parameters
    46080
    """

    name: str
    parameters: int
    held: float


@dataclass(frozen=True)
class GradientSurvey:
    """How much of the first gradients methods hold; printing it shows a table.

    Attributes
    ----------
    rows : tuple of SurveyRow
        One a method, in the order given.

    Examples
    --------
    >>> print(GradientSurvey((SurveyRow("LoRA", 57_600, 0.89), SurveyRow("LoTR", 46_080, 0.87))))
    method  parameters  of the gradients
    LoRA    57,600      89.0%
    LoTR    46,080      87.0%
    """

    rows: tuple[SurveyRow, ...]

    def __str__(self) -> str:
        """The rows as a table."""
        lines = [(row.name, f"{row.parameters:,}", f"{row.held:.1%}") for row in self.rows]
        return aligned([("method", "parameters", "of the gradients"), *lines])


def gradient_survey(
    model: nn.Module,
    batches: Iterable[Any] | Mapping[str, WeightGradient],
    configs: Mapping[str, NetworkConfig | LoraConfig],
    *,
    loss: Loss | None = None,
    at_once: int | None = None,
    generator: torch.Generator | None = None,
    progressbar: bool | None = None,
) -> GradientSurvey:
    """How much of the gradients of a few batches every method can hold.

    Nothing is trained. The gradients are decomposed in the format of each method, which tells the
    part of their energy that its network can have: which size of a method is enough, and whether
    the weights have in common what it shares. From its start a network can follow less, see
    :func:`start_from_gradients`.

    Parameters
    ----------
    model : torch.nn.Module
        A model without adapters.
    batches : sequence, or mapping of str to WeightGradient
        A few batches as for training; or what :func:`weight_gradients` found of them. Of every
        gradient 64 directions are kept, or twice the size of the largest method.
    configs : mapping of str to NetworkConfig or peft.LoraConfig
        The methods by a name for the table.
    loss, at_once, progressbar
        See :func:`weight_gradients`.
    generator : torch.Generator, optional
        Randomness of the decompositions, by default seeded with 0.

    Raises
    ------
    TypeError
        If a method is no update of weights or does not say how it is fitted.
    ValueError
        As :func:`weight_gradients` does.

    Examples
    --------
    >>> from peft import LoraConfig
    >>> from tnlib_adapters import LoTRConfig
    >>> model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    >>> loss = lambda model, batch: model(batch).square().sum()
    >>> methods = {"LoRA": LoraConfig(r=2, target_modules=["0", "2"])}
    >>> methods |= {"LoTR": LoTRConfig(r=2, target_modules=["0", "2"])}
    >>> found = gradient_survey(model, [torch.eye(16)], methods, loss=loss)
    >>> [(row.name, row.parameters) for row in found.rows]
    [('LoRA', 128), ('LoTR', 72)]
    """
    if not configs:
        raise ValueError("configs is empty; give the methods by a name for the table")
    model = getattr(model, "_orig_mod", model)  # as it was before torch.compile
    drawn = generator or torch.Generator().manual_seed(0)
    cases: dict[str, tuple[Any, Count, dict[str, Any]]] = {}
    for name, given in configs.items():
        config, sites = targeted(model, given)
        networks: dict[str, Any] = {path: declared(config, site) for path, site in sites.items()}
        check_fitted(config, networks)
        if config.experts is not None:
            raise ValueError(f"{name}: experts= cannot be surveyed; leave it out to survey all")
        cases[name] = config, counted(model, config, sites), networks
    weights = dict.fromkeys(path for _, _, networks in cases.values() for path in networks)
    gradients = found_gradients(
        model,
        batches,
        weights,
        [getattr(config, config.size_field, None) for config, _, _ in cases.values()],
        loss=loss,
        at_once=at_once,
        generator=drawn,
        progressbar=progressbar,
    )
    rows = []
    for name, (config, size, networks) in cases.items():
        fit = config.fit_updates or config.fit_gradients
        networks = expert_by_expert(networks)
        cores = fitted(fit, networks, gradients, drawn, show=bool(progressbar))
        rows.append(SurveyRow(name, size.adapter, held_energy(networks, cores, gradients)))
    return GradientSurvey(tuple(rows))
