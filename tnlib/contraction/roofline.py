"""Time instead of operations: a model of a machine with a few measured rates.

A roofline (Williams, Waterman and Patterson, CACM 52, 2009) says that a kernel takes the longer of
its arithmetic and its memory traffic. Here a step takes a fixed overhead, one more for every
matrix of a batch, the longer of arithmetic and reading, and then writing its result, which is
slower for a large array, whose memory is new, and moving what must be transposed before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tnlib.arrays import checks
from tnlib.common import atomic
from tnlib.contraction.layout import copies
from tnlib.contraction.network import Network
from tnlib.contraction.tree import Step

# Bytes between which writing goes from the rate of small arrays to that of large ones.
SMALL, LARGE = 1 << 19, 1 << 25


@dataclass(frozen=True)
class Roofline:
    """Rates of one machine for one library, device and dtype.

    Made by :func:`measure_roofline`, read from a file, or written down by hand.

    Attributes
    ----------
    library : {"numpy", "torch"}
        Whose arrays are contracted.
    device : str
        "cpu", or a torch device.
    dtype : str
        Name of the numbers' type, such as "float32".
    itemsize : int
        Bytes of one number.
    flops_per_second : float
        Of a large matrix product; a product and a sum are two operations.
    read_bytes_per_second : float
        Of a matrix product with few rows.
    write_bytes_per_second, fresh_bytes_per_second : float
        Of results that are small, and of those whose memory is new.
    move_bytes_per_second : float
        Of transposed copies.
    seconds_per_step, seconds_per_batch : float
        Overhead of a product, and of each further matrix in a batch of them.

    Raises
    ------
    ValueError
        If a rate is not positive and finite, or an overhead is negative.

    Examples
    --------
    >>> from tnlib import plan_contraction
    >>> rates = (1e11, 1e10, 1e10, 4e9, 2e9)
    >>> roofline = Roofline("torch", "cpu", "float32", 4, *rates, 1e-5, 1e-7)
    >>> plan = plan_contraction("bi,ij->bj", (512, 768), (768, 768))
    >>> f"{1e3 * plan.predicted(roofline):.1f} ms"
    '18.8 ms'
    """

    library: str
    device: str
    dtype: str
    itemsize: int
    flops_per_second: float
    read_bytes_per_second: float
    write_bytes_per_second: float
    fresh_bytes_per_second: float
    move_bytes_per_second: float
    seconds_per_step: float
    seconds_per_batch: float

    def __post_init__(self) -> None:
        if self.library not in ("numpy", "torch"):
            raise ValueError(f"library must be 'numpy' or 'torch', got {self.library!r}")
        if not (isinstance(self.device, str) and isinstance(self.dtype, str)):
            raise TypeError("device and dtype must be names")
        checks.positive_int("itemsize", self.itemsize)
        for entry in fields(self)[4:]:
            value = getattr(self, entry.name)
            least = 0.0 if entry.name.startswith("seconds") else 5e-324
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{entry.name} must be a number, got {value!r}")
            if not least <= value < math.inf:
                raise ValueError(f"{entry.name} must be positive and finite, got {value!r}")

    def save(self, path: str | Path) -> None:
        """Write the rates to a JSON file, whole or not at all.

        Examples
        --------
        >>> import tempfile
        >>> rates = (1e11, 1e10, 1e10, 4e9, 2e9)
        >>> roofline = Roofline("torch", "cpu", "float32", 4, *rates, 1e-5, 1e-7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     roofline.save(f"{folder}/cpu.json")
        ...     Roofline.load(f"{folder}/cpu.json") == roofline
        True
        """
        atomic.replace(Path(path), (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Roofline:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        ValueError
            If the file is not one.

        Examples
        --------
        >>> import tempfile
        >>> rates = (1e11, 1e10, 1e10, 4e9, 2e9)
        >>> written = Roofline("torch", "cpu", "float32", 4, *rates, 1e-5, 1e-7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written.save(f"{folder}/cpu.json")
        ...     Roofline.load(f"{folder}/cpu.json").flops_per_second
        100000000000.0
        """
        try:
            values = json.loads(Path(path).read_text())
            return cls(**values)
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{path} does not hold a roofline: {error}") from None

    def product(self, network: Network, left: int, right: int, result: int) -> float:
        """Seconds of one product of arrays with the given sets of indices, without moving."""
        batch = network.volume(left & right & result)
        flops = 2 * network.volume(left | right)
        read = network.volume(left) + network.volume(right)
        return self._step(flops, read, network.volume(result), batch, bool(left & right & ~result))

    def single(self, network: Network, mask: int, result: int) -> float:
        """Seconds of a sum over indices of one array."""
        return self._step(0, network.volume(mask), network.volume(result), 1, False)

    def seconds(self, network: Network, steps: Sequence[Step], gradients: Sequence[int]) -> float:
        """Seconds of steps, each with as many products in the backward pass as `gradients` says."""
        total = 0.0
        for step, extra in zip(steps, gradients, strict=True):
            masks = [network.mask(term) for term in step.terms]
            result = network.mask(step.result)
            if len(masks) == 1:
                total += self.single(network, masks[0], result)
                continue
            moved = _float(copies(step, network.sizes) * self.itemsize)
            moved /= self.move_bytes_per_second
            total += (1 + extra) * (self.product(network, masks[0], masks[1], result) + moved)
        return total

    def _step(self, flops: int, read: int, written: int, batch: int, summed: bool) -> float:
        """Seconds from operations, values read and written, and matrices of a batch."""
        reading = _float(read * self.itemsize) / self.read_bytes_per_second
        arithmetic = _float(flops) / self.flops_per_second
        size = _float(written * self.itemsize)
        others = _float(max(batch - 1, 0)) if summed and self.seconds_per_batch else 0.0
        overhead = self.seconds_per_step + others * self.seconds_per_batch
        return overhead + max(arithmetic, reading) + size / self._writing(size)

    def _writing(self, size: float) -> float:
        """Bytes a second of writing a result of `size` bytes."""
        if size <= SMALL:
            return self.write_bytes_per_second
        share = min(math.log(size / SMALL) / math.log(LARGE / SMALL), 1.0)
        fast, slow = self.write_bytes_per_second, self.fresh_bytes_per_second
        return float(fast ** (1 - share) * slow**share)


def _float(count: int) -> float:
    """A count as a float; infinite beyond its range."""
    try:
        return float(count)
    except OverflowError:
        return math.inf
