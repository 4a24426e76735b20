"""The dense update of given cores: what is formed of which values, by the cheapest form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tnlib_adapters.execution.dense_forms import Form, Full, TwoFactor
from tnlib_adapters.execution.planned_einsum import planned_einsum


@dataclass(frozen=True, eq=False)
class DenseUpdate:
    """A form, bound to the cores of which it makes the update.

    Attributes
    ----------
    form : Form
        How values become the update.
    values : tuple of Tensor
        The cores, those with a fixed index at it.
    anchor : tuple of Tensor
        Frozen initial ones, whose update is subtracted; empty without.
    scale : float
        Factor of the update.
    """

    form: Form
    values: tuple[Tensor, ...]
    anchor: tuple[Tensor, ...] = ()
    scale: float = 1.0

    def dense(self) -> Tensor:
        """The update (out_features, in_features), in the dtype of the cores; differentiable."""
        # Half precision would round away what the cores know, and the difference to the anchor.
        with torch.autocast(self.values[0].device.type, enabled=False):
            operands = self.form.operands(self.values)
            fixed = self.form.operands(self.anchor) if self.anchor else None
            return self.form.update(operands, fixed, self.scale)


@lru_cache(maxsize=4096)
def dense_form(
    terms: tuple[str, ...], rows: str, columns: str, sizes: tuple[tuple[str, int], ...]
) -> Full | TwoFactor:
    """The cheapest form for cores with these indices, and those of the update's rows and columns.

    Parameters
    ----------
    terms : tuple of str
        Indices of the cores.
    rows, columns : str
        Open indices.
    sizes : tuple of (str, int)
        Size of every index.
    """
    size = dict(sizes)
    found = [_two_factors(cut, terms, rows, columns, size) for cut in range(1, len(terms))]
    cuts = [form for form in found if form is not None]
    if cuts:
        return min(cuts, key=_flops)
    contraction = planned_einsum(f"{','.join(terms)}->{rows}{columns}", *_shapes(terms, size))
    return Full(contraction, (_volume(rows, size), _volume(columns, size)))


def _two_factors(
    cut: int, terms: Sequence[str], rows: str, columns: str, size: Mapping[str, int]
) -> TwoFactor | None:
    """The two factors of a cut, or None if it leaves the order of rows or columns."""
    left, right = ({i for term in side for i in term} for side in (terms[:cut], terms[cut:]))
    summed = "".join(sorted(left & right))
    split = []
    for legs in (rows, columns):
        first = "".join(itertools.takewhile(lambda i: i in left, legs))
        split.append((first, legs[len(first) :]))
    (r0, r1), (c0, c1) = split
    if set(summed) & set(rows + columns) or set(r1 + c1) & left:
        return None
    return TwoFactor(
        cut,
        planned_einsum(f"{','.join(terms[:cut])}->{r0}{c0}{summed}", *_shapes(terms[:cut], size)),
        planned_einsum(f"{','.join(terms[cut:])}->{summed}{r1}{c1}", *_shapes(terms[cut:], size)),
        _volume(summed, size),
        (_volume(r0, size), _volume(r1, size)),
        (_volume(c0, size), _volume(c1, size)),
    )


def _flops(form: TwoFactor) -> int:
    entries = math.prod(form.rows) * math.prod(form.columns)
    return form.left.plan.flops + form.right.plan.flops + 2 * entries * form.summed


def _shapes(terms: Sequence[str], size: Mapping[str, int]) -> list[tuple[int, ...]]:
    return [tuple(size[i] for i in term) for term in terms]


def _volume(indices: str, size: Mapping[str, int]) -> int:
    return math.prod(size[i] for i in indices)
