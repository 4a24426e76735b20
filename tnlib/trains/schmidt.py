"""Schmidt values of a train: the singular values of its unfoldings, one spectrum a bond.

In the canonical gauge whose center is left of a bond, the singular values of the center are those
of the unfolding at this bond (Schollwoeck, Ann. Phys. 326, 2011, section 4.5): one sweep to the
right orthogonalises, one back to the left finds them all. Computed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg import lapack
from tnlib.linalg.basis import Vector
from tnlib.trains import gauge


def spectra(cores: Sequence[Array]) -> tuple[list[Array], int]:
    """Descending singular values of the d - 1 unfoldings, each times 2^exponent."""
    moving, exponent = gauge.orthogonalized(gauge.working(cores), len(cores) - 1)
    xp = array_namespace(*moving)
    found: list[Array] = []
    for k in range(len(moving) - 1, 0, -1):
        left, values, _ = lapack.svd(moving[k].reshape(moving[k].shape[0], -1))
        kept = gauge.resolved(xp, values)
        found.insert(0, values[:kept])
        moving[k - 1] = xp.tensordot(moving[k - 1], left[:, :kept] * values[None, :kept], axes=1)
    return found, exponent


def normalized(values: Array) -> Array:
    """Singular values divided by their norm; zeros as they are."""
    norm = math.sqrt(backend.energy(values))
    return values / norm if norm else values


def entropy(values: Vector, alpha: float, base: float) -> float:
    """Renyi entropy of order `alpha` of the squares of singular values, 0 for zeros."""
    shares = normalized(values) ** 2
    shares = shares[shares > 0]
    if not shares.size:
        return 0.0
    if alpha == 1.0:
        found = -float(np.sum(shares * np.log(shares)))
    elif math.isinf(alpha):
        found = -math.log(float(shares.max()))
    else:
        # The largest share is taken out of the sum, whose powers could all vanish.
        top = float(shares.max())
        powers = float(np.sum((shares / top) ** alpha))
        found = (alpha * math.log(top) + math.log(powers)) / (1.0 - alpha)
    return max(found, 0.0) / math.log(base)
