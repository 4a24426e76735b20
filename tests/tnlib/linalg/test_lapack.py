"""Every factorisation holds with every driver, and a driver that fails is replaced and named."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.arrays import LIBRARIES, numpy_of, with_spectrum
from tests.tolerances import assert_close
from tnlib.arrays import backend
from tnlib.arrays.arithmetic import notes, own_arithmetic
from tnlib.linalg import jacobi, lapack

SPECTRA = {
    "flat": np.ones(12),
    "steep": 10.0 ** -np.arange(12),
    "low rank": np.r_[3.0, 2.0, 2.0, np.zeros(9)],
    "tiny": 1e-150 * np.arange(12.0, 0, -1),
    "zero": np.zeros(12),
}
DTYPES = ["float32", "float64", "complex64", "complex128"]


def matrix_of(spectrum, dtype, rows=12, columns=17):
    matrix = with_spectrum(SPECTRA[spectrum], rows, columns)
    if "complex" in dtype:
        matrix = matrix * np.exp(1j * np.arange(columns))
    return matrix.astype(dtype)


class Failing:
    """Functions of a library that raise, or give nan, from the k-th call on."""

    def __init__(self, monkeypatch, after=0, how="raise"):
        self.monkeypatch, self.after, self.how, self.calls = monkeypatch, after, how, 0

    def replace(self, module, *names):
        for name in names:
            self.monkeypatch.setattr(module, name, self.failing(module, getattr(module, name)))

    def failing(self, module, function):
        def replaced(*arguments, **options):
            self.calls += 1
            if self.calls <= self.after:
                return function(*arguments, **options)
            if self.how == "raise":
                error = (
                    torch.linalg.LinAlgError if module is torch.linalg else np.linalg.LinAlgError
                )
                raise error("the algorithm failed to converge")
            found = function(*arguments, **options)
            parts = found if isinstance(found, tuple) else (found,)
            for part in parts:
                part[...] = float("nan")
            return found

        return replaced


@pytest.fixture(params=["raise", "nan"])
def failing(request, monkeypatch):
    return Failing(monkeypatch, how=request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
@pytest.mark.parametrize("shape", [(12, 17), (17, 12), (12, 12), (1, 5), (5, 1)])
def test_jacobi_singular_values_and_vectors(spectrum, dtype, shape):
    side = min(shape)
    matrix = matrix_of(spectrum, dtype, max(12, shape[0]), max(12, shape[1]))[
        : shape[0], : shape[1]
    ]
    left, values, right = jacobi.svd(matrix)
    assert (left.shape, right.shape) == ((shape[0], side), (side, shape[1]))
    assert (left.dtype, values.dtype) == (matrix.dtype, matrix.real.dtype)
    size = np.linalg.norm(matrix) + np.finfo(np.float32).tiny * (dtype[-2:] in ("32", "64"))
    assert_close(left * values @ right, matrix, 20 * side, size, dtype=dtype)
    assert_close(left.conj().T @ left, np.eye(side), 20 * side, 1.0, dtype=dtype)
    assert_close(right @ right.conj().T, np.eye(side), 20 * side, 1.0, dtype=dtype)
    assert np.all(np.diff(values) <= 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
def test_jacobi_eigenpairs_and_householder(spectrum, dtype):
    matrix = matrix_of(spectrum, dtype, 12, 12)
    hermitian = matrix + matrix.conj().T
    size = float(np.linalg.norm(hermitian)) + 1e-30
    values, vectors = jacobi.eigh(np.tril(hermitian))
    assert_close(hermitian @ vectors, vectors * values, 20 * 12, size, dtype=dtype)
    assert_close(vectors.conj().T @ vectors, np.eye(12), 20 * 12, 1.0, dtype=dtype)
    basis, factor = jacobi.qr(matrix[:, :7])
    assert_close(basis @ factor, matrix[:, :7], 20 * 12, size, dtype=dtype)
    assert_close(basis.conj().T @ basis, np.eye(7), 20 * 12, 1.0, dtype=dtype)
    assert not np.tril(factor, -1).any()


MATRIX = with_spectrum(np.linspace(1, 2, 9), 9, 9)


def checked(name, library, batch):
    """One factorisation, compared with what defines it."""
    convert = LIBRARIES[library]
    matrix = MATRIX
    stack = np.stack([matrix, 2 * matrix]) if batch else matrix
    hermitian = stack @ stack.mT
    if name == "svd":
        left, values, right = map(numpy_of, lapack.svd(convert(stack)))
        assert_close(left * values[..., None, :] @ right, stack, 200, 4.0)
    elif name == "eigh":
        values, vectors = map(numpy_of, lapack.eigh(convert(hermitian), 4))
        assert values.shape[-1] == vectors.shape[-1] == 4
        assert_close(hermitian @ vectors, vectors * values[..., None, :], 200, 16.0)
    elif name == "eigvalsh":
        values = numpy_of(lapack.eigvalsh(convert(hermitian)))
        assert_close(values[..., -1], np.array([4.0, 16.0] if batch else 4.0), 200, 16.0)
    elif name == "qr":
        basis, factor = map(numpy_of, lapack.qr(convert(stack)))
        assert_close(basis @ factor, stack, 200, 4.0)
        if not batch:
            factor = numpy_of(lapack.triangular_factor(convert(stack)))
            assert_close(factor.T @ factor, stack.T @ stack, 200, 16.0)
    else:
        inverse = numpy_of(lapack.inv(convert(hermitian)))
        assert_close(inverse @ hermitian, np.eye(9) + 0 * stack, 200, 1.0, condition=4.0)


NAMES = {"svd": "svd", "eigh": "eigh", "eigvalsh": "eigvalsh", "qr": "qr", "solve": "solve"}


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("library", sorted(LIBRARIES))
@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_driver_that_fails_is_replaced_and_named(name, library, batch, failing):
    with own_arithmetic():
        checked(name, library, batch)
        assert notes() == ()
        failing.replace(np.linalg, NAMES[name])
        checked(name, library, batch)
        assert len(notes()) == 1
        assert notes()[0].startswith(f"{name}: ")
    assert notes() == ()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_jacobi_serves_where_all_of_lapack_fails(name, failing):
    failing.replace(np.linalg, "svd", "eigh", "eigvalsh", "qr", "solve")
    failing.replace(scipy.linalg, "svd", "eigh", "eigvalsh")
    checked(name, "numpy", batch=True)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_fails_on_a_device_is_computed_on_the_cpu(name, failing, monkeypatch):
    monkeypatch.setattr(backend, "on_cpu", lambda array: isinstance(array, np.ndarray))
    checked(name, "torch", batch=False)
    failing.replace(torch.linalg, name)
    with own_arithmetic():
        checked(name, "torch", batch=False)
        assert notes()[0].startswith(f"{name}: ")
        assert notes()[0].endswith("instead of torch on cpu")


def test_large_partial_eigenproblems_fall_back_too(failing):
    matrix = with_spectrum(np.arange(1, 521.0) ** -1.0, 520, 520)
    hermitian = matrix @ matrix.T
    plain = lapack.eigh(hermitian, 10)[0]
    with own_arithmetic():
        first = scipy.linalg.eigh

        def evr_fails(*arguments, driver=None, **options):
            if driver == "evr":
                raise np.linalg.LinAlgError("internal error")
            return first(*arguments, driver=driver, **options)

        failing.monkeypatch.setattr(scipy.linalg, "eigh", evr_fails)
        values, vectors = lapack.eigh(hermitian, 10)
        assert notes() == ("eigh: evd instead of evr",)
    assert_close(values, plain, 520, 1.0)
    assert_close(vectors.T @ vectors, np.eye(10), 520, 1.0)


def test_a_singular_system_gets_its_least_solution():
    singular = np.diag([2.0, 1.0, 0.0])
    assert_close(lapack.solve(singular, np.array([2.0, 3.0, 0.0])), np.array([1.0, 3.0, 0.0]))
    assert_close(lapack.inv(singular), np.diag([0.5, 1.0, 0.0]))
    turned = singular[[1, 2, 0]] * np.exp(1j * np.arange(3))
    assert_close(lapack.inv(turned), np.linalg.pinv(turned), 20)


def test_nan_in_the_data_is_not_a_failure_of_a_driver():
    with own_arithmetic():
        with pytest.raises(np.linalg.LinAlgError):
            lapack.svd(np.full((3, 3), np.nan))
        assert np.isnan(lapack.qr(np.full((3, 3), np.nan))[0]).all()
        assert notes() == ()
