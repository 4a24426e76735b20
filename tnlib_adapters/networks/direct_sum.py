"""The sum of networks of one form, exactly: their cores as blocks of larger ones.

A leg that joins cores becomes as long as the legs of all terms together, and every core has the
cores of the terms as blocks along its joining legs. That is the sum of trains, of CP and of Tucker
decompositions alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tnlib_adapters.networks.network import Network


def joining_legs(network: Network) -> set[str]:
    """Legs that several cores have and that are contracted."""
    joints = Counter(leg for core in network.cores for leg in core.legs)
    kept = {*network.out_legs, *network.in_legs, *network.fixed_indices}
    return {leg for leg, n in joints.items() if n > 1} - kept


def can_hold(total: Network, terms: Sequence[Network]) -> bool:
    """Whether a network has the form of the sum of others."""
    if any([c.legs for c in term.cores] != [c.legs for c in total.cores] for term in terms):
        return False
    if any(term.anchored for term in terms):
        return False
    joining = joining_legs(total)
    for leg, size in total.sizes.items():
        sizes = [term.sizes[leg] for term in terms]
        fits = size == sum(sizes) if leg in joining else {*sizes} == {size}
        if not fits:
            return False
    return True


def direct_sum(
    total: Network,
    terms: Sequence[Network],
    values: Sequence[Mapping[str, Tensor]],
    factors: Sequence[float],
    carrier: str,
) -> dict[str, Tensor]:
    """Cores of `total` by key, which then is the sum of the terms times their factors.

    Parameters
    ----------
    total : Network
        Of the form of the sum, see :func:`can_hold`.
    terms : sequence of Network
        The summands; scales are left out.
    values : sequence of mapping of str to Tensor
        Their cores by key; a core that is missing is zero.
    factors : sequence of float
        By which they are multiplied.
    carrier : str
        Name of the core that is multiplied.
    """
    joining = joining_legs(total)
    starts = dict.fromkeys(joining, 0)
    some = next(value for own in values for value in own.values())
    found = {
        key: torch.zeros(shape, dtype=torch.float64, device=some.device)
        for key, shape in total.shapes.items()
    }
    for term, own, factor in zip(terms, values, factors, strict=True):
        for core, mine in zip(total.cores, term.cores, strict=True):
            if mine.key not in own:
                continue
            block = tuple(
                slice(starts[leg], starts[leg] + term.sizes[leg]) if leg in joining else slice(None)
                for leg in core.legs
            )
            value = own[mine.key].double()
            found[core.key][block] += value * factor if core.name == carrier else value
        for leg in joining:
            starts[leg] += term.sizes[leg]
    return found
