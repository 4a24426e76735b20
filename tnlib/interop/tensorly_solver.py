"""How tensorly is called: always with NumPy, in a thread of its own, and a few sweeps at a time.

A thread of its own because a backend context of tensorly, even a local one, sets the backend of
every thread when it ends. A few sweeps at a time because ADMM in tensorly 0.10 takes inactive
constraints for convergence, and stops after the second sweep with whatever error it has by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tnlib.arrays import checks

Constraint: TypeAlias = bool | float | Sequence[Any] | Mapping[int, Any] | None
# For every constrained mode the name of its constraint and the value.
Chosen: TypeAlias = dict[int, tuple[str, Any]]
Matrix: TypeAlias = np.ndarray[Any, Any]

FLAGS = ("monotonicity", "non_negative", "normalize", "unimodality")
COUNTS = ("hard_sparsity", "normalized_sparsity")
AMOUNTS = (
    "group_lasso",
    "l1_reg",
    "l2_reg",
    "l2_square_reg",
    "simplex",
    "smoothness",
    "soft_sparsity",
)
# Constraints that a factor no longer meets when its sign is changed.
_SIGNED = ("monotonicity", "non_negative", "simplex", "unimodality")
_SWEEPS = 5


def load() -> Any:
    """The module tensorly."""
    try:
        import tensorly
    except ImportError as error:
        raise ImportError("this needs tensorly: pip install tensorly") from error
    return tensorly


def with_numpy(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of tensorly where its backend is NumPy, and nowhere else."""
    tensorly = load()

    def call() -> Any:
        tensorly.set_backend("numpy", local_threadsafe=True)
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(call).result()


def chosen(constraints: Mapping[str, Constraint], order: int) -> Chosen:
    """The constraint of every constrained mode, checked."""
    found: Chosen = {}
    for name, given in constraints.items():
        if name not in (*FLAGS, *COUNTS, *AMOUNTS):
            known = ", ".join(sorted((*FLAGS, *COUNTS, *AMOUNTS)))
            raise TypeError(f"unknown constraint {name!r}; the constraints are {known}")
        for mode, value in _by_mode(name, given, order).items():
            if value is None or value is False:
                continue
            if mode in found:
                raise ValueError(
                    f"mode {mode} has two constraints, {found[mode][0]} and {name}; choose one"
                )
            found[mode] = name, _checked(name, value)
    if not found:
        raise ValueError("no mode is constrained; pass a constraint, such as non_negative=True")
    return found


def _by_mode(name: str, given: Constraint, order: int) -> dict[int, Any]:
    if isinstance(given, Mapping):
        modes = [checks.index(f"a mode of {name}", mode, order) for mode in given]
        if len(set(modes)) < len(modes):
            raise ValueError(f"{name} names a mode twice: {dict(given)}")
        return dict(zip(modes, given.values(), strict=True))
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != order:
            raise ValueError(f"{name} must have one value for each of {order} modes, got {given}")
        return dict(enumerate(given))
    return dict.fromkeys(range(order), given)


def _checked(name: str, value: Any) -> Any:
    if name in FLAGS:
        checks.flag(name, value)
        return value
    if name in COUNTS:
        return checks.positive_int(name, value)
    amount = checks.tolerance(name, value)
    if amount == 0.0:
        raise ValueError(f"{name} must be positive, got {value!r}; leave it out for no constraint")
    return amount


@dataclass
class Solution:
    """Factors, the relative error after every sweep, and whether the tolerance was met."""

    factors: list[Matrix]
    trace: list[float]
    converged: bool


def solve(
    data: Matrix, factors: list[Matrix], constraints: Chosen, tol: float, max_iter: int
) -> Solution:
    """Sweep until the error changes by at most `tol`, or `max_iter` times."""
    trace: list[float] = []
    while len(trace) < max_iter:
        steps = min(_SWEEPS, max_iter - len(trace))
        try:
            factors, errors = with_numpy(_sweeps, data, factors, constraints, steps)
        except np.linalg.LinAlgError as error:
            raise _breakdown() from error
        if not all(math.isfinite(value) for value in errors):
            raise _breakdown()
        trace += errors
        mended = _mend_signs(factors, constraints)
        if not mended and len(trace) > 1 and abs(trace[-1] - trace[-2]) <= tol:
            return Solution(factors, trace, True)
    return Solution(factors, trace, False)


def _sweeps(
    data: Matrix, factors: list[Matrix], constraints: Chosen, steps: int
) -> tuple[list[Matrix], list[float]]:
    """Sweeps without an end of their own: no change of the error is below a tolerance of -1."""
    solvers = load().decomposition
    rank = factors[0].shape[1]
    common = {"n_iter_max": steps, "init": (None, list(factors)), "return_errors": True}
    if [name for name, _ in constraints.values()] == ["non_negative"] * data.ndim:
        terms, errors = solvers.non_negative_parafac_hals(data, rank, tol=-1.0, **common)
    else:
        by_name: dict[str, dict[int, Any]] = {}
        for mode, (name, value) in constraints.items():
            by_name.setdefault(name, {})[mode] = value
        terms, errors = solvers.constrained_parafac(data, rank, tol_outer=-1.0, **common, **by_name)
    return list(terms.factors), [float(error) for error in errors]


def _mend_signs(factors: list[Matrix], constraints: Chosen) -> bool:
    """Change the signs of non-negative factors that tensorly left negative, and of free ones.

    tensorly 0.10 clips to the interval from 0 to the largest entry, also where that is negative.
    """
    free = [mode for mode in range(len(factors)) if constraints.get(mode, ("",))[0] not in _SIGNED]
    wrong = [
        mode
        for mode, (name, _) in constraints.items()
        if name == "non_negative" and factors[mode].max() < 0
    ]
    if wrong and not free:
        raise _breakdown()
    for mode in wrong:
        factors[mode], factors[free[0]] = -factors[mode], -factors[free[0]]
    return bool(wrong)


def _breakdown() -> ValueError:
    return ValueError(
        "tensorly's solver broke down: a factor became zero or kept the wrong sign; try weaker "
        "constraints, another rank or another rng"
    )


def start(shape: Sequence[int], rank: int, energy: float, rng: np.random.Generator) -> list[Matrix]:
    """Positive random factors of terms whose sum has the given energy."""
    factors = [rng.random((size, rank)) for size in shape]
    gram = np.prod([factor.T @ factor for factor in factors], axis=0)
    scale = (energy / gram.sum()) ** (0.5 / len(factors))
    return [scale * factor for factor in factors]


def feasible(shape: Sequence[int], rank: int, constraints: Chosen) -> list[Matrix]:
    """Factors that meet the constraints: what they make of ones."""
    project = load().tenalg.proximal.proximal_operator
    factors = [np.ones((size, rank)) for size in shape]
    for mode, (name, value) in constraints.items():
        factors[mode] = with_numpy(project, factors[mode], **{name: value})
    return factors
