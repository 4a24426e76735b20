"""How rows of activations, each of one expert, go through a network: a chain of products.

The cores are gathered into a few factors, from the input to the output, each contracted once for
all rows. A factor without the leg of the experts is one matrix for every row; others are one matrix
or one row of scales an expert. So the update of all experts is never formed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import opt_einsum
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tnlib_adapters.execution.expert_products import Routing, expert_product, expert_scaling
from tnlib_adapters.execution.planned_einsum import PlannedEinsum, planned_einsum
from tnlib_adapters.networks.network import Network

Legs = tuple[str, ...]


@dataclass(frozen=True)
class Factor:
    """Cores that are contracted, and then with the rows.

    Attributes
    ----------
    cores : tuple of int
        Numbers of the cores.
    contraction : PlannedEinsum
        What makes an array of them with its legs in order: the experts', joined, new.
    of_expert : bool
        Whether every expert has its own.
    order : tuple of int
        How the legs that the rows have are permuted before: kept ones, then joined.
    joined, new : int
        Sizes of what is contracted, and of what comes in its place; without a new leg that joins on
        the output side, 0: the rows are scaled.
    """

    cores: tuple[int, ...]
    contraction: PlannedEinsum
    of_expert: bool
    order: tuple[int, ...]
    joined: int
    new: int

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """The factor: ([experts,] joined, new), or ([experts,] joined) of scales."""
        made = self.contraction([values[k] for k in self.cores])
        front = made.shape[:1] if self.of_expert else ()
        return made.reshape(*front, self.joined, *([self.new] if self.new else []))


@dataclass(frozen=True)
class Chain:
    """Factors from the input to the output.

    Attributes
    ----------
    factors : tuple of Factor
        In order.
    sizes : tuple of tuple of int
        Sizes of the legs that the rows have before every factor, and at the end.
    order : tuple of int
        How these last ones are permuted.
    """

    factors: tuple[Factor, ...]
    sizes: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]

    @property
    def recomputed(self) -> bool:
        """Whether rows get wider on the way than at both ends, so that they are not kept."""
        widths = [math.prod(sizes) for sizes in self.sizes]
        return max(widths) > max(widths[0], widths[-1])

    def apply(
        self, x: Tensor, values: Sequence[Tensor], routing: Routing, source: Tensor | None
    ) -> Tensor:
        """Rows through the chain.

        Parameters
        ----------
        x : Tensor, shape (n, in)
            Activations, in the dtype of the values.
        values : sequence of Tensor
            The cores; those with a leg of the experts have it first.
        routing : Routing
            Expert of every row.
        source : Tensor of int64, shape (rows,), optional
            Which activations every row is; by default they are the rows. Factors that all experts
            share are applied before rows are made of them.
        """
        again = self.recomputed and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not again:
            return self._applied(x, values, routing, source)
        result: Tensor = checkpoint(
            self._applied, x, values, routing, source, use_reentrant=False, preserve_rng_state=False
        )
        return result

    def _applied(
        self, x: Tensor, values: Sequence[Tensor], routing: Routing, source: Tensor | None
    ) -> Tensor:
        for factor, sizes in zip(self.factors, self.sizes, strict=False):
            if factor.of_expert and source is not None:
                x, source = x.index_select(0, source), None
            value = factor.value(values)
            x = x.reshape(len(x), *sizes).permute(0, *(k + 1 for k in factor.order))
            kept = math.prod(sizes) // factor.joined
            rows = x.reshape(len(x), kept, factor.joined)
            if factor.new == 0:
                x = expert_scaling(rows, value, routing) if factor.of_expert else rows * value
            elif factor.of_expert:
                flat = rows.reshape(len(x) * kept, factor.joined)
                x = expert_product(flat, value.contiguous(), routing.repeated(kept))
            else:
                x = rows @ value
            x = x.reshape(len(rows), kept * (factor.new or factor.joined))
        if source is not None:
            x = x.index_select(0, source)
        shaped = x.reshape(len(x), *self.sizes[-1]).permute(0, *(k + 1 for k in self.order))
        return shaped.reshape(len(x), math.prod(self.sizes[-1]))


def chain_of(network: Network, expert: str) -> Chain | None:
    """A chain for a network whose cores may have a leg `expert`; None where there is none."""
    for groups in _candidates(network, expert):
        made = _chain(network, expert, groups)
        if made is not None:
            return made
    return None


def _candidates(network: Network, expert: str) -> list[list[tuple[int, ...]]]:
    """Ways to gather the cores, the best first.

    Cores with open legs of one side only are a factor of that side. Of the others those of experts
    are one in the middle, or join a side where they cannot; what is left joins the side where the
    legs that are passed on are smallest. Where a core has both kinds of legs, every core is one.
    """
    numbers = range(len(network.cores))
    legs = [set(core.legs) for core in network.cores]
    inner = [k for k in numbers if legs[k] & set(network.in_legs)]
    outer = [k for k in numbers if legs[k] & set(network.out_legs)]
    if set(inner) & set(outer):
        return [[(k,) for k in numbers]]
    free = [k for k in numbers if k not in {*inner, *outer}]
    middle = [k for k in free if expert in legs[k]]
    others = [k for k in free if k not in middle]

    def passed(members: Sequence[int]) -> int:
        ours = set().union(*(legs[k] for k in members))
        theirs = set().union(*(legs[k] for k in numbers if k not in members))
        crossing = (ours & theirs) - {expert, *network.fixed_indices}
        return math.prod(network.sizes[leg] for leg in crossing)

    picks = [
        ([k for k, side in zip(others, sides, strict=True) if side], sides)
        for sides in itertools.product((False, True), repeat=len(others))
    ]
    best = min(picks, key=lambda pick: passed([*inner, *pick[0]]))[0]
    first = (*inner, *best)
    last = (*outer, *(k for k in others if k not in best))
    ways = [[first, tuple(middle), last]] if middle else []
    return [*ways, [first, (*middle, *last)], [(*first, *middle), last]]


def _chain(network: Network, expert: str, groups: list[tuple[int, ...]]) -> Chain | None:
    """The chain of factors gathered so; None where one joins legs that others need too."""
    fixed = set(network.fixed_indices) - {expert}
    legs = [tuple(leg for leg in core.legs if leg not in fixed) for core in network.cores]
    symbol = {leg: opt_einsum.get_symbol(k) for k, leg in enumerate(network.sizes)}
    running: Legs = network.in_legs
    factors, sizes = [], []
    for number, members in enumerate(groups):
        own = set().union(*(legs[k] for k in members)) - {expert}
        later = set().union(*(legs[k] for group in groups[number + 1 :] for k in group))
        later |= set(network.out_legs)
        joined = tuple(leg for leg in running if leg in own)
        kept = tuple(leg for leg in running if leg not in own)
        needed = tuple(leg for leg in joined if leg in later)
        new = tuple(leg for leg in network.sizes if leg in own & later and leg not in running)
        if needed and (new or needed != joined):
            return None
        of_expert = any(expert in legs[k] for k in members)
        # Legs of one core that nothing joins are of size one, and summed.
        terms = ",".join("".join(symbol[leg] for leg in legs[k]) for k in members)
        result = [expert] * of_expert + [*joined, *new]
        equation = f"{terms}->{''.join(symbol[leg] for leg in result)}"
        shapes = [tuple(network.sizes[leg] for leg in legs[k]) for k in members]
        factors.append(
            Factor(
                tuple(members),
                planned_einsum(equation, *shapes),
                of_expert,
                tuple(running.index(leg) for leg in (*kept, *joined)),
                math.prod(network.sizes[leg] for leg in joined),
                0 if needed else math.prod(network.sizes[leg] for leg in new),
            )
        )
        sizes.append(tuple(network.sizes[leg] for leg in running))
        running = (*kept, *joined) if needed else (*kept, *new)
    sizes.append(tuple(network.sizes[leg] for leg in running))
    return Chain(
        tuple(factors), tuple(sizes), tuple(running.index(leg) for leg in network.out_legs)
    )
