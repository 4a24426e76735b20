"""One stored tensor: its shape is known, its numbers are read when they are asked for.

Every kind can be sent to another process, which then reads the numbers itself; those of a file are
mapped into memory and copied out in single precision, so that no more than one copy is held.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tnlib.arrays import backend
from tnlib.common.safetensors_header import Entry, cut_off
from tnlib.weights.number_formats import NAMES, numpy_dtype, widened

Values = np.ndarray[Any, Any]
# Bytes of every tensor that a fingerprint looks at.
_SAMPLED = 1024


class WeightTensor(ABC):
    """A tensor that can be read."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    @abstractmethod
    def dtype(self) -> str:
        """How its numbers are stored: the name of a dtype of NumPy or ml_dtypes."""

    @abstractmethod
    def read(self, index: int | None = None) -> Values:
        """Its numbers in single precision or better; of a stack those of one member.

        Raises
        ------
        ValueError
            If they cannot be had.
        """

    @abstractmethod
    def sample(self) -> bytes:
        """A few of its bytes, by which it is known again."""


@dataclass(frozen=True)
class FileTensor(WeightTensor):
    """A tensor of a safetensors file."""

    path: Path
    name: str
    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.entry.shape

    @property
    def dtype(self) -> str:
        """Its dtype; where there is no such, the format's name in the file."""
        return NAMES.get(self.entry.dtype, self.entry.dtype)

    def read(self, index: int | None = None) -> Values:
        """Its numbers, without the rest of the file."""
        return widened(self._mapped() if index is None else self._mapped()[index])

    def sample(self) -> bytes:
        """The bytes in its middle."""
        size = min(self.entry.stop - self.entry.start, _SAMPLED)
        with self.path.open("rb") as file:
            file.seek((self.entry.start + self.entry.stop - size) // 2)
            return file.read(size)

    def _mapped(self) -> Values:
        if text := cut_off(self.name, self.entry, self.path.stat().st_size):
            raise ValueError(f"{self.path} {text}; copy it again")
        dtype = numpy_dtype(self.dtype)
        size = self.entry.stop - self.entry.start
        if size != dtype.itemsize * int(np.prod(self.shape, dtype=object)):
            raise ValueError(
                f"{self.path} is damaged: tensor {self.name} of shape {self.shape} and dtype "
                f"{self.dtype} has {size} bytes"
            )
        if size == 0:
            return np.zeros(self.shape, dtype)
        data = np.memmap(self.path, np.uint8, "r", self.entry.start, (size,))
        return np.asarray(data.view(dtype).reshape(self.shape))


@dataclass(frozen=True)
class ScaledTensor(WeightTensor):
    """8-bit floating-point numbers with a scale for the whole, for rows or for square blocks."""

    codes: FileTensor
    scale: FileTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.codes.shape

    @property
    def dtype(self) -> str:
        """The format of the codes."""
        return self.codes.dtype

    def read(self, index: int | None = None) -> Values:
        """The codes times the scale of each."""
        codes, scale = self.codes.read(index), self.scale.read()
        if index is not None and scale.ndim == len(self.shape):
            scale = scale[index]
        for axis, (width, blocks) in enumerate(zip(codes.shape, scale.shape, strict=False)):
            if scale.ndim == codes.ndim and blocks not in (1, width):
                size = -(-width // blocks)
                size = 1 << (size - 1).bit_length()  # blocks are powers of two, the last one cut
                scale = np.repeat(scale, size, axis)[(slice(None),) * axis + (slice(width),)]
        if scale.ndim == 1 and scale.size > 1:
            scale = scale[:, None]
        try:
            return codes * scale
        except ValueError as error:
            raise ValueError(
                f"{self.codes.path}: the scale of {self.codes.name} has shape {self.scale.shape}, "
                f"which does not fit {self.shape}"
            ) from error

    def sample(self) -> bytes:
        """Bytes of both."""
        return self.codes.sample() + self.scale.sample()


@dataclass(frozen=True, eq=False)
class ArrayTensor(WeightTensor):
    """An array in memory, of NumPy or torch."""

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(int(n) for n in self.array.shape)

    @property
    def dtype(self) -> str:
        """The array's own name of it."""
        return backend.dtype_name(self.array.dtype)

    def read(self, index: int | None = None) -> Values:
        """Its numbers; not a copy where they are in single precision on the CPU."""
        array = self.array if index is None else self.array[index]
        if not backend.is_torch(array):
            return widened(np.asarray(array))
        array = array.detach().cpu()
        wide = array if array.dtype.itemsize >= 4 else array.float()
        return np.asarray(wide.resolve_conj().resolve_neg().numpy())

    def sample(self) -> bytes:
        """The bytes in its middle."""
        flat = self.array.reshape(-1)
        size, middle = _SAMPLED // 8, len(flat) // 2
        part = ArrayTensor(flat[max(middle - size, 0) : middle + size])
        return part.read().tobytes()


@dataclass(frozen=True)
class Difference(WeightTensor):
    """What a tensor changed by."""

    new: WeightTensor
    old: WeightTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, which both have."""
        return self.new.shape

    @property
    def dtype(self) -> str:
        """The format of the new one."""
        return self.new.dtype

    def read(self, index: int | None = None) -> Values:
        """The new one less the old one."""
        new, old = self.new.read(index), self.old.read(index)
        # What was widened while it was read is nobody else's.
        own = isinstance(self.new, FileTensor) and new.flags.owndata and new.dtype == old.dtype
        return np.asarray(np.subtract(new, old, out=new if own else None))

    def sample(self) -> bytes:
        """Bytes of both."""
        return self.new.sample() + self.old.sample()


@dataclass(frozen=True)
class Product(WeightTensor):
    """A product of two matrices times a number: what a LoRA adds to a weight."""

    left: WeightTensor
    right: WeightTensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def dtype(self) -> str:
        """The format of the factors."""
        return self.left.dtype

    def read(self, index: int | None = None) -> Values:
        """The product; it has no members."""
        assert index is None
        return np.asarray(self.scale * (self.left.read() @ self.right.read()))

    def sample(self) -> bytes:
        """Bytes of both factors."""
        return self.left.sample() + self.right.sample() + repr(self.scale).encode()
