"""What every format of the package tells about itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from tnlib import _array, _text
from tnlib._array import Array
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
        """Number of values of the dense array for each value that is stored; it may be inf."""
        try:
            return math.prod(self.shape) / self.n_params
        except OverflowError:
            return math.inf

    def to_dense(self) -> Array:
        """The array that is stood for."""
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """The dense array as NumPy's, which is how ``numpy.asarray`` reads a format.

        Torch tensors must be on the CPU and need no gradient, as for NumPy itself.
        """
        if copy is False:
            raise ValueError("the dense array is computed, so that it cannot share memory")
        dense = self.to_dense()
        if _array.dtype_name(dense.dtype) == "bfloat16":
            raise TypeError("NumPy lacks bfloat16; cast to_dense() to another dtype")
        return np.asarray(dense, dtype=dtype)

    def _modes_shown(self) -> str:
        """What the text form says between shape and ranks."""
        return ""

    def __repr__(self) -> str:
        error = "None" if self.error is None else f"{self.error:.3g}"
        return (
            f"{type(self).__name__}(shape={_text.sizes(self.shape)}, {self._modes_shown()}"
            f"ranks={_text.sizes(self.ranks)}, n_params={self.n_params}, error={error})"
        )
