"""Measuring the rates of a machine, on request."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tnlib.arrays import backend, checks
from tnlib.arrays.backend import Array
from tnlib.contraction.arguments import DType
from tnlib.contraction.kernel import compiled
from tnlib.contraction.roofline import LARGE, SMALL, Roofline
from tnlib.contraction.tree import Step

if TYPE_CHECKING:
    import torch

# Seconds and repeats for one number.
_PATIENCE, _REPEATS = 0.3, 25


def measure_roofline(
    dtype: DType = "float32",
    *,
    library: Literal["torch", "numpy"] = "torch",
    device: str | torch.device = "cpu",
) -> Roofline:
    """Measure how fast this machine multiplies, reads, writes and transposes.

    Takes a few seconds and a few hundred MB; keep the result with :meth:`Roofline.save`.

    Parameters
    ----------
    dtype : dtype or str, optional
        Floating type of the arrays.
    library : {"torch", "numpy"}, optional
        Whose arrays are to be contracted.
    device : str or torch.device, optional
        Where torch computes; "cpu" for NumPy.

    Returns
    -------
    Roofline

    Raises
    ------
    TypeError
        If the library does not have the dtype.
    ValueError
        If the library is unknown, or the device is none here that holds data.

    Examples
    --------
    >>> roofline = measure_roofline("float64", library="numpy")
    >>> roofline.library, roofline.itemsize, roofline.flops_per_second > 0
    ('numpy', 8, True)
    """
    clock = _Clock(library, dtype, device)
    few, side, batch = 8, 768, 4096
    make, itemsize = clock.make, int(clock.make(1).itemsize)

    one = make(2, 2, 2)
    usual = compiled(Step((0, 1), ("abc", "bdc"), "ad"), [(2, 2, 2)] * 2, clock.torch)
    step = clock.seconds(lambda: usual(one, one))

    square = make(side, side)
    rate = 2 * side**3 / clock.seconds(lambda: square @ square)

    wide = make(2 * side, 2 * side)
    rows = make(few, 2 * side)
    reading = wide.size if library == "numpy" else wide.numel()
    read = reading * itemsize / clock.seconds(lambda: rows @ wide)

    def writing(size: int) -> float:
        column, row = make(size // (512 * itemsize), 1), make(1, 512)
        return size / clock.seconds(lambda: column * row)

    cube = make(96, 96, 96)
    moving = [
        clock.seconds(lambda: clock.moved(cube, (0, 2, 1))),
        clock.seconds(lambda: clock.moved(cube, (2, 1, 0))),
    ]

    matrices = make(batch, few, few)
    spent = clock.seconds(lambda: matrices @ matrices) - step - 2 * batch * few**3 / rate
    return Roofline(
        library=library,
        device=clock.device,
        dtype=backend.dtype_name(one.dtype),
        itemsize=itemsize,
        flops_per_second=rate,
        read_bytes_per_second=read,
        write_bytes_per_second=writing(SMALL),
        fresh_bytes_per_second=writing(LARGE),
        move_bytes_per_second=96**3 * itemsize / math.sqrt(math.prod(moving)),
        seconds_per_step=step,
        seconds_per_batch=max(spent, 0.0) / batch,
    )


class _Clock:
    """Arrays of one library, device and dtype, and the time that functions of them take."""

    def __init__(self, library: str, dtype: Any, device: Any) -> None:
        if library not in ("numpy", "torch"):
            raise ValueError(f"library must be 'numpy' or 'torch', got {library!r}")
        place = checks.real_device(library, device)
        self.torch = import_module("torch") if library == "torch" else None
        self.device = "cpu" if place is None else str(place)
        namespace = import_module(f"array_api_compat.{library}")
        self.dtype = backend.resolve_dtype(namespace, dtype)
        self.rng = np.random.default_rng(0)

    def make(self, *shape: int) -> Array:
        values = self.rng.standard_normal(shape, dtype=np.float32)
        if self.torch is None:
            return values.astype(self.dtype)
        return self.torch.from_numpy(values).to(self.device, self.dtype)

    def _wait(self) -> None:
        if self.torch is not None and self.device.startswith("cuda"):
            self.torch.cuda.synchronize(self.device)

    def moved(self, array: Array, order: tuple[int, ...]) -> Array:
        """A transposed copy."""
        if self.torch is None:
            return np.ascontiguousarray(np.transpose(array, order))
        return array.permute(order).contiguous()

    def seconds(self, function: Callable[[], Array]) -> float:
        """Median time of a call."""
        wait = self._wait
        function()
        spent: list[float] = []
        while len(spent) < _REPEATS and sum(spent) < _PATIENCE:
            wait()
            start = time.perf_counter()
            function()
            wait()
            spent.append(time.perf_counter() - start)
        return statistics.median(spent)
