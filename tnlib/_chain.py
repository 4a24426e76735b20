"""What tensor trains and matrix product operators have in common: a chain of cores with bonds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tnlib._array import Array
from tnlib._sweep import Info


@dataclass(frozen=True, eq=False)
class Chain:
    """Cores whose first and last axes are bonds; subclasses say what the axes between are."""

    cores: tuple[Array, ...]
    error: float | None = None
    center: int | None = None
    info: Info | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense array."""
        raise NotImplementedError

    @property
    def ranks(self) -> tuple[int, ...]:
        """The d + 1 bond ranks, with a 1 at both ends."""
        return (1, *(int(core.shape[-1]) for core in self.cores))

    @property
    def n_params(self) -> int:
        """Number of values in the cores."""
        return sum(math.prod(core.shape) for core in self.cores)

    @property
    def compression(self) -> float:
        """Number of values of the dense array for each value in the cores."""
        return math.prod(self.shape) / self.n_params

    @property
    def error_kind(self) -> str:
        """``"exact"``, ``"inherited"`` or ``"none"``.

        The measured residual of these cores, that of the cores they were made from by a change of
        gauge, or nothing to measure.
        """
        if self.error is None:
            return "none"
        return "exact" if self.center is not None else "inherited"
