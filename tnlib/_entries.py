"""Many entries of a train at once: for each, a product of one matrix from every core.

The products of a batch are carried from core to core as vectors, O(r^2) an entry and core, with a
power of two beside each, so that an entry is found wherever it is in range itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace

from tnlib import _array, _train
from tnlib._array import Array
from tnlib._scaled import normalized, times_powers

# Values of the matrices that are gathered at a time.
_BLOCK = 1 << 22


def gathered(cores: Sequence[Array], index: Sequence[Array]) -> Array:
    """Entries (b,) of a train of (r, n, r) cores at b positions, one array of them a core."""
    xp = array_namespace(*cores)
    wide = _train._widened(cores)
    count = index[0].shape[0]
    if not count:
        return cores[0][0, :0, 0]
    step = max(1, _BLOCK // max(core.shape[0] * core.shape[2] for core in cores))
    parts = [
        _part(wide, [where[start : start + step] for where in index])
        for start in range(0, count, step)
    ]
    return _array.astype(xp.concat(parts), cores[0].dtype)


def _part(cores: Sequence[Array], index: Sequence[Array]) -> Array:
    xp = array_namespace(*cores)
    carried, total = normalized(xp.permute_dims(cores[0], (1, 0, 2))[index[0]])
    for core, where in zip(cores[1:], index[1:], strict=True):
        slices, exponents = normalized(xp.permute_dims(core, (1, 0, 2))[where])
        carried, shift = normalized(carried @ slices)
        total = total + exponents + shift
    return times_powers(carried, total)[:, 0, 0]
