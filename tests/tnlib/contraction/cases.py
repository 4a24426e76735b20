"""Random contractions of every dtype, and what is true of each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from tests.tolerances import rounding
from tnlib import contract, plan_contraction

INTEGERS = ("uint8", "int16", "int32", "int64")
INEXACT = ("float16", "float32", "float64", "complex64", "complex128")
DTYPES = {
    "numpy": ("bool", *INTEGERS, *INEXACT),
    "torch": ("bool", *INTEGERS, "bfloat16", *INEXACT),
}
LETTERS = "abcdefg"
# Of the loop over all indices, of one operand, and of a sum that float16 holds on every way.
LARGEST_LOOP, LARGEST_OPERAND, LARGEST_HALF = 20_000, 3_000, 2_000


@dataclass
class Case:
    """One contraction: its equation, operands as both libraries see them, and options."""

    library: str
    dtypes: list[str]
    equation: str
    arrays: list
    constants: tuple[int, ...]
    minimize: str
    values: list = field(default_factory=list)

    def __str__(self):
        shapes = [tuple(array.shape) for array in self.arrays]
        return (
            f"{self.library} {self.equation} {shapes} {self.dtypes} constants={self.constants} "
            f"minimize={self.minimize}"
        )


def draw(rng) -> Case:
    """A random contraction that one loop can check, and whose sums are in range."""
    while True:
        case = _drawn(rng)
        if case is not None and fits(case):
            return case


def _drawn(rng):
    library = str(rng.choice(sorted(DTYPES)))
    known = DTYPES[library]
    count = int(rng.integers(1, 5))
    dtypes = [str(rng.choice(known))] * count
    if library == "numpy" and rng.random() < 0.4:
        dtypes = [str(name) for name in rng.choice(known, count)]
    sizes = {i: int(rng.choice([0, 1, 2, 3, 4, 5], p=[0.03, 0.22, *[0.1875] * 4])) for i in LETTERS}
    dots = [
        int(n) for n in rng.choice([0, 1, 2, 3, 4], rng.integers(1, 3), p=[0.05, *[0.2375] * 4])
    ]
    dotted = rng.random() < 0.4
    terms, shapes = [], []
    for _ in range(count):
        letters = [str(i) for i in rng.choice(list(LETTERS), rng.integers(0, 5))]
        shape = [sizes[i] for i in letters]
        if dotted and rng.random() < 0.7:
            own = [n if rng.random() < 0.6 else 1 for n in dots[rng.integers(0, len(dots) + 1) :]]
            place = int(rng.integers(0, len(letters) + 1))
            letters.insert(place, "...")
            shape[place:place] = own
        terms.append("".join(letters))
        shapes.append(tuple(shape))
    equation = _with_result(rng, ",".join(terms))
    loop = math.prod(sizes[i] for i in set("".join(terms)) - {"."}) * math.prod(dots)
    if loop > LARGEST_LOOP or any(math.prod(shape) > LARGEST_OPERAND for shape in shapes):
        return None
    pairs = zip(dtypes, shapes, strict=True)
    values = [np.asarray(_values(rng, name, shape)) for name, shape in pairs]
    arrays = [_moved(rng, library, *pair) for pair in zip(values, dtypes, strict=True)]
    constants = tuple(int(k) for k in range(count) if rng.random() < 0.4)
    minimize = str(rng.choice(["flops", "memory"]))
    return Case(library, dtypes, equation, arrays, constants, minimize, values)


def _with_result(rng, terms):
    if rng.random() < 0.15:
        return terms
    present = sorted(set(terms) - {",", "."})
    kept = [str(i) for i in rng.permutation(present)[: rng.integers(0, 4)]] if present else []
    if "..." in terms and rng.random() < 0.85:
        kept.insert(int(rng.integers(0, len(kept) + 1)), "...")
    return f"{terms}->{''.join(kept)}"


def _values(rng, name, shape):
    """Numbers of a dtype, exactly, as NumPy's; of floats neither small nor large ones."""
    if name == "bool":
        return rng.random(shape) < 0.4
    if name in INTEGERS:
        limits = np.iinfo(name)
        if rng.random() < 0.5:
            limits = np.iinfo("uint8") if name == "uint8" else np.iinfo("int8")
        return rng.integers(limits.min, limits.max, shape, name, endpoint=True)
    numbers = _floats(rng, shape)
    if name.startswith("complex"):
        return (numbers + 1j * _floats(rng, shape)).astype(name)
    if name == "bfloat16":
        return torch.from_numpy(numbers).bfloat16().float().numpy()
    return numbers.astype(name)


