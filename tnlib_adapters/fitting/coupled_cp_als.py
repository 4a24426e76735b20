"""Several CP tensors that share factors, fitted to low-rank updates by alternating least squares.

A *family* is a set of updates with the same factors: block (h, w, i) of update n is

    sum_r  B[w, r] A[i, r] C_h[h, r] C_l[l_n, r] C_m[m_n, r],

for experts with a factor C_e[e_n, r] more. Families of one tensor share some factors and not
others: with grouped queries, keys and values have a C_h of their own. With all factors but one
fixed, the best one solves normal equations that are sums over the families: a Hadamard product of
Gram matrices, and on the right the updates, which enter by their own factors and are never formed.
A small multiple of the identity keeps every system regular and, pulling towards the factor before,
never lets the error rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Factors of which an update has all rows, and those of which it has one, with the legs that tell.
WHOLE = ("b", "a", "c_head")
PICKED = {"c_layer": "layer", "c_matrix": "matrix", "c_expert": "expert"}
ROLES = (*WHOLE, *PICKED)
_DAMPING = 1e-11
Values = dict[str, Tensor]


@dataclass
class Family:
    """Updates with the same factors.

    Attributes
    ----------
    keys : dict of str to str
        Key of the factor of every role that the updates have, of :data:`ROLES`.
    cut : Tensor, shape (n, heads, width, s)
        Factors on the side that is cut into heads.
    whole : Tensor, shape (n, features, s)
        Factors on the other side.
    rows : dict of str to Tensor of shape (n,)
        Which rows of the picked factors belong to the updates, by role.
    energy : float
        Squared norm of all updates.
    """

    keys: dict[str, str]
    cut: Tensor
    whole: Tensor
    rows: dict[str, Tensor]
    energy: float = field(init=False)

    def __post_init__(self) -> None:
        cut = torch.einsum("nhws,nhwt->nst", self.cut, self.cut)
        self.energy = float((cut * torch.einsum("nis,nit->nst", self.whole, self.whole)).sum())

    def grams(self, values: Values) -> dict[str, Tensor]:
        """The Gram matrices of B, A and C_h, (r, r)."""
        factors = {role: values[self.keys[role]] for role in WHOLE}
        return {role: factor.mT @ factor for role, factor in factors.items()}

    def picked(self, values: Values, *, but: str = "") -> Tensor:
        """The product of the rows that belong to the updates, without one role's, (n, r)."""
        found = torch.ones(len(self.cut), 1, dtype=self.cut.dtype)
        for role, rows in self.rows.items():
            if role != but:
                found = found * values[self.keys[role]][rows]
        return found

    def through_whole(self, values: Values) -> Tensor:
        """The factors on the whole side met by A, (n, s, r)."""
        return torch.einsum("nis,ir->nsr", self.whole, values[self.keys["a"]])

    def through_heads(self, values: Values) -> Tensor:
        """The factors on the other side met by B, (n, heads, s, r)."""
        return torch.einsum("nhws,wr->nhsr", self.cut, values[self.keys["b"]])

    def through_cut(self, values: Values) -> Tensor:
        """The factors on the other side met by B and C_h, (n, s, r)."""
        heads = values[self.keys["c_head"]]
        return torch.einsum("nhsr,hr->nsr", self.through_heads(values), heads)

    def equations(self, values: Values, role: str) -> tuple[Tensor, Tensor]:
        """Normal equations for the factor of `role`, others fixed: matrices and right sides.

        Of shapes (r, r) and (rows, r); for picked factors a matrix a row, (rows, r, r).
        """
        grams, both = self.grams(values), self.picked(values)
        if role in grams:
            normal = both.mT @ both
            for other in grams.keys() - {role}:
                normal = normal * grams[other]
            if role == "a":
                met = self.through_cut(values) * both[:, None]
                return normal, torch.einsum("nis,nsr->ir", self.whole, met)
            met = self.through_whole(values) * both[:, None]
            if role == "b":
                headed = torch.einsum("nhws,hr->nwsr", self.cut, values[self.keys["c_head"]])
                return normal, torch.einsum("nwsr,nsr->wr", headed, met)
            return normal, torch.einsum("nhsr,nsr->hr", self.through_heads(values), met)
        rows, across = self.rows[role], self.picked(values, but=role)
        met = (self.through_whole(values) * self.through_cut(values)).sum(1)
        size, rank = values[self.keys[role]].shape
        right = met.new_zeros(size, rank).index_add(0, rows, met * across)
        pairs = (across[:, :, None] * across[:, None, :]).expand(-1, rank, rank)
        normal = met.new_zeros(size, rank, rank).index_add(0, rows, pairs)
        return normal * grams["b"] * grams["a"] * grams["c_head"], right

    def residual(self, values: Values) -> float:
        """Squared distance of the updates from the values that stand for them."""
        both = self.picked(values)
        met = (self.through_whole(values) * self.through_cut(values)).sum(1)
        own = math.prod(self.grams(values).values(), start=both.mT @ both).sum()
        return self.energy + float(own - 2 * (met * both).sum())


def sweep(families: Sequence[Family], values: Values) -> Values:
    """Every factor replaced once by the best for the others; the error does not rise."""
    for role in (role for role in ROLES if any(role in family.keys for family in families)):
        values = improved(families, values, role)
    return values


def improved(families: Sequence[Family], values: Values, role: str) -> Values:
    """The factors of one role replaced by the best for the others; the error does not rise."""
    values = dict(values)
    for key in dict.fromkeys(family.keys[role] for family in families if role in family.keys):
        found = [f.equations(values, role) for f in families if f.keys.get(role) == key]
        normal = torch.stack([n for n, _ in found]).sum(0)
        right = torch.stack([r for _, r in found]).sum(0)
        values[key] = _solved(normal, right, values[key])
    return values


def _solved(normal: Tensor, right: Tensor, before: Tensor) -> Tensor:
    """Rows x of ``x @ normal = right``, damped towards `before`; a matrix for all or a row."""
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    damping = _DAMPING * diagonal.amax(-1) + torch.finfo(normal.dtype).tiny
    eye = torch.eye(normal.shape[-1], dtype=normal.dtype)
    normal = normal + damping[..., None, None] * eye
    right = right + damping[..., None] * before
    one_for_all = normal.ndim == 2
    found: Tensor = torch.linalg.solve(normal, right.mT if one_for_all else right[..., None])
    return found.mT if one_for_all else found[..., 0]


def error(families: Sequence[Family], values: Values) -> float:
    """Relative error of all families together; below 1e-7 it is rounding."""
    total = sum(family.energy for family in families)
    off = sum(family.residual(values) for family in families)
    return float(max(off / total, 0.0) ** 0.5) if total else 0.0


def polish(
    families: Sequence[Family],
    values: Values,
    *,
    sweeps: int,
    tol: float = 1e-5,
    callback: Callable[[], object] | None = None,
) -> tuple[Values, list[float]]:
    """Sweep until one lowers the relative error by at most `tol`; values, and the errors.

    The first error is that of the given values. A sweep that rounding makes worse is left out.
    `callback` is called after every sweep.
    """
    trace = [error(families, values)]
    for _ in range(sweeps):
        found = sweep(families, values)
        reached = error(families, found)
        if callback is not None:
            callback()
        if not reached <= trace[-1]:
            break
        values = found
        trace.append(reached)
        if trace[-2] - trace[-1] <= tol:
            break
    return values, trace
