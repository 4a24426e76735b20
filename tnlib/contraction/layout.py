"""How one step becomes a matrix product.

The indices of two factors fall into four groups: those of both that stay (a batch), those of both
that are summed, and those of one alone. A product is then a (batched) matrix product of two
reshaped arrays; where the indices of a group do not lie together, the array is copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tnlib.contraction.network import Network
from tnlib.contraction.tree import Step

# Indices of a batch, of rows, and of columns.
Groups = tuple[str, str, str]


def ordered(network: Network, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps with every result's indices in the order in which its product leaves them.

    Only the last result's order is the caller's.
    """
    terms = list(network.terms)
    done: list[Step] = []
    for step in steps:
        taken = tuple(terms[n] for n in step.inputs)
        result = step.result
        if len(taken) == 2 and len(done) < len(steps) - 1:
            batch, rows, columns, _ = groups(*taken, result)
            made = dict.fromkeys(batch + rows + columns)
            result = "".join(index for index in made if index in result)
        done.append(Step(step.inputs, taken, result))
        terms.append(result)
    return tuple(done)


def groups(left: str, right: str, result: str) -> tuple[str, str, str, str]:
    """Indices of a batch, of the left and of the right factor alone, and summed ones."""
    kept = set(result)
    batch = "".join(index for index in left if index in right and index in kept)
    summed = "".join(index for index in left if index in right and index not in kept)
    only_left = "".join(index for index in left if index not in right)
    only_right = "".join(index for index in right if index not in left)
    return batch, only_left, only_right, summed


@dataclass(frozen=True)
class Layout:
    """How one product is done as a matrix product.

    Attributes
    ----------
    left, right : str
        The indices of the factors without those of size one, and after each factor's own sums.
    batch, rows, columns, summed : str
        The four groups; summed indices in the order of the larger factor, which then needs no
        copy.
    """

    left: str
    right: str
    batch: str
    rows: str
    columns: str
    summed: str

    @classmethod
    def of(cls, step: Step, sizes: Mapping[str, int]) -> Layout:
        """The layout of a step with two factors."""
        first, second = step.terms
        left = _essential(first, second + step.result, sizes)
        right = _essential(second, first + step.result, sizes)
        batch, rows, columns, summed = groups(left, right, step.result)
        if volume(columns, sizes) > volume(rows, sizes):
            summed = "".join(index for index in right if index in summed)
        return cls(left, right, batch, rows, columns, summed)

    @property
    def sides(self) -> tuple[tuple[str, Groups], tuple[str, Groups]]:
        """Each factor's indices and the groups that it is brought into."""
        return (
            (self.left, (self.batch, self.rows, self.summed)),
            (self.right, (self.batch, self.summed, self.columns)),
        )

    @property
    def made(self) -> Groups:
        """The groups of the product."""
        return (self.batch, self.rows, self.columns)


def _essential(term: str, others: str, sizes: Mapping[str, int]) -> str:
    """The indices of a factor that are more than one value and that something else has."""
    return "".join(i for i in dict.fromkeys(term) if sizes[i] != 1 and i in others)


def copies(step: Step, sizes: Mapping[str, int]) -> int:
    """Values that a product of two contiguous arrays copies to bring them into groups."""
    sides = Layout.of(step, sizes).sides
    return sum(volume(term, sizes) for term, wanted in sides if not _is_view(term, wanted))


def _is_view(term: str, wanted: Groups) -> bool:
    """Whether the groups can be had of a contiguous array without a copy."""
    inner_batch = wanted[0] and term[-1] in wanted[0]
    return all(group in term for group in wanted) and not inner_batch


def volume(group: str, sizes: Mapping[str, int]) -> int:
    """Number of values over some indices."""
    return math.prod(sizes[index] for index in group)
