"""What permuting and reshaping a train share: begin in a canonical gauge, end with an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tnlib.arrays import backend
from tnlib.arrays.backend import Array
from tnlib.linalg import truncated_basis
from tnlib.linalg.basis import Basis
from tnlib.linalg.preparation import Prepared, verify
from tnlib.result import ErrorKind, Info
from tnlib.trains import gauge, scaled_cores
from tnlib.trains.chain import Chain
from tnlib.trains.rounding import CANCELS, uncertainty
from tnlib.trains.sweep import zero_train

C = TypeVar("C", bound=Chain[Any])


@dataclass(frozen=True)
class Begun:
    """Merged cores in double precision, the first of them the center, times 2^exponent.

    `cancels` says that they are only rounding of what the train is a difference of.
    """

    cores: list[Array]
    prepared: Prepared
    cancels: bool

    @property
    def total(self) -> float:
        """Squared norm of the data."""
        return self.prepared.energy


def begun(merged: Sequence[Array]) -> Begun:
    """The right-canonical gauge of a train."""
    wide = gauge.working(merged)
    cores, exponent = gauge.orthogonalized(wide, 0)
    energy = backend.energy(cores[0])
    cancels = uncertainty(wide, energy, exponent) >= 1.0
    return Begun(cores, Prepared(cores[0], exponent, energy, merged[0].dtype), cancels)


def basis(matrix: Array, limit: int | None, allowed: float | None, generator: Any) -> Basis:
    """A truncated basis of the columns, with the energy that it is measured to discard.

    Without a limit and an allowance only what is rounding is left out.
    """
    found = truncated_basis.truncated_basis(
        matrix,
        energy=backend.energy(matrix),
        max_rank=limit,
        allowed=0.0 if limit is None and allowed is None else allowed,
        method="auto",
        rng=generator,
    )
    lost = backend.residual_energy(matrix, found.vectors, found.rest)
    return Basis(found.vectors, found.rest, lost, found.kernel)


def finished(
    tt: C,
    modes: Sequence[tuple[int, ...]],
    begin: Begun,
    cores: Sequence[Array],
    center: int,
    discarded: Sequence[float],
    kernels: tuple[str, ...],
    *,
    lost: float,
    kind: ErrorKind,
    eps: float | None,
    binding: bool,
) -> C:
    """A chain of the type of `tt` from merged double cores, of which one is the center.

    `lost` is the distance of these from `tt`, in units of the scaled norm.
    """
    total, out, given = begin.total, begin.prepared.out, tt.cores
    if begin.cancels or total == 0.0:
        return _zero(tt, modes, begin, eps)
    exponent = begin.prepared.exponent
    rounded, place = gauge.placed(cores, center, exponent, given, out)
    exact = scaled_cores.put_back(cores, exponent, cores[center].dtype, (center,))
    off = gauge.distance(exact, rounded, exponent)
    lost = math.hypot(lost, off) if kind == "exact" else lost + off
    error = lost / math.sqrt(total)
    verify(error, None if binding else eps, out, kernels)
    info = Info(kernels, tuple(d / total for d in discarded), eps, begin.prepared.compute_name)
    shaped = _shaped(rounded, modes)
    return type(tt)(shaped, error=error, error_kind=kind, center=place, info=info)


def _zero(tt: C, modes: Sequence[tuple[int, ...]], begin: Begun, eps: float | None) -> C:
    """The zero chain, of which :func:`tt_round` says the same."""
    cores = zero_train([math.prod(mode) for mode in modes], tt.cores[0], begin.prepared.out)
    error, reason = (1.0, CANCELS) if begin.cancels else (0.0, "direct")
    info = Info((), (), eps, begin.prepared.compute_name, reason=reason)
    about: dict[str, Any] = {"error": error, "error_kind": "exact", "info": info}
    return type(tt)(_shaped(cores, modes), center=len(cores) - 1, **about)


def _shaped(cores: Sequence[Array], modes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    """Merged cores with the axes that their modes have."""
    pairs = zip(cores, modes, strict=True)
    return tuple(core.reshape(core.shape[0], *mode, core.shape[2]) for core, mode in pairs)


def modes_of(tt: Chain[Any]) -> list[tuple[int, ...]]:
    """The axes between the bonds of every core."""
    return [tuple(map(int, core.shape[1:-1])) for core in tt.cores]