def _floats(rng, shape):
    return np.asarray(rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape))


def _moved(rng, library, values, name):
    """The values as an array of the library, often one that is not contiguous."""
    values = np.asarray(values)
    kind = int(rng.integers(0, 5))
    axes = rng.permutation(values.ndim)
    if kind == 1:
        values = values.transpose(axes).copy().transpose(np.argsort(axes))
    elif kind == 2:
        wide = np.repeat(values, 2, axis=-1) if values.ndim else values
        values = wide[..., ::2] if values.ndim else values
    elif kind == 3 and library == "numpy" and values.ndim:
        values = values[::-1].copy()[::-1]
    if library == "numpy":
        return values
    if name == "bfloat16":
        return torch.from_numpy(values).bfloat16()
    tensor = torch.from_numpy(values)
    return tensor.conj().resolve_conj().conj() if kind == 4 and tensor.is_complex() else tensor


def check(case):
    """Planned, folded and contracted at once it is what one loop gives; nothing is shared."""
    plan = plan_contraction(
        case.equation, *case.arrays, constants=(), requires_grad=(), minimize=case.minimize
    )
    results = [plan(*case.arrays), contract(case.equation, *case.arrays)]
    if case.constants:
        shapes = [tuple(array.shape) for array in case.arrays]
        folded = plan_contraction(
            case.equation, *shapes, constants=case.constants, minimize=case.minimize
        ).folded(*(case.arrays[k] for k in case.constants))
        rest = [array for k, array in enumerate(case.arrays) if k not in case.constants]
        spoiled = folded(*rest)
        spoiled[...] = 1
        results.append(folded(*rest))
    expected, allowed, dtype = reference(case)
    for result in results:
        name = str(result.dtype).removeprefix("torch.")
        assert name == dtype, f"{case}: {name}, not {dtype}"
        assert tuple(result.shape) == expected.shape, f"{case}: {tuple(result.shape)}"
        off = np.abs(_plain(result) - expected)
        assert np.all(off <= allowed), f"{case}: off by {off.max()}, allowed {np.max(allowed)}"
        assert not any(_shared(result, array) for array in case.arrays), f"{case}: shared memory"


def reference(case):
    """The result by one loop over all indices, how far from it one may be, and the dtype."""
    names = case.dtypes
    dtype = np.result_type(*names).name if case.library == "numpy" else names[0]
    if dtype == "bool":
        return np.asarray(loop(case.equation, _exact(case)) > 0), 0, dtype
    if dtype in INTEGERS:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        shift, span = np.asarray(low, dtype=object), high - low + 1
        wrapped = (loop(case.equation, _exact(case)) - shift) % span + shift
        return np.asarray(wrapped, dtype=object), 0, dtype
    wide = np.complex128 if dtype.startswith("complex") else np.float64
    values = [v.astype(wide) for v in case.values]
    size = loop(case.equation, [np.abs(v) for v in values])
    return loop(case.equation, values), rounding(dtype, operations(case)) * size, dtype


def operations(case):
    """Additions and products behind one entry, those of rounding the operands included."""
    terms = math.prod(sizes(case).values())
    several = 4 if any(name.startswith("complex") for name in case.dtypes) else 1
    return several * (terms + 3 * len(case.arrays) + 2)


