"""What NumPy and torch do not already share through the array API.

Every algorithm of the package is written once, against the array-API names that
``array_api_compat`` gives both libraries. This module adds the handful of things the standard
lacks: choosing the working precision, sums in float64, partial eigenproblems, random blocks.
It looks at the type of its input and never imports torch by itself.
"""

from __future__ import annotations

import contextlib
import math
import operator
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeAlias, cast

import numpy as np
from array_api_compat import array_namespace, is_numpy_array, is_torch_array

from tnlib.common.type_aliases import RNG

# A numpy.ndarray or a torch.Tensor. No static type covers both, so the alias is for the reader.
Array: TypeAlias = Any

FLOATING = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
# Elements of one dot product, and of a residual, that are formed at a time.
_BLOCK = 1 << 16
_RESIDUAL_BLOCK = 1 << 18
_RESIDUAL_COLUMNS = 1 << 12
# The NumPy side of array_api_compat.
_NUMPY = array_namespace(np.empty(0))


def namespace(*arrays: Array) -> Any:
    """Return the one array-API namespace of `arrays`, or raise TypeError."""
    if arrays and all(type(array) is np.ndarray for array in arrays):
        return _NUMPY
    for array in arrays:
        if not (is_numpy_array(array) or is_torch_array(array)):
            raise TypeError(
                f"expected a NumPy array or a torch tensor, got {type(array).__name__}; "
                f"convert it first, with {_conversion(array)}"
            )
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(
                "a masked array was given, and its mask would be lost; fill its holes first, "
                "with filled(), and pass mask= where a function takes it"
            )
    if len({is_torch_array(array) for array in arrays}) > 1:
        kinds = ", ".join(type(array).__module__.split(".")[0] for array in arrays)
        raise TypeError(
            f"all arrays must come from one library, got {kinds}; "
            "convert them with torch.from_numpy or tensor.numpy()"
        )
    return array_namespace(*arrays)


def _conversion(value: Any) -> str:
    """What makes an array of `value`: sparse arrays and other formats have a method for that."""
    for name in ("toarray", "to_dense", "todense"):
        if hasattr(value, name):
            return f"its method {name}()"
    return "numpy.asarray"


def is_torch(array: Array) -> bool:
    """Whether `array` is a torch tensor."""
    return bool(is_torch_array(array))


def base(array: Array) -> Array:
    """`array` without the rules of a subclass: a numpy.matrix as an ndarray of its entries.

    An ndarray of foreign byte order becomes one of the machine's. Subclasses of tensors that hold
    their data in another way are left as they are.
    """
    if isinstance(array, np.ndarray):
        array = np.asarray(array)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return array


def is_wrapper(array: Array) -> bool:
    """Whether `array` is a tensor whose entries are not those of its own memory."""
    if not is_torch(array):
        return False
    torch = sys.modules["torch"]
    dispatch = type(array).__torch_dispatch__
    return dispatch is not torch.Tensor.__torch_dispatch__ or hasattr(array, "quant_state")


def plain(array: Array) -> Array:
    """Return the data of `array` as a plain tensor or ndarray, outside any autograd graph.

    A leaf such as ``nn.Parameter`` is read as data. A tensor that was computed from parameters
    is refused: gradients through truncated singular vectors are not finite in general.
    """
    if not is_torch(array):
        return np.asarray(array)
    if array.requires_grad and not array.is_leaf and sys.modules["torch"].is_grad_enabled():
        raise ValueError(
            "the tensor is part of an autograd graph and a decomposition is not differentiable: "
            "pass tensor.detach(), or call inside torch.no_grad()"
        )
    # torch loses the sign of a lazily negated half tensor that it copies into another dtype.
    return array.detach().resolve_neg()


def requires_grad(array: Array) -> bool:
    """Whether gradients will flow to `array`."""
    return is_torch(array) and bool(array.requires_grad)


def detached(array: Array) -> Array:
    """The data of `array`, outside any autograd graph."""
    return array.detach() if is_torch(array) else array


def is_traced(array: Array) -> bool:
    """Whether `array` has no values that can be looked at: under torch.func or torch.compile,
    on the meta device, in a FakeTensor.
    """
    if not is_torch(array):
        return False
    torch = sys.modules["torch"]
    return bool(
        torch.compiler.is_compiling()
        or array.device.type == "meta"
        or is_wrapper(array)
        or torch._C._functorch.is_functorch_wrapped_tensor(array)
    )


def is_differentiated(array: Array) -> bool:
    """Whether derivatives with respect to `array` may be asked for, of whatever kind."""
    if not is_torch(array):
        return False
    torch = sys.modules["torch"]
    if array.requires_grad and torch.is_grad_enabled():
        return True
    dual = torch.autograd.forward_ad.unpack_dual
    return is_traced(array) or dual(array).tangent is not None


def resolve_dtype(xp: Any, dtype: Any) -> Any:
    """Turn a dtype of either library, or its name, into a floating dtype of namespace `xp`."""
    name = dtype_name(dtype)
    if "torch." not in str(dtype) and not isinstance(dtype, str):
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = repr(dtype)
    choices = [known for known in FLOATING if hasattr(xp, known)]
    if name not in choices:
        raise TypeError(f"dtype must be one of {', '.join(choices)}, got {dtype!r}")
    return np.dtype(name) if is_numpy_namespace(xp) else getattr(xp, name)


