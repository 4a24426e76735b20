"""The record of how a decomposition came to be."""

from __future__ import annotations

from dataclasses import dataclass, field

from tnlib._arithmetic import notes


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
