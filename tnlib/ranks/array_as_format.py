"""An array read as the format that it is to become: its axes, modes and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tnlib import mode_sizes
from tnlib.arrays import array_checks, checks
from tnlib.arrays.backend import Array
from tnlib.linalg.preparation import Prepared
from tnlib.ranks.parameter_counts import ChainCount, Count, Ranks, TuckerCount
from tnlib.ranks.spectra import Spectra, chain_spectra, mode_spectra

RankFormat = Literal["mpo", "tt", "tucker"]
FORMATS = get_args(RankFormat)


@dataclass(frozen=True, eq=False)
class Reading:
    """An array whose axes are those of a format.

    Attributes
    ----------
    array : array
        The data, reshaped to the modes.
    axes : tuple of int
        The order of its axes in the format.
    shape : tuple of int
        The shape that was given.
    count : Count
        Values of the format as a function of its ranks.
    format : str
        The format.
    """

    array: Array
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    count: Count
    format: str

    def ranks(self, value: Any) -> Ranks:
        """One rank for all or one for each, as one for each."""
        if isinstance(self.count, TuckerCount):
            return checks.multilinear_ranks(value, len(self.axes)) or ()
        return checks.required_ranks(value, len(self.count.limits) + 1)

    def spectra(
        self, prepared: Prepared, most: Sequence[int | None], rng: Any, progress: bool = False
    ) -> Spectra:
        """The spectra of all unfoldings up to given ranks."""
        if isinstance(self.count, ChainCount):
            return chain_spectra(prepared, self.count.modes, most, rng, progress)
        return mode_spectra(prepared, most, rng, progress)


def reading(
    W: Any, format: str, row_dims: Sequence[int] | None, col_dims: Sequence[int] | None
) -> Reading:
    """Check an array and its modes, and read it as a format."""
    if format not in FORMATS:
        raise ValueError(
            f"format must be one of {', '.join(FORMATS)}, got {format!r}; a CP decomposition has "
            "no spectrum: its rank follows from max_params alone"
        )
    array = array_checks.tensor("W", W)
    shape = tuple(int(n) for n in array.shape)
    if format == "mpo":
        if array.ndim != 2:
            raise ValueError(f"W must be a matrix for format='mpo', got shape {shape}")
        rows, columns = mode_sizes.matrix_modes((shape[0], shape[1]), row_dims, col_dims)
        modes = mode_sizes.paired_modes(rows, columns)
        axes = mode_sizes.paired_axes(len(rows))
        return Reading(array.reshape(rows + columns), axes, shape, ChainCount(modes), format)
    if row_dims is not None or col_dims is not None:
        raise ValueError(f"row_dims and col_dims are for format='mpo', got format={format!r}")
    if array.ndim < 2:
        raise ValueError(f"W must have at least two axes, got shape {shape}; reshape it")
    count = ChainCount(shape) if format == "tt" else TuckerCount(shape)
    return Reading(array, tuple(range(array.ndim)), shape, count, format)