def sizes(case):
    """Sizes of all indices; an ellipsis is one."""
    found = {}
    for term, array in zip(case.equation.split("->")[0].split(","), case.arrays, strict=True):
        before, dots, after = term.partition("...")
        shape = tuple(array.shape)
        middle = shape[len(before) : len(shape) - len(after)]
        found |= dict(zip(before, shape, strict=False))
        found |= dict(zip(after[::-1], shape[::-1], strict=False))
        if dots:
            found["..."] = max(found.get("...", 1), math.prod(middle), 1)
    return found


def _exact(case):
    """Operands of Python's integers."""
    return [np.asarray(value, dtype=object) for value in case.values]


def loop(equation, arrays):
    """``np.einsum`` that also sums an ellipsis which the result does not have."""
    terms, arrow, output = equation.partition("->")
    extra = "..." in terms and bool(arrow) and "..." not in output
    written = f"{terms}->...{output}" if extra else equation
    kind = np.result_type(*(array.dtype for array in arrays))
    result = np.asarray(np.einsum(written, *arrays), dtype=kind)
    if not all(array.size for array in arrays):
        # A sum of nothing, which NumPy leaves undefined for objects.
        result = np.zeros(result.shape, result.dtype)
    if extra:
        result = result.sum(axis=tuple(range(result.ndim - len(output))))
    return np.asarray(result, dtype=kind)


def check_gradients(case):
    """Gradients of a folded plan are those of torch.einsum in float64."""
    wide = torch.complex128 if case.dtypes[0].startswith("complex") else torch.float64
    free = [k for k in range(len(case.arrays)) if k not in case.constants]
    mine = [array.detach().clone().requires_grad_(k in free) for k, array in enumerate(case.arrays)]
    plan = plan_contraction(
        case.equation,
        *(tuple(array.shape) for array in mine),
        constants=case.constants,
        requires_grad=free,
        minimize=case.minimize,
    )
    if case.constants:
        plan = plan.folded(*(mine[k] for k in case.constants))
    result = plan(*(mine[k] for k in free))
    gradients = _gradients(result, [mine[k] for k in free])
    expected, largest = (
        _reference_gradients(case, [change(array.detach().to(wide)) for array in mine], free)
        for change in (lambda x: x, lambda x: x.abs().to(wide))
    )
    allowed = rounding(case.dtypes[0], operations(case))
    for k, gradient, right, size in zip(free, gradients, expected, largest, strict=True):
        off = (gradient.to(wide) - right).abs()
        assert bool((off <= allowed * size.abs()).all()), f"{case}: gradient {k} {off.max()}"


def _reference_gradients(case, values, free):
    leaves = [value.clone().requires_grad_(k in free) for k, value in enumerate(values)]
    return _gradients(torch.einsum(case.equation, *leaves), [leaves[k] for k in free])


def _gradients(result, leaves):
    """Of the sum of all entries; zeros where there are none."""
    total = result.real.sum() + result.imag.sum() if result.is_complex() else result.sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    pairs = zip(found, leaves, strict=True)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in pairs]


def has_gradients(case):
    """Whether the operands are floating tensors, some of them no constants."""
    inexact = case.dtypes[0] not in ("bool", *INTEGERS)
    return case.library == "torch" and inexact and len(case.constants) < len(case.arrays)


def fits(case):
    """Whether no sum can overflow half precision."""
    halves = [name for name in case.dtypes if name == "float16"]
    values = [np.abs(v.astype(np.complex128)) for v in case.values]
    return not halves or loop(case.equation, values).real.max(initial=0) < LARGEST_HALF


def _plain(result):
    if isinstance(result, torch.Tensor):
        result = result.detach().resolve_conj()
        result = result.float() if result.dtype == torch.bfloat16 else result
        result = result.numpy()
    if result.dtype.kind in "iu":
        return result.astype(object)
    return result.astype(np.complex128 if result.dtype.kind == "c" else np.float64)


def _shared(result, operand):
    pair = [x.resolve_conj() if isinstance(x, torch.Tensor) else x for x in (result, operand)]
    pair = [
        x.float() if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 else x for x in pair
    ]
    return np.shares_memory(*(np.asarray(x) for x in pair))
