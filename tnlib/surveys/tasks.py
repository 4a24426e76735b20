"""The pieces of a survey, each of which a worker does alone: one matrix, or one stack."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tnlib.arrays import backend
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.linalg.preparation import prepare
from tnlib.surveys.inventory import Matrix, Stack
from tnlib.surveys.matrix_survey import leading_factors, matrix_record
from tnlib.surveys.options import Options
from tnlib.surveys.stack_survey import stack_record
from tnlib.weights.tensor import WeightTensor

Record = dict[str, Any]
Factors = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
# Cost of a task up to which threads cost more than they give, and wait for a busy machine.
_SMALL = 1 << 23
# What weights can make go wrong.
_EXPECTED = (ArithmeticError, ImportError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Done:
    """What came of a task: its record, and for updates the leading factors."""

    record: Record
    factors: Factors | None = None


@dataclass(frozen=True)
class MatrixTask:
    """A matrix to look at; for an update with the weight that it is a change of."""

    matrix: Matrix
    tensor: WeightTensor
    options: Options
    base: WeightTensor | None = None

    @property
    def key(self) -> str:
        """By which it is found again."""
        return f"matrix {self.matrix.name}"

    @property
    def cost(self) -> int:
        """About how much work it is, by what was measured."""
        return int(self.matrix.size * (1 + self.matrix.size**0.5 / 2000))

    def run(self) -> Done:
        """Read and survey the matrix."""
        one, rng = self.matrix, _generator(self.key)
        record: Record = {"record": "matrix", "name": one.name, "tensor": one.tensor}
        record |= {"index": one.index, "kind": one.kind, "layer": one.layer, "expert": one.expert}
        record |= {"shape": list(one.shape), "dtype": self.tensor.dtype}
        record |= matrix_record(lambda: _read(self.tensor, one, self.options), self.options, rng)
        if self.base is not None:
            old = prepare(_read(self.base, one, self.options), None)
            record["base_norm"] = math.ldexp(math.sqrt(old.energy), old.exponent)
        factors = None
        if self.options.factors:
            factors = leading_factors(
                _read(self.tensor, one, self.options), self.options.factors, rng
            )
        return Done(record, factors)


@dataclass(frozen=True)
class StackTask:
    """A stack to look at, with the tensors of its matrices."""

    stack: Stack
    tensors: tuple[WeightTensor, ...]
    options: Options

    @property
    def key(self) -> str:
        """By which it is found again."""
        return f"stack {self.stack.name}"

    @property
    def cost(self) -> int:
        """About how much work it is."""
        return len(self.tensors) * self.stack.matrices[0].size // 2

    def run(self) -> Done:
        """Read the matrices one by one, a few times."""
        matrices = self.stack.matrices
        pairs = zip(self.tensors, matrices, strict=True)
        read = [lambda t=t, m=m: _on_cpu(_read(t, m, self.options)) for t, m in pairs]
        found = stack_record(read, matrices[0].shape, self.options, _generator(self.key))
        record: Record = {"record": "stack", "name": self.stack.name, "over": self.stack.over}
        record |= {"kind": matrices[0].kind, "shape": list(matrices[0].shape)}
        record |= {"matrices": [matrix.name for matrix in matrices]}
        return Done(record | found)


class Task(Protocol):
    """A piece of work that gives one record."""

    @property
    def key(self) -> str:
        """By which it is found again: what it is, and of what."""

    @property
    def cost(self) -> int:
        """About how much work it is, in any unit."""

    def run(self) -> Done:
        """Do it."""


def done(task: Task, threads: int | None) -> tuple[str, Done]:
    """Do a task with so many threads; what fails is recorded, and does not stop the others.

    Returns
    -------
    (str, Done)
        The key of the task, and its result.
    """
    from threadpoolctl import threadpool_limits

    begin = time.perf_counter()
    try:
        with threadpool_limits(1 if task.cost < _SMALL else threads), own_arithmetic():
            found = task.run()
    except MemoryError:
        found = Done(_failed(task, "there is not enough memory; use fewer workers"))
    except _EXPECTED as error:
        found = Done(_failed(task, " ".join(str(error).split())))
    found.record["seconds"] = round(time.perf_counter() - begin, 4)
    return task.key, found


def failure(task: Task, reason: str) -> Done:
    """What stands in the place of a result that could not be had."""
    return Done(_failed(task, reason) | {"seconds": 0.0})


def _failed(task: Task, reason: str) -> Record:
    what, _, name = task.key.partition(" ")
    return {"record": "failure", "what": what, "name": name, "reason": reason}


def _generator(key: str) -> np.random.Generator:
    """Randomness that depends on the task alone, so that no order of tasks changes a result."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))


def _read(tensor: WeightTensor, matrix: Matrix, options: Options) -> Any:
    """The numbers of a matrix in the precision and on the device of the survey."""
    values = tensor.read(matrix.index).reshape(matrix.shape)
    if options.dtype is not None and not backend.is_complex(values.dtype):
        values = values.astype(options.dtype, copy=False)
    if options.device is None:
        return values
    import torch

    return torch.from_numpy(np.array(values)).to(options.device)


def _on_cpu(values: Any) -> np.ndarray[Any, Any]:
    return backend.to_numpy(values)