def is_numpy_namespace(xp: Any) -> bool:
    """Whether `xp` is the NumPy side of array_api_compat."""
    return "numpy" in str(xp.__name__)


@lru_cache(maxsize=64)
def dtype_name(dtype: Any) -> str:
    """Name of a dtype of either library, such as ``"bfloat16"``; NumPy's types have one too."""
    return np.dtype(dtype).name if isinstance(dtype, type) else str(dtype).removeprefix("torch.")


@lru_cache(maxsize=64)
def is_complex(dtype: Any) -> bool:
    """Whether `dtype` is complex."""
    return dtype_name(dtype).startswith("complex")


@lru_cache(maxsize=64)
def is_half(dtype: Any) -> bool:
    """Whether `dtype` has fewer bits than float32."""
    return dtype_name(dtype) in ("float16", "bfloat16", "complex32")


def unit_roundoff(dtype: Any) -> float:
    """Half the distance from 1 to the next larger number of a floating dtype of either library."""
    name = dtype_name(dtype)
    return 2.0**-8 if name == "bfloat16" else float(np.finfo(name).eps) / 2


def exponent_range(dtype: Any) -> tuple[int, int]:
    """Exponents e of a floating dtype: normal numbers lie in [2^(e_min - 1), 2^e_max)."""
    name = dtype_name(dtype)
    if name == "bfloat16":
        return -125, 128
    limits = np.finfo("complex64" if name == "complex32" else name)
    return int(limits.minexp) + 1, int(limits.maxexp)


def default_float(xp: Any) -> Any:
    """The floating type that integers become: float64 in NumPy, torch's default in torch."""
    if is_numpy_namespace(xp):
        return np.dtype(np.float64)
    return sys.modules["torch"].get_default_dtype()


def working_dtype(xp: Any, dtype: Any) -> Any:
    """The precision in which arrays of `dtype` are computed: never below float32."""
    if dtype_name(dtype) == "complex32":
        return xp.complex64
    return xp.float32 if is_half(dtype) else dtype


def double(xp: Any, dtype: Any) -> Any:
    """float64 or complex128, whichever holds `dtype`."""
    return xp.complex128 if is_complex(dtype) else xp.float64


def adjoint(matrix: Array) -> Array:
    """Conjugate transpose of the last two axes, as a view where the data is real."""
    transposed = matrix.mT
    return transposed.conj() if is_complex(matrix.dtype) else transposed


def astype(array: Array, dtype: Any) -> Array:
    """Cast `array` to `dtype`; no copy when it already has that type."""
    if array.dtype == dtype:
        return array
    return array_namespace(array).astype(array, dtype, copy=False)


def narrowed(array: Array, dtype: Any) -> Array:
    """`array` in `dtype`; what is out of its range becomes infinite or zero."""
    if array.dtype == dtype:
        return array
    with out_of_range_allowed():
        return astype(array, dtype)


def real_view(array: Array) -> Array:
    """The real numbers that `array` is made of."""
    if not is_complex(array.dtype):
        return array
    if is_torch(array):
        return sys.modules["torch"].view_as_real(array.resolve_conj())
    return np.stack([array.real, array.imag], axis=-1)


def complex_of(real: Array, imaginary: Array) -> Array:
    """Complex numbers of two real arrays, infinite ones too."""
    if is_torch(real):
        return sys.modules["torch"].complex(real, imaginary)
    result = np.empty(real.shape, np.result_type(real, np.complex64))
    result.real, result.imag = real, imaginary
    return result


def sizes(array: Array) -> Array:
    """Absolute values; for complex numbers those of the larger part, which never overflow."""
    xp = array_namespace(array)
    if not is_complex(array.dtype):
        return xp.abs(array)
    return xp.maximum(xp.abs(xp.real(array)), xp.abs(xp.imag(array)))


def frexp_exponents(array: Array) -> Array:
    """Exponents of the powers of two above positive numbers; 0 for zero."""
    if is_torch(array):
        return sys.modules["torch"].frexp(array).exponent
    return np.frexp(array)[1]


def clipped(exponents: Array, limit: int) -> Array:
    """Integers, none beyond -limit and limit."""
    if is_torch(exponents):
        return exponents.clamp(-limit, limit)
    return np.minimum(np.maximum(exponents, -limit), limit)


def power_of_two(exponents: Array, dtype: Any) -> Array:
    """2 to integer exponents that `dtype` can have."""
    if is_torch(exponents):
        return exponents.to(dtype).exp2()
    return np.ldexp(dtype.type(1), exponents)


