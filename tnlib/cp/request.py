"""What is asked of a CP decomposition, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from array_api_compat import array_namespace

from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import Start
from tnlib.cp.format import CP
from tnlib.cp.solve import METHODS, Course, Method
from tnlib.cp.start import STARTS
from tnlib.linalg.preparation import Prepared
from tnlib.tucker import completion as completion


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    mask : array of bool or None
        True where entries are observed.
    fixed : tuple of int
        Modes whose factors stay those of `init`, which are in `kept`.
    """

    rank: int
    method: Method
    init: Start | CP[Any]
    compress: bool | None
    mask: Array | None = None
    fixed: tuple[int, ...] = ()
    kept: Mapping[int, Array] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        array: Array,
        rank: int,
        method: Method,
        init: Any,
        compress: Any,
        mask: Any,
        fixed: Any,
    ) -> Request:
        """Check the arguments of :func:`cp_als` against one another."""
        start = _start(init, tuple(int(size) for size in array.shape), rank)
        kept = _kept(fixed, array.ndim, start)
        observed = None if mask is None else _mask(array, mask)
        checks.flag("compress", compress)
        if compress and (kept or observed is not None):
            raise ValueError(
                "compress=True would lose which entries are observed and what fixed factors are; "
                "leave it out with mask= and fixed="
            )
        return cls(rank, method, start, compress, observed, tuple(kept), kept)

    def agrees(self, prepared: Prepared) -> None:
        """Refuse complex terms where the computation is real."""
        if not isinstance(self.init, CP) or backend.is_complex(prepared.out):
            return
        if any(
            backend.is_complex(values.dtype) for values in (self.init.weights, *self.init.factors)
        ):
            name = prepared.compute_name
            raise TypeError(f"init is complex and X is computed in {name}; pass a complex dtype=")


def checked_array(X: Any, least: int) -> Array:
    """`X` as an array of at least so many axes."""
    array = array_checks.tensor("X", X)
    if array.ndim < least:
        raise ValueError(f"a CP decomposition needs two axes or more, got {tuple(array.shape)}")
    return array


def checked_rank(rank: Any, max_params: Any, shape: tuple[int, ...]) -> int:
    """The number of terms, or as many as fit into a budget, whichever is less."""
    checks.some_limit(rank=rank, max_params=max_params)
    terms = None if rank is None else checks.positive_int("rank", rank)
    if max_params is None:
        return terms or 0
    each = 1 + sum(shape)
    budget = checks.positive_int("max_params", max_params)
    if budget < each:
        raise ValueError(f"max_params={budget} is too small: one term already has {each} values")
    # No array needs more terms than its entries over its largest mode.
    most = max(1, math.prod(shape) // max(shape))
    return min(budget // each, most) if terms is None else min(budget // each, terms)


def checked_course(method: Any, tol: Any, max_iter: Any, callback: Any) -> Course:
    """The limits of an iteration."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    return Course(checks.tolerance("tol", tol), checks.positive_int("max_iter", max_iter), callback)


def _start(init: Any, shape: tuple[int, ...], rank: int) -> Start | CP[Any]:
    if isinstance(init, CP):
        if (init.shape, init.rank) != (shape, rank):
            raise ValueError(
                f"init has shape {init.shape} and rank {init.rank}, expected {shape} and {rank}"
            )
        array_checks.finite("init", (init.weights, *init.factors))
        return init
    if not isinstance(init, str) or init not in STARTS:
        raise ValueError(f"init must be a CP or one of {', '.join(STARTS)}, got {init!r}")
    return init


def _kept(fixed: Any, order: int, start: Start | CP[Any]) -> dict[int, Array]:
    """The factors of the fixed modes."""
    modes = () if fixed is None else checks.modes(fixed, order, "fixed")
    if not modes:
        return {}
    if not isinstance(start, CP):
        raise ValueError(
            f"fixed={modes} keeps factors of init, which must be a CP, got init={start!r}"
        )
    if len(modes) == order:
        raise ValueError("all modes are fixed, so there is nothing to compute; leave one free")
    return {mode: backend.plain(start.factors[mode]) for mode in sorted(modes)}


def _mask(array: Array, mask: Any) -> Array:
    """A mask with observed entries at every index of every mode."""
    observed = completion.checked(array, mask)
    xp = array_namespace(observed)
    for mode in range(array.ndim):
        seen = xp.any(observed, axis=tuple(k for k in range(array.ndim) if k != mode))
        if not bool(xp.all(seen)):
            index = int(xp.argmax(xp.astype(~seen, xp.int64)))
            raise ValueError(
                f"no entry with index {index} in mode {mode} is observed, so nothing determines "
                "its row of the factor; leave such indices out of X and mask"
            )
    return observed
