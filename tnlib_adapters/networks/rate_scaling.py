"""Multipliers of cores, with which LoRA's learning rate is right for every network.

An optimizer such as Adam moves every stored value by about the learning rate, whatever its gradient
is. How far that moves the update of the weight depends on the network. So a core is stored divided
by a multiplier, and one step of the rate then moves the update as far as it moves LoRA's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tnlib_adapters.networks.core import Core, Cores
from tnlib_adapters.networks.declaration_kinds import Declaration
from tnlib_adapters.networks.initializers import deviation
from tnlib_adapters.networks.network import Network

# The reference: PEFT's LoRA of this rank and alpha, whose A is uniform of this variance / d_in.
REFERENCE_RANK, REFERENCE_ALPHA, REFERENCE_VARIANCE = 8, 16.0, 1 / 3


@dataclass(frozen=True)
class Product:
    """Networks one after another: a map whose cores are scaled together.

    Attributes
    ----------
    networks : tuple of Network
        From the input to the output.
    gain : float
        Factor of the map beside those of the networks.
    """

    networks: tuple[Network, ...]
    gain: float = 1.0


def reference_start(width: int) -> float:
    """Deviation of the entries of LoRA's A for an input of `width` features."""
    return math.sqrt(REFERENCE_VARIANCE / width)


def reference_step(width: int) -> float:
    """Root mean square of the change of LoRA's update by a first step, per unit of the rate."""
    return REFERENCE_ALPHA / math.sqrt(REFERENCE_RANK) * reference_start(width)


def step_sizes(product: Product, deviations: Mapping[str, float]) -> dict[str, float]:
    """Root mean square of the change of the map by a step of size one through a core, by key.

    Parameters
    ----------
    product : Product
        The map.
    deviations : mapping of str to float
        Root mean square of the entries of every core; cores of zeros count as one, as after they
        have moved.

    Notes
    -----
    An entry of the map is a sum of products, one entry of every core in each. Where the cores are
    independent and of mean zero the products are uncorrelated, so the mean square of the sum is the
    number of products times that of one.
    """
    terms, gain = 1, product.gain
    for network in product.networks:
        closed = {leg for core in network.cores for leg in core.legs}
        closed -= {*network.out_legs, *network.in_legs, *network.fixed_indices}
        terms *= math.prod(network.sizes[leg] for leg in closed)
        gain *= network.scale
    # Where one network ends and the next begins.
    terms *= math.prod(network.out_features for network in product.networks[:-1])
    cores = [core for network in product.networks for core in network.cores]
    whole = abs(gain) * math.sqrt(terms) * math.prod(deviations[core.key] or 1 for core in cores)
    return {core.key: whole / (deviations[core.key] or 1) for core in cores}


def declared_deviations(cores: Sequence[Core]) -> dict[str, float]:
    """Root mean square of the entries of every core at its start, by key."""
    return {core.key: deviation(core.initializer) for core in cores}


def multipliers(
    product: Product, deviations: Mapping[str, float], strength: float = 1.0
) -> dict[str, float]:
    """The multiplier of every trained core, by key: powers of two.

    Parameters
    ----------
    product : Product
        The map.
    deviations : mapping of str to float
        Root mean square of the entries of every core at its start.
    strength : float
        How many times as far as LoRA's a step is to move the update.

    Notes
    -----
    LoRA has two cores. The one of zeros makes the first step, the other changes by a certain part
    of its size in every step. Of K cores each of the K - 1 others changes by 1 / (K - 1) of that
    part, so that all of them together change their product as much. The core of zeros makes steps
    sqrt(K - 1) times as long, so that the change through it and one other at a time, which is what
    later steps consist of, sums to LoRA's. Where no core is zero, each makes steps sqrt(2) times as
    long, which was measured.
    """
    cores = [core for network in product.networks for core in network.cores if not core.frozen]
    width = product.networks[0].in_features
    target, start = strength * reference_step(width), reference_start(width)
    sizes = step_sizes(product, deviations)
    first = [core.key for core in cores if deviations[core.key] == 0]
    others = len(cores) - len(first)
    found = {}
    for core in cores:
        key = core.key
        if sizes[key] == 0:
            exact = 1.0
        elif key in first:
            exact = target / sizes[key] * math.sqrt(max(others, 1) / len(first))
        elif first:
            exact = deviations[key] / start / others
        else:
            exact = target / sizes[key] * math.sqrt(2)
        found[key] = power_of_two(exact)
    return found


def power_of_two(exact: float) -> float:
    """The nearest one; what lies between two is not to depend on the last bit."""
    return 2.0 ** math.floor(math.log2(exact) + 0.5 + 1e-9)


def products(declaration: Declaration) -> list[Product]:
    """The maps of a declaration, for each its networks."""
    networks = tuple(network for _, network in declaration.networks)
    if declaration.gain_in_series is None:
        return [Product((network,)) for network in networks]
    return [Product(networks, declaration.gain_in_series)]


def declared_multipliers(declaration: Declaration, strength: float = 1.0) -> dict[str, float]:
    """The multipliers of a declaration's cores by key, for cores that start as it says.

    A core that several maps use has the multiplier of the first. A step of a bias moves what the
    layer gives by the rate.

    Examples
    --------
    >>> from tnlib_adapters import LoTRConfig, Site
    >>> declared_multipliers(LoTRConfig(r=8).network(Site("query", 768, 768)))
    {'u_768x768': 1.0, 'g': 128.0, 'v_768x768': 1.0}
    """
    found: dict[str, float] = {}
    for product in products(declaration):
        cores = [core for network in product.networks for core in network.cores]
        found = multipliers(product, declared_deviations(cores), strength) | found
    biases = declaration.bias_gains().items()
    return found | {key: power_of_two(strength / gain) for key, gain in biases}


def started_multipliers(network: Network, values: Cores, strength: float = 1.0) -> dict[str, float]:
    """The multipliers of a network's cores by key, for cores that start at `values`."""
    deviations = {
        key: float(torch.linalg.vector_norm(value)) / math.sqrt(value.numel())
        for key, value in values.items()
    }
    return multipliers(Product((network,)), deviations, strength)


def gain(declaration: Declaration) -> float:
    """The factor of what a declaration adds, the first part's where there are several."""
    product = products(declaration)[0]
    return product.gain * math.prod(network.scale for network in product.networks)