def out_of_range_allowed() -> Any:
    """A context in which NumPy lets numbers become infinite or zero in silence."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return np.errstate(over="ignore", under="ignore")


def magnitude(array: Array) -> float:
    """Largest absolute value of a non-empty array; nan or inf if it holds one."""
    values = real_view(array)
    low, high = float(values.min()), float(values.max())
    return max(abs(low), abs(high)) if low == low and high == high else float("nan")


def exponent(array: Array) -> int:
    """Exponent of the power of two above the largest entry; 0 for zeros."""
    return math.frexp(magnitude(detached(array)))[1]


def column_scales(matrix: Array) -> Array:
    """Powers of two that bring the largest entry of every column near 1; 1 for zero columns."""
    xp = array_namespace(matrix)
    largest = to_numpy(xp.max(xp.abs(matrix), axis=0)).astype(np.float64)
    limit = 100 if dtype_name(matrix.dtype) in ("float32", "complex64") else 1000
    exponents = np.clip(np.frexp(largest)[1], -limit, limit)
    return astype(from_numpy(np.ldexp(1.0, -exponents), matrix), matrix.dtype)


def energy(array: Array) -> float:
    """Sum of squared absolute values, accumulated in float64 over short blocks."""
    flat = real_view(array).reshape(-1)
    return sum(float(block @ block) for block in blocks(flat, _BLOCK))


def blocks(array: Array, size: int) -> Iterator[Array]:
    """Consecutive pieces of `array` along its first axis, `size` rows each."""
    return (array[start : start + size] for start in range(0, array.shape[0], size))


def residual_energy(matrix: Array, left: Array, right: Array) -> float:
    """Sum of squares of ``matrix - left @ right``, formed a tile at a time."""
    total = []
    for start in range(0, matrix.shape[1], _RESIDUAL_COLUMNS):
        columns = slice(start, start + _RESIDUAL_COLUMNS)
        part = right[:, columns]
        step = max(1, _RESIDUAL_BLOCK // part.shape[1])
        pairs = zip(blocks(matrix, step), blocks(left, step), strict=True)
        total += [energy(rows[:, columns] - factor @ part) for rows, factor in pairs]
    return math.fsum(total)


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """The values of a small array on the CPU."""
    return np.asarray(array.resolve_conj().resolve_neg().cpu() if is_torch(array) else array)


def on_cpu(array: Array) -> bool:
    """Whether NumPy can read the memory of `array`."""
    return not is_torch(array) or array.device.type == "cpu"


def from_numpy(values: np.ndarray[Any, Any], like: Array) -> Array:
    """`values` in the library and on the device of `like`, in the dtype of `values`.

    Shared memory where torch can: it knows no negative strides, not even of an axis of size 1.
    """
    if not is_torch(like):
        return values
    if min(values.strides, default=0) < 0 or not values.flags.writeable:
        values = values.copy()
    return sys.modules["torch"].from_numpy(values).to(like.device)


def owned(array: Array) -> Array:
    """A copy of `array`, to be changed in place."""
    return array_namespace(array).asarray(array, copy=True)


def times_power_of_two(array: Array, exponent: int) -> Array:
    """Multiply `array` by 2^exponent in place, exactly wherever the result is a normal number.

    In two factors, because the power itself may be out of range.
    """
    half = exponent // 2
    with out_of_range_allowed():
        array *= 2.0**half
        array *= 2.0 ** (exponent - half)
    return array


def restored(values: Array, like: Array, dtype: Any) -> Array:
    """`values` as a contiguous array of its own in the library and device of `like`.

    Raises
    ------
    ValueError
        If they overflow `dtype`.
    """
    if isinstance(values, np.ndarray):
        values = from_numpy(np.ascontiguousarray(values), like)
    with out_of_range_allowed():
        result = array_namespace(like).astype(values, dtype, copy=False)
    if not magnitude(result) < math.inf:
        raise ValueError(
            f"the result overflows {dtype_name(dtype)}: scale the array down, or pass a wider "
            "dtype="
        )
    return result


def computable(array: Array, like: Array) -> Array:
    """`array` in the dtype of `like`, and in NumPy where `like` is."""
    if isinstance(like, np.ndarray) and is_torch(array):
        torch = sys.modules["torch"]
        return to_numpy(array.to(getattr(torch, like.dtype.name)))
    return array_namespace(array).astype(array, like.dtype, copy=False)


def as_generator(rng: RNG) -> np.random.Generator:
    """A NumPy generator from None (seed 0), an int, a NumPy or a torch generator.

    Random numbers are always drawn by NumPy, so both libraries see the same ones.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(rng, torch.Generator):
        draw = torch.randint(2**63 - 1, (1,), generator=rng, device=rng.device)
        return np.random.default_rng(int(draw))
    try:
        if isinstance(rng, bool):
            raise TypeError
        return np.random.default_rng(0 if rng is None else operator.index(cast(int, rng)))
    except (TypeError, ValueError):
        raise TypeError(
            "rng must be None, a non-negative int, a numpy.random.Generator or a torch.Generator, "
            f"got {rng!r}"
        ) from None


def normal(rng: np.random.Generator, shape: tuple[int, ...], like: Array) -> Array:
    """Standard normal numbers in the library, dtype and device of `like`."""
    xp = array_namespace(like)
    values: np.ndarray[Any, Any] = rng.standard_normal(shape)
    if is_complex(like.dtype):
        values = values + 1j * rng.standard_normal(shape)
    return xp.astype(from_numpy(values, like), like.dtype)
