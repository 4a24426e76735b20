"""What ``tnlib survey`` asks of this package: how much of an update each method can hold.

Every method is fitted to the leading directions of the update of every weight, at a few sizes; what
is beyond them counts as lost. The functions are registered as entry points of the group
``tnlib.update_methods``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tnlib.surveys.inventory import Matrix
from tnlib.surveys.update_methods import MethodPoint, Update
from tnlib_adapters.base_model.expert_parameters import find_expert_sites
from tnlib_adapters.base_model.sites import Site, find_sites, position
from tnlib_adapters.convert.checkpoint_names import names_in_checkpoint
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.gradients.fits import fitted, held_energy
from tnlib_adapters.gradients.weight_gradients import WeightGradient
from tnlib_adapters.methods import METHODS
from tnlib_adapters.methods.lora import CountedLoRA
from tnlib_adapters.networks.expert_network import expert_by_expert
from tnlib_adapters.networks.facts import total_parameters
from tnlib_adapters.networks.rate_scaling import declared_multipliers
from tnlib_adapters.parameter_count import skeleton
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.peft_plugin.declarations import declared

_BYTES = 4


def methods() -> dict[str, Callable[[Update], Iterator[MethodPoint]]]:
    """LoRA and the methods of this package, by the names of their configurations."""
    kinds: dict[str, Any] = {"LoRA": CountedLoRA}
    kinds |= {kind.__name__.removesuffix("Config"): kind for kind in METHODS.values()}
    return {name: _points_of(kind) for name, kind in kinds.items()}


def _points_of(kind: type[NetworkConfig]) -> Callable[[Update], Iterator[MethodPoint]]:
    def points(update: Update) -> Iterator[MethodPoint]:
        names, sites = adapted_sites(update)
        gradients = {}
        for key, (matrix, name) in names.items():
            leading = _leading(update, matrix, sites[name])
            if leading is not None:
                gradients[key] = leading
        for size in kind.survey_sizes:
            config, most = kind.for_survey(size), kind.survey_directions(size)
            found = _fitted(config, sites, gradients, most)
            yield MethodPoint(f"{kind.size_field}={size}", *found)

    return points


def _fitted(
    config: NetworkConfig,
    sites: Mapping[str, Site],
    gradients: Mapping[str, WeightGradient],
    most: int,
) -> tuple[int, int, float]:
    """Parameters and bytes of a method of one size, and the share of the energy that it holds."""
    networks: dict[str, Any] = {name: declared(config, site) for name, site in sites.items()}
    multipliers: set[tuple[str, str]] = set()
    for name, network in networks.items():
        owners = {core.key: core.group or name for core in network.cores}
        if config.rate_scaling and not isinstance(config, CountedLoRA):
            multipliers |= {(key, owners[key]) for key in declared_multipliers(network)}
    params = total_parameters(networks)
    single = expert_by_expert(networks)
    changed = {key: single[key] for key in gradients}
    fit = config.fit_updates or config.fit_gradients
    assert fit is not None
    leading = {key: _first(gradient, most) for key, gradient in gradients.items()}
    cores = fitted(fit, changed, leading, torch.Generator().manual_seed(0))
    return params, _BYTES * (params + len(multipliers)), held_energy(changed, cores, gradients)


def _first(gradient: WeightGradient, most: int) -> WeightGradient:
    """The first of the leading directions."""
    leading = gradient.leading
    return replace(gradient, leading=LowRankUpdate(leading.left[:, :most], leading.right[:most]))


def _leading(update: Update, matrix: Matrix, site: Site) -> WeightGradient | None:
    """The leading part of an update, its rows those of the layer's output."""
    factors = update.factors(matrix.name)
    if factors is None:
        return None
    left, right = (torch.from_numpy(factor).double() for factor in factors)
    if matrix.shape != (site.out_features, site.in_features):
        left, right = right.mT, left.mT
    return WeightGradient(LowRankUpdate(left, right), update.energies[matrix.name])


def adapted_sites(
    update: Update,
) -> tuple[dict[str, tuple[Matrix, str]], dict[str, Site]]:
    """The matrices of linear layers and experts with the names of their sites, and the sites.

    Of a folder with a configuration the model says what its layers are; of anything else names and
    shapes do.
    """
    own = _sites_by_name(update.matrices)
    known = _sites_of_model(update)
    names: dict[str, tuple[Matrix, str]] = {}
    sites: dict[str, Site] = {}
    for matrix in update.matrices:
        name = matrix.tensor.removesuffix(".weight")
        module = known[0].get(matrix.tensor) if known else name
        site = (known[1] if known else own).get(module or "")
        if known and site is None and matrix.expert is not None:
            module, site = name, own[name]  # experts one by one, which the model has in one tensor
        if site is None or {*matrix.shape} != {site.out_features, site.in_features}:
            continue
        assert module is not None
        key = f"{module}[{matrix.index}]" if site.experts else module
        names[key] = matrix, module
        sites[module] = site
    if not names:
        raise ValueError("no matrix that changed is the weight of a linear layer of the base model")
    return names, sites


def _sites_of_model(update: Update) -> tuple[dict[str, str], dict[str, Site]] | None:
    """Names of modules by those of tensors in the checkpoint, and the sites of the model."""
    if update.folder is None or not (update.folder / "config.json").is_file():
        return None
    model = skeleton(update.folder)
    tensors = [matrix.tensor for matrix in update.matrices]
    found, _ = names_in_checkpoint(model, dict(model.named_parameters()), tensors)
    modules = {stored: name.removesuffix(".weight") for name, stored in found.items()}
    return modules, find_sites(model) | find_expert_sites(model)


def _sites_by_name(matrices: Sequence[Matrix]) -> dict[str, Site]:
    """Sites of which names and shapes are all that is known."""
    first: dict[str, Matrix] = {}
    for matrix in matrices:
        first.setdefault(matrix.tensor.removesuffix(".weight"), matrix)
    members: dict[str, int] = {}
    for matrix in matrices:
        name = matrix.tensor.removesuffix(".weight")
        if matrix.index is not None:
            members[name] = max(members.get(name, 0), matrix.index + 1)
    layers = sorted({matrix.layer for matrix in matrices if matrix.layer is not None})
    kinds: dict[tuple[int, ...], list[str]] = {}
    sites: dict[str, Site] = {}
    for name, matrix in first.items():
        container, _, path = position(name)
        same = kinds.setdefault((members.get(name, 0), *sorted(matrix.shape)), [])
        if path not in same:
            same.append(path)
        layer = layers.index(matrix.layer) if matrix.layer is not None else 0
        rows, columns = matrix.shape
        sites[name] = Site(
            name,
            rows,
            columns,
            path=path,
            container=container,
            layer=layer,
            depth=len(layers),
            matrix=same.index(path),
            experts=members.get(name, 0),
        )
    return {
        name: replace(site, n_matrices=len(kinds[(site.experts, *sorted(first[name].shape))]))
        for name, site in sites.items()
    }
