"""Every factorisation of the package, by another driver where one fails.

LAPACK's fast drivers can fail to converge, or give nan, on matrices that others have no trouble
with; it is seen in the field with the divide-and-conquer SVD and on GPUs. So every factorisation
climbs a ladder: the fast driver, on a GPU first that of the device; a slower one; at last Jacobi
rotations (:mod:`tnlib.linalg.jacobi`), which always converge. All are as accurate as the first.
What was used instead is noted, and stands in ``info.fallbacks`` of the result.

Arrays in the CPU's memory are NumPy's for LAPACK, whatever their library. Leading axes are a batch.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
from array_api_compat import array_namespace

from tnlib.arrays import backend
from tnlib.arrays.arithmetic import note
from tnlib.arrays.backend import Array
from tnlib.linalg import jacobi

Found: TypeAlias = tuple[Array, ...]
Driver: TypeAlias = tuple[str, Callable[..., Found]]

# Side up to which NumPy's BLAS and solvers serve; above it SciPy's, which stop at a few eigenpairs.
_SMALL = 512
# What libraries say in errors that are not LinAlgError when a driver, and not its caller, failed.
_FAILED = re.compile("converge|work array|cusolver|magma|rocsolver|lapack", re.IGNORECASE)


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """U, the descending singular values, and V^H, of min(m, n) columns and rows."""
    left, values, right = _climb("svd", _SVD, (matrix,), full_matrices=False)
    return left, values, right


def eigh(hermitian: Array, largest: int | None = None) -> tuple[Array, Array]:
    """Ascending eigenvalues and eigenvectors, all or the `largest` ones, reading the lower half."""
    size = hermitian.shape[-1]
    count = size if largest is None else min(largest, size)
    drivers = _EIGH
    if hermitian.ndim == 2 and size > _SMALL:
        first: Driver = ("evd", lambda a: _scipy_eigh(a, "evd"))
        second: Driver = ("evr", lambda a: _scipy_eigh(a, "evr", (size - count, size - 1)))
        few = count <= size // 8
        drivers = (second, first, _EIGH[-1]) if few else (first, *_EIGH[1:])
    values, vectors = _climb("eigh", drivers, (hermitian,))
    start = values.shape[-1] - count
    return values[..., start:], vectors[..., start:]


def eigvalsh(hermitian: Array) -> Array:
    """Ascending eigenvalues, reading the lower half."""
    drivers = _EIGVALSH
    if hermitian.ndim == 2 and hermitian.shape[-1] > _SMALL:
        drivers = (("evd", lambda a: (_scipy_eigvalsh(a),)), *_EIGVALSH[1:])
    return _climb("eigvalsh", drivers, (hermitian,))[0]


def qr(matrix: Array) -> tuple[Array, Array]:
    """Q with min(m, n) orthonormal columns and the triangular R of ``matrix = Q R``."""
    basis, factor = _climb("qr", _QR, (matrix,))
    return basis, factor


def triangular_factor(tall: Array) -> Array:
    """The factor R of ``tall = Q R``, without forming Q."""
    return _climb("qr", _TRIANGULAR, (tall,), mode="r")[-1]


def solve(matrix: Array, right: Array) -> Array:
    """``matrix^-1 @ right``; its least solution where the matrix is singular to rounding."""
    return _climb("solve", _SOLVE, (matrix, right))[0]


def inv(matrix: Array) -> Array:
    """The inverse; the pseudo-inverse where the matrix is singular to rounding."""
    xp = array_namespace(matrix)
    eye = xp.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return solve(matrix, xp.broadcast_to(eye, tuple(matrix.shape)))


def _climb(name: str, drivers: Sequence[Driver], arrays: Found, **options: Any) -> Found:
    """What the first driver finds that does not fail; `options` are those of torch's function."""
    like = arrays[0]
    if not isinstance(like, np.ndarray):
        device = [] if backend.on_cpu(like) else [_on_device(name, like, options)]
        drivers = [*device, *((label, _in_memory(driver)) for label, driver in drivers)]
    reason: Exception | None = None
    for step, (label, driver) in enumerate(drivers):
        try:
            found = driver(*arrays)
        except (ValueError, RuntimeError) as error:
            if not _is_failure(error) or not all(map(_is_finite, arrays)):
                raise
            reason = error
            continue
        if all(map(_is_finite, found)) or not all(map(_is_finite, arrays)):
            if step:
                note(f"{name}: {label} instead of {drivers[0][0]}")
            return found
    raise np.linalg.LinAlgError(
        f"{name} of an array of shape {tuple(like.shape)} failed with every driver: "
        f"{', '.join(label for label, _ in drivers)}"
    ) from reason


