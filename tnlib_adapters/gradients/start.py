"""Starts from the first gradients, for every method and for PEFT's LoRA.

The first steps of training go along the gradients by the weights. A network can only follow the
part of them that its first cores leave open. So the gradients of a few batches are decomposed in
the format of the method, all weights that share cores together, and the cores around the one of
zeros start as those of the decomposition. The update still starts at exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tnlib_adapters.base_model.peft_names import chosen_adapter
from tnlib_adapters.fitting.outer_cores import centre, outer_cores
from tnlib_adapters.gradients.fits import check_fitted, fitted, held_energy
from tnlib_adapters.gradients.passes import Loss
from tnlib_adapters.gradients.weight_gradients import WeightGradient, found_gradients
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration
from tnlib_adapters.networks.expert_network import expert_by_expert, expert_keys, together
from tnlib_adapters.networks.rate_scaling import REFERENCE_VARIANCE
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.weight_layer import WeightLayer


@dataclass(frozen=True)
class GradientStart:
    """How an adapter was started from gradients.

    Attributes
    ----------
    held : float
        Which part of the energy (squared Frobenius norms) of the gradients its cores of zeros can
        hold, with the other cores as they start: 1 if a first step can be the gradient step of the
        dense weights.
    weights : tuple of str
        Names of the weights.

    Examples
    --------
    >>> GradientStart(held=0.87, weights=("layers.0.q_proj", "layers.1.q_proj")).held
    0.87
    """

    held: float
    weights: tuple[str, ...]


def start_from_gradients(
    model: peft.PeftModel,
    batches: Iterable[Any] | Mapping[str, WeightGradient],
    *,
    adapter_name: str | None = None,
    loss: Loss | None = None,
    at_once: int | None = None,
    generator: torch.Generator | None = None,
    progressbar: bool | None = None,
) -> GradientStart:
    """Let an adapter that is not trained yet start from the gradients of a few batches.

    Parameters
    ----------
    model : peft.PeftModel
        A model with an adapter of one of these methods, or with PEFT's LoRA.
    batches : sequence, or mapping of str to WeightGradient
        A few batches as for training; or what :func:`weight_gradients` found of them, by names of
        the weights in the base model. Of every gradient 64 directions are kept, or twice the size
        of the adapter. A weight without a gradient keeps its usual start.
    adapter_name : str, optional
        Which adapter, by default the active one.
    loss, at_once, progressbar
        See :func:`weight_gradients`.
    generator : torch.Generator, optional
        Randomness of the decompositions, by default seeded with 0.

    Returns
    -------
    GradientStart
        With the part of the gradients' energy that the network holds.

    Raises
    ------
    TypeError
        If the adapter is no update of weights, or its method does not say how cores are fitted.
    ValueError
        If the adapter was trained already, does not start at zero by one core of zeros, or is not
        active; and as :func:`weight_gradients` does.

    Notes
    -----
    For LoRA A gets the leading right singular vectors of each gradient, which extends the idea of
    LoRA-GA (arXiv 2407.05000) with an update that starts at zero and a base that is not changed.

    Examples
    --------
    >>> import peft
    >>> from tnlib_adapters import LoTRConfig
    >>> linear = torch.nn.Linear
    >>> base = torch.nn.Sequential(linear(16, 16), torch.nn.Tanh(), linear(16, 16))
    >>> model = peft.get_peft_model(base, LoTRConfig(r=4, target_modules=["0", "2"]))
    >>> loss = lambda model, batch: model(batch).square().sum()
    >>> found = start_from_gradients(model, [torch.eye(16)], loss=loss)
    >>> found.weights, 0 < found.held <= 1
    (('0', '2'), True)
    """
    if not isinstance(model, peft.PeftModel):
        raise TypeError(f"model must be a peft.PeftModel, got {type(model).__name__}")
    name, base = chosen_adapter(model, adapter_name), model.get_base_model()
    config = model.peft_config[name]
    drawn = generator or torch.Generator().manual_seed(0)
    layers: dict[str, Any] = {}
    for path, module in base.named_modules():
        held: Any = module.held if isinstance(module, WeightLayer) else ()
        held = module.lora_A if isinstance(module, LoraLayer) else held
        if name in held:
            layers[path] = module
    if isinstance(config, NetworkConfig):
        _check_networks(config, layers, name)
        sizes: list[object] = [getattr(config, config.size_field, None)]
    else:
        _check_lora(config, layers, name)
        sizes = [len(layer.lora_A[name].weight) for layer in layers.values()]
    if not isinstance(batches, Mapping) and name not in model.active_adapters:
        raise ValueError(
            f"adapter {name!r} is not active, {model.active_adapters} are: the gradients would be "
            f"those of another model; call model.set_adapter({name!r}) first"
        )
    gradients = found_gradients(
        base,
        batches,
        layers,
        sizes,
        loss=loss,
        at_once=at_once,
        generator=drawn,
        progressbar=progressbar,
    )
    if isinstance(config, NetworkConfig):
        return _start_networks(config, layers, name, gradients, drawn, show=bool(progressbar))
    return _start_lora(layers, name, gradients)


def _check_networks(config: NetworkConfig, layers: Mapping[str, WeightLayer], name: str) -> None:
    networks = {path: layer.stored(name).declared for path, layer in layers.items()}
    check_fitted(config, networks)
    for path, layer in layers.items():
        update = layer.stored(name)
        centres = [centre(part) for _, part in update.declared.networks]
        if None in centres:
            raise ValueError(
                f"{path}: {config.method} does not start by one core of zeros to which the others "
                'lead; for DoTA set init_weights="random", for LoRETTA init="identity"'
            )
        # An update is zero as long as its core of zeros is; nothing dense is formed to see it.
        if any(update.stored[key].any() for key in centres if key is not None):
            raise _not_zero(path)


def _check_lora(config: peft.PeftConfig, layers: Mapping[str, Any], name: str) -> None:
    linear = all(isinstance(layer.lora_A[name], nn.Linear) for layer in layers.values())
    if not layers or not linear:
        raise TypeError(
            f"{type(config).__name__} is not of tnlib_adapters and no LoRA of linear layers"
        )
    for path, layer in layers.items():
        if layer.lora_B[name].weight.any():
            raise _not_zero(path)


def _not_zero(path: str) -> ValueError:
    return ValueError(
        f"{path}: the update is not zero; it was trained, or set to start elsewhere. Start from "
        "gradients before training, with the usual init_weights"
    )


@torch.no_grad()
def _start_networks(
    config: NetworkConfig,
    layers: Mapping[str, WeightLayer],
    name: str,
    gradients: Mapping[str, WeightGradient],
    generator: torch.Generator,
    *,
    show: bool,
) -> GradientStart:
    declared: dict[str, Any] = {path: layer.stored(name).declared for path, layer in layers.items()}
    networks: dict[str, AdditiveDeclaration] = expert_by_expert(declared)
    gradients = {**gradients, **_of_chosen(layers, name, gradients)}
    assert config.fit_gradients is not None
    cores = fitted(config.fit_gradients, networks, gradients, generator, show=show)
    held = held_energy(networks, cores, gradients)
    around: dict[str, dict[str, Tensor]] = {}
    for path, network in networks.items():
        around[path] = {}
        for _, part in network.networks:
            own = outer_cores(part, {key: cores[path][key] for key in part.shapes})
            around[path] |= {key: v for key, v in own.items() if key not in around[path]}
    started: dict[str, Tensor] = {}
    for path, whole in declared.items():
        values = {**together(path, whole, around)}
        # A shared core is the same for all weights.
        shared = {core.key for core in whole.cores if core.group is not None}
        values |= {key: started.setdefault(key, values[key]) for key in shared}
        if not any(gradients[key].energy for key in expert_keys(path, whole)):
            continue
        update = layers[path].stored(name)
        update.set_initial(
            {key: value.to(torch.float64) for key, value in values.items()}, again=True
        )
    config.described = {**(config.described or {}), "start": _words(held)}
    return GradientStart(held, tuple(layers))


def _of_chosen(
    layers: Mapping[str, WeightLayer], name: str, gradients: Mapping[str, WeightGradient]
) -> dict[str, WeightGradient]:
    """Gradients by weights of experts of which some are adapted, by their numbers among those."""
    found = {}
    for path, layer in layers.items():
        chosen: Any = getattr(layer.stored(name), "chosen", None)
        for slot, expert in enumerate(chosen or ()):
            found[f"{path}[{slot}]"] = gradients[f"{path}[{expert}]"]
    return found


@torch.no_grad()
def _start_lora(
    layers: Mapping[str, Any], name: str, gradients: Mapping[str, WeightGradient]
) -> GradientStart:
    energy = sum(gradient.energy for gradient in gradients.values())
    held = 0.0
    for path, layer in layers.items():
        if not gradients[path].energy:
            continue
        a: Tensor = layer.lora_A[name].weight
        _, values, right = gradients[path].leading.svd()
        count = min(len(a), right.shape[1])
        # Rows as long as PEFT draws them.
        a[:count] = (right[:, :count].mT * math.sqrt(REFERENCE_VARIANCE)).to(a)
        held += float(values[:count].square().sum())
    return GradientStart(held / energy if energy else 0.0, tuple(layers))


def _words(held: float) -> str:
    return f"the base model, from gradients ({held:.0%} of their energy held)"
