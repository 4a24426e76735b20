"""A new adapter that is a weighted sum of others, as PEFT's ``add_weighted_adapter`` makes.

The sum is exact where the new adapter is as large as the others together: the sum of networks of
one form is a network of that form. Of another size it is the method's fit to the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.layers.stored_cores import StoredCores
from tnlib_adapters.networks.direct_sum import can_hold, direct_sum
from tnlib_adapters.networks.expert_network import expert_by_expert, expert_keys, together
from tnlib_adapters.networks.network import Network

if TYPE_CHECKING:
    from tnlib_adapters.peft_plugin.fields import MethodFields
    from tnlib_adapters.peft_plugin.weight_layer import WeightLayer

EXACT, FITTED = ("linear", "cat"), ("svd",)
# What is left of an exact sum in single precision.
_ROUNDING = 1e-5


def check_arguments(
    configs: Mapping[str, MethodFields],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str,
) -> None:
    """Raise TypeError or ValueError if adapters cannot be summed."""
    if isinstance(adapters, str) or not adapters or len(adapters) != len(weights):
        raise ValueError(
            f"adapters={adapters!r}, weights={weights!r}: give names of adapters, and one number "
            "for each"
        )
    unknown = [name for name in adapters if name not in configs]
    if unknown:
        raise ValueError(f"there is no adapter {unknown[0]!r}; there are {[*configs]}")
    if adapter_name in configs:
        raise ValueError(f"there is an adapter {adapter_name!r} already; choose another name")
    if not all(type(weight) in (int, float) for weight in weights):
        raise TypeError(f"weights must be numbers, got {weights!r}")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights must be finite numbers, got {weights!r}")
    if combination_type not in (*EXACT, *FITTED):
        raise ValueError(
            f"combination_type={combination_type!r}: these methods have "
            f"{', '.join(map(repr, (*EXACT, *FITTED)))}. For others write every adapter as a LoRA "
            "(tnlib_adapters.to_lora) and combine those with PEFT"
        )
    for name in adapters:
        config = configs[name]
        if config.rank_pattern:
            raise ValueError(
                f"adapter {name!r} has a rank_pattern, so that its weights are of several sizes, "
                "and cannot be summed; write it as a LoRA (tnlib_adapters.to_lora)"
            )
        if config.modules_to_save or config.trainable_token_indices:
            parts = config.modules_to_save or "embeddings of tokens"
            raise ValueError(
                f"adapter {name!r} trains {parts} in full beside its cores, of which there is no "
                "sum; only adapters of cores alone can be summed (LoRETTA: train_norms=False)"
            )


def summed_config(
    configs: Sequence[MethodFields],
    size: int | None,
    combination_type: str,
    adapted: Mapping[str, bool],
) -> MethodFields:
    """The configuration of the sum: of the first, on the targets of all.

    `adapted` are the names of the weights that any of them adapts, and whether they are of experts.

    Raises
    ------
    ValueError
        If a size is given for an exact sum, or the adapters are of other experts.
    """
    first = configs[0]
    exact = combination_type in EXACT
    if exact and size is not None:
        raise ValueError("svd_rank is for combination_type='svd'; an exact sum has its own size")
    sizes = [getattr(config, config.size_field) for config in configs]
    fields: dict[str, Any] = {} if exact else {first.size_field: size or max(sizes)}
    fields |= first.fields_of_sum(configs, exact=exact)
    fields |= {"alpha_pattern": None}
    if any(config.experts != first.experts for config in configs):
        raise ValueError("the adapters are of other experts; only those of the same can be summed")
    targeting = ["target_modules", "target_parameters", "exclude_modules"]
    targeting += ["layers_to_transform", "layers_pattern"]
    same = all(getattr(c, name) == getattr(first, name) for c in configs for name in targeting)
    if not same:
        fields |= dict.fromkeys(targeting)
        fields["target_modules"] = [name for name, experts in adapted.items() if not experts]
        fields["target_parameters"] = [name for name, experts in adapted.items() if experts] or None
    return replace(first, **fields)


def set_sum(
    layers: Mapping[str, WeightLayer],
    config: MethodFields,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    *,
    exact: bool,
) -> float:
    """Set the cores of a new adapter to a sum of others; the relative error of all weights.

    Raises
    ------
    TypeError
        If an adapter is no update of weights.
    ValueError
        If the sum cannot be exact.
    """
    shared: dict[str, list[float]] = {}
    if exact and all(
        _set_exact(layer, adapters, weights, adapter_name, shared) for layer in layers.values()
    ):
        return 0.0
    error = _set_fitted(layers, config, adapters, weights, adapter_name)
    if exact and error > _ROUNDING:
        raise ValueError(
            f"the sum of these adapters is no {type(config).__name__} of their sizes together "
            f"(relative error {error:.2g}), since they adapt other weights, or with other alphas, "
            "and share all cores; take combination_type='svd' with svd_rank"
        )
    return error


def _networks(update: StoredCores, *, stored: bool) -> list[Network]:
    declared: Any = update.network if stored else update.declared
    return [network for _, network in declared.networks]


def _set_exact(
    layer: WeightLayer,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    shared: dict[str, list[float]],
) -> bool:
    """Set one weight's cores to the direct sum; False if it has another form.

    `shared` has the factors of shared cores that carry some, which other weights have too.
    """
    made = layer.stored(adapter_name)
    present = [name for name in adapters if name in layer.held]
    values: dict[str, Tensor] = {}
    parts = _networks(made, stored=False)
    for number, total in enumerate(parts):
        # An adapter that this weight lacks has the form of the others, and shares cores with it.
        terms = [
            _networks(layer.stored(name if name in present else present[0]), stored=True)[number]
            for name in adapters
        ]
        if not can_hold(total, terms):
            return False
        own = [core.name for core in total.cores if core.group is None]
        carrier = own[0] if own else total.cores[0].name
        factors = [w * term.scale / total.scale for w, term in zip(weights, terms, strict=True)]
        given = [_given(layer, name) for name in adapters]
        if not own:
            # Nothing of one weight alone could be zero there, or carry another factor.
            keys = {core.key for core in total.cores}
            lacking = [g for name, g in zip(adapters, given, strict=True) if name not in present]
            known = shared.setdefault(total.cores[0].key, factors)
            if any(keys <= found.keys() for found in lacking) or known != factors:
                return False
        values |= direct_sum(total, terms, given, factors, carrier)
    made.set_initial(values, again=True)
    return True


def _given(layer: WeightLayer, name: str) -> dict[str, Tensor]:
    """The cores of an adapter; of one that this weight lacks what others share."""
    if name in layer.held:
        return {key: value.detach() for key, value in layer.stored(name).cores.items()}
    store: Any = layer._store
    if store is None or name not in store.held:
        return {}
    return {key: value.detach() for key, value in store.cores(name).named_values()}


def _set_fitted(
    layers: Mapping[str, WeightLayer],
    config: MethodFields,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
) -> float:
    fit = config.fit_updates or config.fit_gradients
    if fit is None:
        raise ValueError(
            f"{type(config).__name__} does not say how it is fitted to updates (fit_updates), so a "
            "sum of another size cannot be made"
        )
    declared = {name: layer.stored(adapter_name).declared for name, layer in layers.items()}
    single = expert_by_expert(declared)
    updates: dict[str, LowRankUpdate] = {}
    for name, layer in layers.items():
        for number, key in enumerate(expert_keys(name, declared[name])):
            updates[key] = _total(layer, adapters, weights, number)
    size = math.hypot(*(float(torch.linalg.norm(u.dense())) for u in updates.values())) or 1.0
    cores = fit(single, updates, torch.Generator().manual_seed(0))
    off = 0.0
    for name, layer in layers.items():
        values = together(name, declared[name], cores)
        layer.stored(adapter_name).set_initial(values, again=True)
        for key in expert_keys(name, declared[name]):
            made = single[key].delta({k: v.double() for k, v in cores[key].items()})
            off = math.hypot(off, float(torch.linalg.norm(made - updates[key].dense())))
    return off / size


def _total(
    layer: WeightLayer, adapters: Sequence[str], weights: Sequence[float], expert: int
) -> LowRankUpdate:
    """The sum of the updates of a weight, in exact factors where all have some."""
    lefts, rights = [], []
    for name, weight in zip(adapters, weights, strict=True):
        if name not in layer.held:
            continue
        left, right = layer.factors(name, expert)
        lefts.append(weight * left.double().cpu())
        rights.append(right.double().cpu())
    return LowRankUpdate(torch.cat(lefts, 1), torch.cat(rights))
