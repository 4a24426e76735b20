"""The factors of one weight in another format's precision: exact ones, or the best of a rank.

Everything is computed in float64, in the span of the exact factors where there are some and densely
otherwise; errors are those of the float32 factors that are written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tnlib import tt_svd
from tnlib_adapters.checks import positive_int
from tnlib_adapters.networks.core import Cores, Factors
from tnlib_adapters.networks.declaration_kinds import AdditiveDeclaration

# Rounding two balanced factors to float32 moves their product by less than this share of it.
ROUNDING = 2.0**-23
SMALLEST_EPS = 1e-6


@dataclass(frozen=True)
class LowRank:
    """An update as two float32 factors, B (out, r) and A (r, in).

    Attributes
    ----------
    B, A : Tensor
        The factors.
    error : float
        ``||update - B A|| / ||update||``, 0 for an update that is zero.
    norm : float
        ``||update||``.
    """

    B: Tensor
    A: Tensor
    error: float
    norm: float


def check_target(rank: int | None, eps: float | None) -> None:
    """Raise unless `rank` is a positive int or None, and `eps` a tolerance or None."""
    if rank is not None:
        positive_int("rank", rank)
    if eps is not None:
        if isinstance(eps, bool) or not isinstance(eps, int | float):
            raise TypeError(f"eps must be a number, got {eps!r}")
        if not SMALLEST_EPS <= eps < 1:
            raise ValueError(
                f"eps must be at least {SMALLEST_EPS}, which float32 factors resolve, and below 1; "
                f"got {eps}"
            )


def low_rank(
    network: AdditiveDeclaration,
    cores: Cores,
    anchor: Cores | None,
    rank: int | None = None,
    eps: float | None = None,
) -> LowRank:
    """Factors of an update: exact without `rank` and `eps`, else the best that they allow.

    Parameters
    ----------
    network : Network or FusedProjection
        Declaration of the update.
    cores, anchor : mapping of str to Tensor
        Values by key; no anchor where the network has none.
    rank : int, optional
        Largest rank; it wins over `eps`.
    eps : float, optional
        Largest relative Frobenius error, met with the smallest rank.

    Raises
    ------
    ValueError
        If the cores are not finite, or neither is given and the update has no exact factors.
    """
    cores, anchor = _double(cores), None if anchor is None else _double(anchor)
    exact = network.low_rank_factors(cores, anchor)
    if exact is None and rank is None and eps is None:
        shape = f"{network.out_features} x {network.in_features}"
        raise ValueError(
            f"the {shape} update has no exact factors of a rank below both widths (cores with rows "
            "and columns, as DoTA's, cannot be cut); give rank= or eps= to have it truncated"
        )
    dense = network.delta(cores, anchor) if exact is None else None
    norm = float(torch.linalg.norm(_core(dense, exact)[1]))
    if not math.isfinite(norm):
        raise ValueError("the adapter holds nan or inf; train it again")
    if norm == 0:
        B, A = torch.zeros(network.out_features, 1), torch.zeros(1, network.in_features)
        return LowRank(B, A, 0.0, 0.0)
    if exact is not None and rank is None and eps is None:
        return _written(exact, dense, exact, norm)
    found = _written(_truncated(dense, exact, rank, eps), dense, exact, norm)
    if eps is not None and found.error > eps and len(found.A) != rank:
        # Rounding took it over the edge.
        closer = _truncated(dense, exact, rank, eps - ROUNDING)
        found = _written(closer, dense, exact, norm)
    return found


def _double(cores: Cores) -> dict[str, Tensor]:
    return {key: core.detach().to("cpu", torch.float64) for key, core in cores.items()}


def _core(dense: Tensor | None, exact: Factors | None) -> tuple[Tensor, Tensor, Tensor]:
    """The update as Q C P, with orthonormal Q and P^T where it comes in factors."""
    if exact is None:
        assert dense is not None
        return torch.ones(()), dense, torch.ones(())
    left, upper = torch.linalg.qr(exact[0])
    right, lower = torch.linalg.qr(exact[1].mT)
    return left, upper @ lower.mT, right.mT


def _truncated(
    dense: Tensor | None, exact: Factors | None, rank: int | None, eps: float | None
) -> Factors:
    """Balanced factors: both carry the square roots of the singular values."""
    left, core, right = _core(dense, exact)
    limit = None if rank is None else min(rank, *core.shape)
    first, second = tt_svd(core, limit, eps=eps).cores
    u, s, vh = torch.linalg.svd(second[..., 0], full_matrices=False)
    B, A = first[0] @ (u * s.sqrt()), s.sqrt()[:, None] * vh
    return (B, A) if exact is None else (left @ B, A @ right)


def _written(factors: Factors, dense: Tensor | None, exact: Factors | None, norm: float) -> LowRank:
    B, A = (factor.to(torch.float32).contiguous() for factor in factors)
    if exact is None:
        assert dense is not None
        off = torch.linalg.norm(dense - B.double() @ A.double())
    else:
        both = torch.cat([exact[0], -B.double()], 1), torch.cat([exact[1], A.double()])
        off = torch.linalg.norm(_core(None, both)[1])
    return LowRank(B, A, float(off) / norm, norm)
