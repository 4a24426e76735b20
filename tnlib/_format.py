"""What every format of the package tells about itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tnlib.info import Info

ErrorKind: TypeAlias = Literal["exact", "inherited", "bound", "sampled", "none"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Format:
    """Base of the formats; subclasses add the arrays and know their shape, ranks and size."""

    error: float | None = None
    error_kind: ErrorKind = "none"
    info: Info | None = None

    # NumPy scalars and arrays leave products with a format to the format.
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense array."""
        raise NotImplementedError

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the format."""
        raise NotImplementedError

    @property
    def n_params(self) -> int:
        """Number of values that are stored."""
        raise NotImplementedError

    @property
    def compression(self) -> float:
        """Number of values of the dense array for each value that is stored."""
        return math.prod(self.shape) / self.n_params

    def __repr__(self) -> str:
        error = "None" if self.error is None else f"{self.error:.3g}"
        return (
            f"{type(self).__name__}(shape={self.shape}, ranks={self.ranks}, "
            f"n_params={self.n_params}, error={error})"
        )
