"""What every result tells about itself: its format, its error, and how it came to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from tnlib.arrays import backend
from tnlib.arrays.arithmetic import notes
from tnlib.arrays.backend import Array
from tnlib.common import formatting

ErrorKind: TypeAlias = Literal["exact", "inherited", "bound", "sampled", "none"]


@dataclass(frozen=True)
class Info:
    """How a decomposition came to be.

    Attributes
    ----------
    kernels : tuple of str
        What did the work: for every split or mode in the order of computation "identity", "qr",
        "svd", "gram" or "krylov"; for CP the solvers that ran, "als" and "lm"; "cross".
    discarded : tuple of float
        Share of the input's energy that each split discarded; for a decomposition by projections
        alone, error^2 is their sum up to rounding.
    eps : float or None
        Tolerance that was asked for.
    compute_dtype : str
        Precision of the arithmetic.
    n_iter : int
        Iterations or sweeps; 0 for a direct method.
    converged : bool
        Whether the stopping tolerance was met; True for a direct method.
    reason : str
        Why the computation stopped, in words.
    trace : tuple of float
        Relative error after every iteration. For trains and Tucker it comes from the norms of data
        and approximation and cannot show less than the square root of the unit roundoff, as the
        result's `error` can.
    fallbacks : tuple of str
        Where a driver of LAPACK failed, as it can on the most regular of matrices and on GPUs,
        what was used instead, such as "svd: gesvd instead of gesdd"; empty as a rule. The result
        is as accurate.
    evaluations : int
        Entries that a function was asked for; 0 where an array was given.

    Examples
    --------
    >>> import numpy as np
    >>> from tnlib import tt_svd
    >>> info = tt_svd(np.ones((4, 5, 6)), eps=1e-6, method="svd").info
    >>> info.kernels, info.eps, info.compute_dtype
    (('svd', 'svd'), 1e-06, 'float64')
    >>> info.converged, info.reason
    (True, 'direct')
    """

    kernels: tuple[str, ...]
    discarded: tuple[float, ...]
    eps: float | None
    compute_dtype: str
    n_iter: int = 0
    converged: bool = True
    reason: str = "direct"
    trace: tuple[float, ...] = field(default=(), repr=False)
    fallbacks: tuple[str, ...] = field(default_factory=notes)
    evaluations: int = 0


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
        if backend.dtype_name(dense.dtype) == "bfloat16":
            raise TypeError("NumPy lacks bfloat16; cast to_dense() to another dtype")
        return np.asarray(dense, dtype=dtype)

    def _modes_shown(self) -> str:
        """What the text form says between shape and ranks."""
        return ""

    def __repr__(self) -> str:
        error = "None" if self.error is None else f"{self.error:.3g}"
        return (
            f"{type(self).__name__}(shape={formatting.sizes(self.shape)}, {self._modes_shown()}"
            f"ranks={formatting.sizes(self.ranks)}, n_params={self.n_params}, error={error})"
        )