def _on_device(name: str, like: Array, options: dict[str, Any]) -> Driver:
    """Torch's function of that name, for arrays that are not in the CPU's memory."""
    torch = sys.modules["torch"]

    def driver(*arrays: Array) -> Found:
        found = getattr(torch.linalg, name)(*arrays, **options)
        return (found,) if torch.is_tensor(found) else tuple(found)

    return f"torch on {like.device.type}", driver


def _in_memory(driver: Callable[..., Found]) -> Callable[..., Found]:
    """A driver of NumPy arrays, for tensors."""

    def converted(*arrays: Array) -> Found:
        found = driver(*(backend.to_numpy(array) for array in arrays))
        return tuple(backend.from_numpy(values, arrays[0]) for values in found)

    return converted


def _each(driver: Callable[[Array], Found]) -> Callable[[Array], Found]:
    """A driver of one matrix, for a batch as well."""

    def batched(matrices: Array) -> Found:
        if matrices.ndim == 2:
            return driver(matrices)
        each = [driver(matrix) for matrix in matrices.reshape(-1, *matrices.shape[-2:])]
        return tuple(
            np.stack(parts).reshape(*matrices.shape[:-2], *parts[0].shape)
            for parts in zip(*each, strict=True)
        )

    return batched


def _gesvd(matrix: Array) -> Found:
    return tuple(
        scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd", check_finite=False)
    )


def _scipy_eigh(hermitian: Array, driver: Any, subset: tuple[int, int] | None = None) -> Found:
    return tuple(
        scipy.linalg.eigh(
            np.asfortranarray(hermitian),
            lower=True,
            check_finite=False,
            driver=driver,
            subset_by_index=subset,
        )
    )


def _scipy_eigvalsh(hermitian: Array) -> Array:
    return scipy.linalg.eigvalsh(hermitian, lower=True, check_finite=False)


def _least(matrix: Array, right: Array) -> Array:
    """The solution of least norm, without the singular vectors whose values are rounding."""
    left, values, rows = svd(matrix)
    floor = values[..., :1] * (matrix.shape[-1] * 2 * backend.unit_roundoff(values.dtype))
    there = values > floor
    inverse = np.where(there, 1.0 / np.where(there, values, 1.0), 0.0).astype(values.dtype)
    vector = right.ndim == matrix.ndim - 1 == 1
    projected = backend.adjoint(left) @ (right[:, None] if vector else right)
    solution = backend.adjoint(rows) @ (inverse[..., None] * projected)
    return solution[:, 0] if vector else solution


def _is_failure(error: Exception) -> bool:
    """Whether `error` says that a driver failed, and not that it was called wrongly."""
    kind = type(error).__name__
    return "LinAlgError" in kind or _FAILED.search(str(error)) is not None


def _is_finite(array: Array) -> bool:
    if isinstance(array, np.ndarray):
        # The sum of squares is finite for all but nan, inf and the largest numbers.
        return math.isfinite(np.vdot(array, array).real) or bool(np.isfinite(array).all())
    xp = array_namespace(array)
    return bool(xp.all(xp.isfinite(array)))


# The ladders of drivers.
_SVD: tuple[Driver, ...] = (
    ("gesdd", lambda a: tuple(np.linalg.svd(a, full_matrices=False))),
    ("gesvd", _each(_gesvd)),
    ("jacobi", _each(jacobi.svd)),
)
_EIGH: tuple[Driver, ...] = (
    ("evd", lambda a: tuple(np.linalg.eigh(a))),
    ("evr", _each(lambda a: _scipy_eigh(a, "evr"))),
    ("jacobi", _each(jacobi.eigh)),
)
_EIGVALSH: tuple[Driver, ...] = (
    ("evd", lambda a: (np.linalg.eigvalsh(a),)),
    ("evr", _each(lambda a: _scipy_eigh(a, "evr")[:1])),
    ("jacobi", _each(lambda a: jacobi.eigh(a)[:1])),
)
_QR: tuple[Driver, ...] = (
    ("geqrf", lambda a: tuple(np.linalg.qr(a))),
    ("householder", _each(jacobi.qr)),
)
_TRIANGULAR: tuple[Driver, ...] = (
    ("geqrf", lambda a: (np.linalg.qr(a, mode="r"),)),
    ("householder", _each(lambda a: jacobi.qr(a)[1:])),
)
_SOLVE: tuple[Driver, ...] = (
    ("lu", lambda a, b: (np.linalg.solve(a, b),)),
    ("svd", lambda a, b: (_least(a, b),)),
)
