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
    """The steps with their factors, and the indices of their results, in the order of computation.

    Of the two orders of its factors a product takes the one whose result can be used as it is: in
    the caller's order for the last step, without a copy by the step that takes it for the others.
    """
    terms = list(network.terms)
    takers = {n: step for step in steps for n in step.inputs}
    done: list[Step] = []
    for step in steps:
        number = len(terms)
        made = Step(step.inputs, tuple(terms[n] for n in step.inputs), step.result)
        if len(step.inputs) == 2:
            both = [
                _natural(made),
                _natural(Step(made.inputs[::-1], made.terms[::-1], made.result)),
            ]
            if number in takers:
                made = max(both, key=lambda one: _usable(one.result, takers[number]))
            else:
                made = max(both, key=lambda one: one.result == step.result)
                made = Step(made.inputs, made.terms, step.result)
        done.append(made)
        terms.append(made.result)
    return tuple(done)


def _natural(step: Step) -> Step:
    """A product whose result has its indices as they come."""
    batch, rows, columns, _ = groups(step.terms[0], step.terms[1], step.result)
    made = dict.fromkeys(batch + rows + columns)
    return Step(step.inputs, step.terms, "".join(i for i in made if i in step.result))


def _usable(term: str, taker: Step) -> bool:
    """Whether `taker` sums indices at one end of an array with these indices, as a view."""
    pattern = "".join("s" if index not in taker.result else "r" for index in term)
    return "s" not in pattern.strip("s") and "r" not in pattern.strip("r")


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
