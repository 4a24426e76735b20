"""Where a higher-order orthogonal iteration starts: leading vectors, random or given factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from tnlib.arrays import array_checks, backend, checks
from tnlib.arrays.backend import Array
from tnlib.common.type_aliases import Start
from tnlib.linalg import lapack
from tnlib.linalg.basis import resolution
from tnlib.linalg.preparation import Prepared
from tnlib.tucker.format import Tucker, by_mode
from tnlib.tucker.hosvd import st_hosvd


@dataclass(frozen=True)
class Beginning:
    """A checked start.

    Attributes
    ----------
    kind : {"hosvd", "random"}
        Where the columns of factors come from that are not given.
    modes : tuple of int
        Modes that are decomposed.
    own : dict of int to array
        Given factors by mode.
    fixed : tuple of int
        Modes whose given factors stay.
    """

    kind: Start
    modes: tuple[int, ...]
    own: Mapping[int, Array] = field(default_factory=dict)
    fixed: tuple[int, ...] = ()

    @classmethod
    def of(cls, init: Any, fixed: Any, shape: tuple[int, ...], modes: tuple[int, ...]) -> Beginning:
        """Check ``init=`` and ``fixed=`` of a decomposition of some `modes` of an array."""
        kept = () if fixed is None else checks.modes(fixed, len(shape), "fixed")
        if not isinstance(init, Tucker):
            if not isinstance(init, str) or init not in ("hosvd", "random"):
                raise ValueError(f"init must be 'hosvd', 'random' or a Tucker, got {init!r}")
            if kept:
                raise ValueError(
                    f"fixed={kept} keeps factors of init, which must be a Tucker, got {init!r}"
                )
            return cls("hosvd" if init == "hosvd" else "random", modes)
        if init.shape != shape:
            raise ValueError(f"init has shape {init.shape}, expected {shape}")
        own = {k: backend.plain(f) for k, f in by_mode(init).items() if k in modes}
        array_checks.finite("init", list(own.values()))
        if not set(kept) <= set(own):
            raise ValueError(
                f"fixed={kept} has modes without a factor: the init has some for {tuple(own)} of "
                f"the decomposed modes {modes}"
            )
        return cls("random", modes, own, kept)

    def like(self, prepared: Prepared) -> Beginning:
        """The same with its factors as the data are."""
        if any(backend.is_complex(f.dtype) for f in self.own.values()) and not backend.is_complex(
            prepared.data.dtype
        ):
            name = prepared.compute_name
            raise TypeError(f"init is complex and X is computed in {name}; pass a complex dtype=")
        own = {k: backend.computable(f, prepared.data) for k, f in self.own.items()}
        return replace(self, own=own)

    def factors(
        self, data: Array, limits: Mapping[int, int], method: str, generator: np.random.Generator
    ) -> tuple[dict[int, Array], dict[int, Array]]:
        """Orthonormal factors by mode, and matrices that lead back from those of fixed ones."""
        begin: dict[int, Array] = {}
        back: dict[int, Array] = {}
        for k in self.fixed:
            begin[k], back[k] = _spanned(self.own[k])
        free = [k for k in self.modes if k not in self.fixed]
        most = feasible({**limits, **{k: f.shape[1] for k, f in begin.items()}}, data.shape)
        if self.kind == "hosvd":
            bounds = [limits[k] for k in free]
            found = _leading(data, free, bounds, method, generator)
            return {**begin, **dict(zip(free, found, strict=True))}, back
        xp = array_namespace(data)
        for k in sorted(free):
            columns = backend.normal(generator, (data.shape[k], most[k]), data)
            if k in self.own:
                missing = most[k] - min(self.own[k].shape[1], most[k])
                columns = xp.concat([self.own[k], columns[:, :missing]], axis=1)
            begin[k] = lapack.qr(columns)[0]
        return begin, back


def feasible(limits: Mapping[int, int], shape: Sequence[int]) -> dict[int, int]:
    """Limits that can be reached: no rank is above its mode or the product of all others.

    Without this a long mode would start from as many columns. Modes without a limit are whole.
    """
    ranks = {k: min(limits.get(k, size), size) for k, size in enumerate(shape)}
    while True:
        others = {k: math.prod(ranks[j] for j in ranks if j != k) for k in limits}
        lower = {k: min(rank, others.get(k, rank)) for k, rank in ranks.items()}
        if lower == ranks:
            return {k: ranks[k] for k in limits}
        ranks = lower


def _leading(
    data: Array,
    modes: Sequence[int],
    limits: Sequence[int],
    method: str,
    generator: np.random.Generator,
) -> list[Array]:
    """The factors of a sequentially truncated HOSVD of some modes."""
    whole = [k for k in range(data.ndim) if k not in modes]
    moved = array_namespace(data).permute_dims(data, (*modes, *whole))
    return st_hosvd(moved, limits, None, backend.energy(data), method, generator)[1]


def _spanned(factor: Array) -> tuple[Array, Array]:
    """An orthonormal basis Q of the columns of a factor F, and B with ``F B = Q``."""
    left, values, right = lapack.svd(factor)
    sizes = backend.to_numpy(values)
    noise = math.sqrt(max(factor.shape)) * resolution(factor.dtype)
    kept = max(int(np.count_nonzero(sizes > noise * sizes[0])), 1)
    scale = values[:kept] if sizes[0] > 0 else values[:kept] + 1
    return left[:, :kept], backend.adjoint(right[:kept]) / scale
