"""Another processor, imitated: every product and factorisation of tnlib rounded in another way.

A pytest plugin, ``python -m pytest -p tests.perturbed``; `make test-machines` runs it. Processors,
BLAS libraries and numbers of threads differ in the order of their sums and in fused products. So
here

* a sum of products is moved by up to u times the sum of their absolute values, which is how far
  two orders of summation commonly are apart (Higham 2002, section 3.1 has n u at most); a sum of
  which one term at most is not zero, and a sum of integers, is the same everywhere and stays;
* a factorisation is that of a matrix that is off by u times its largest entry, which is backward
  stability, with the signs of its vectors turned at random, which nothing fixes.

The noise is a function of the arrays and of their layout: the same call gives the same result, the
same numbers in another library, layout or batch do not. PERTURBED_SEED picks another noise.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import operator
import os
import sys
import zlib
from functools import wraps

import numpy as np
import scipy.linalg
import torch

SEED = int(os.environ.get("PERTURBED_SEED", "0"))
TREES = ("tnlib", "tnlib_adapters")
PRODUCT = "_perturbed_product"
_UNIT = {"float64": 2.0**-53, "complex128": 2.0**-53, "float32": 2.0**-24, "complex64": 2.0**-24}


def _plain(array) -> bool:
    """Whether `array` holds numbers of a precision whose rounding is imitated, on the CPU."""
    if isinstance(array, torch.Tensor):
        if type(array) not in (torch.Tensor, torch.nn.Parameter) or array.layout != torch.strided:
            return False
        if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(array):
            return False
        return array.device.type == "cpu" and str(array.dtype)[6:] in _UNIT and array.numel() > 0
    return type(array) is np.ndarray and array.dtype.name in _UNIT and array.size > 0


def _values(array):
    if isinstance(array, torch.Tensor):
        return array.detach().resolve_conj().resolve_neg().numpy()
    return array


def _like(values, array):
    if not isinstance(array, torch.Tensor):
        return values
    return torch.from_numpy(np.array(values, order="C")).to(array.dtype)


def _noise(name, operands, shape, dtype):
    """Numbers of [-1, 1] that depend on nothing but the call."""
    key = zlib.crc32(repr((name, SEED)).encode())
    for array in operands:
        values = _values(array)
        key = zlib.crc32(repr((type(array).__name__, values.shape, values.strides)).encode(), key)
        key = zlib.crc32(np.ascontiguousarray(values).tobytes(), key)
    return np.random.default_rng(key).uniform(-1.0, 1.0, shape).astype(np.dtype(dtype).type(0).real)


def _whole(values) -> bool:
    """Whether sums of products of such values are exact in any order."""
    parts = np.stack([values.real, values.imag]) if np.iscomplexobj(values) else values
    return bool(np.all(parts == np.rint(parts)) and np.abs(parts).max() < 2**10)


def summing(function, name=None, where=slice(None)):
    """`function`, a sum of products of the array arguments, with noise."""
    name = name or function.__name__

    @wraps(function)
    def other(*arguments, **options):
        result = function(*arguments, **options)
        arrays = [a for a in arguments if isinstance(a, (np.ndarray, torch.Tensor))]
        if "out" in options or len(arrays) < 1 or not all(map(_plain, (result, *arrays))):
            return result
        values = [_values(array) for array in arrays]
        if all(map(_whole, values)):
            return result

        def of(change):
            changed = iter(
                [_like(change(value), a) for value, a in zip(values, arrays, strict=True)]
            )
            moved = [
                next(changed) if isinstance(a, (np.ndarray, torch.Tensor)) else a for a in arguments
            ]
            return np.abs(_values(function(*moved, **options)))

        with np.errstate(all="ignore"), torch.no_grad():
            terms = of(lambda value: (value != 0).astype(value.dtype))
            size = of(lambda value: np.abs(value).astype(value.dtype)) * (terms > 1.5)
            noise = _noise(name, arrays, size.shape, size.dtype) * size
            noise = noise * _UNIT[_values(result).dtype.name]
        if not np.isfinite(noise).all():
            return result
        return result + _like(noise.astype(_values(result).dtype), result)

    return other


def product(a, b):
    """``a @ b`` of arrays of any kind, and of anything else that has a product."""
    if isinstance(a, (np.ndarray, torch.Tensor)) and isinstance(b, (np.ndarray, torch.Tensor)):
        return _product(a, b)
    return operator.matmul(a, b)


_product = summing(operator.matmul, "product")


def _nearby(name, matrix, hermitian):
    """A matrix near `matrix` whose exact factorisation is as right an answer as LAPACK's.

    A QR factorisation is that of a matrix near in every column (Higham 2002, theorem 19.4).
    """
    values = _values(matrix)
    largest = np.abs(values).max(axis=-2 if name == "qr" else (-2, -1), keepdims=True)
    # A diagonal, or a permutation of one, is factorised exactly everywhere.
    if not np.isfinite(largest).all() or np.count_nonzero(values) <= max(values.shape[-2:]):
        return matrix
    noise = _noise(name, [matrix], values.shape, values.dtype) * (values != 0)
    if hermitian:
        noise = (noise + np.swapaxes(noise, -1, -2)) / 2
    noise = (noise * largest * _UNIT[values.dtype.name]).astype(values.dtype)
    return matrix + _like(noise, matrix)


def factoring(function, hermitian=False, vectors=()):
    """`function`, a factorisation of one matrix or a stack of them, of a matrix nearby.

    `vectors` tells the axis that counts the vectors in each result, None where there is none.
    """

    @wraps(function)
    def other(matrix, *arguments, **options):
        if not _plain(matrix) or getattr(matrix, "requires_grad", False):
            return function(matrix, *arguments, **options)
        result = function(_nearby(function.__name__, matrix, hermitian), *arguments, **options)
        if not isinstance(result, tuple) or not vectors:
            return result
        pairs = list(zip(result, vectors, strict=True))
        count = min(part.shape[axis] for part, axis in pairs if axis)
        signs = np.sign(_noise("signs", [matrix], (count,), np.float64))
        parts = [part if axis is None else _turned(part, axis, signs) for part, axis in pairs]
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)

    return other


def _turned(part, axis, signs):
    """`part` with the first vectors along `axis` turned by `signs`."""
    full = np.ones(part.shape[axis])
    full[: len(signs)] = signs
    shape = (-1, 1) if axis == -2 else (-1,)
    factor = full.reshape(shape).astype(_values(part).dtype)
    return part * _like(factor, part)


class _Products(ast.NodeTransformer):
    def visit_BinOp(self, node):
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        call = ast.Call(ast.Name(PRODUCT, ast.Load()), [node.left, node.right], [])
        return ast.copy_location(call, node)


class _Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data, path, *, _optimize=-1):
        tree = ast.fix_missing_locations(_Products().visit(ast.parse(data, path)))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module):
        setattr(module, PRODUCT, product)
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname.split(".")[0] not in TREES or fullname.startswith("tnlib.testing"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


def _replace(owners, name, wrapper, **options):
    for owner in owners:
        if hasattr(owner, name):
            setattr(owner, name, wrapper(getattr(owner, name), **options))


def install():
    """Put the noise in place; before tnlib and array_api_compat are imported."""
    assert not set(TREES) & set(sys.modules), "tests.perturbed must come before tnlib"

    everywhere = (np.linalg, torch.linalg)
    _replace(everywhere, "svd", factoring, vectors=(-1, None, -2))
    _replace(everywhere, "eigh", factoring, hermitian=True, vectors=(None, -1))
    _replace((scipy.linalg,), "eigh", factoring, hermitian=True, vectors=(None, -1))
    _replace((*everywhere, scipy.linalg), "eigvalsh", factoring, hermitian=True)
    _replace(everywhere, "svdvals", factoring)
    _replace(everywhere, "inv", factoring)
    _replace(everywhere, "solve", factoring)
    _replace((*everywhere,), "qr", factoring)
    _replace((np, torch), "einsum", summing)
    _replace((np, torch), "tensordot", summing)
    sys.meta_path.insert(0, _Finder())


install()
