"""A weight matrix in 4 bits, as data: bytes, scales and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnlib_adapters.checks import choice, flag
from tnlib_adapters.execution.base_weight import PackedBase
from tnlib_adapters.fourbit import blocks
from tnlib_adapters.fourbit.backend import (
    Backend,
    best_backend,
    dequantize,
    quantize,
    quantize_scales,
)

HALVES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Format:
    """How a weight is put into 4 bits.

    Attributes
    ----------
    quant_type : str
        "nf4", the quantiles of a normal distribution, or "fp4", floating point.
    blocksize : int
        Values that share a scale: 32, 64, 128, ..., 4096.
    double_quant : bool
        Whether the scales are in 8 bits themselves.

    Raises
    ------
    TypeError, ValueError
        For another value.
    """

    quant_type: str = "nf4"
    blocksize: int = 64
    double_quant: bool = True

    def __post_init__(self) -> None:
        choice("quant_type", self.quant_type, tuple(blocks.CODES))
        flag("double_quant", self.double_quant)
        if type(self.blocksize) is not int or self.blocksize not in blocks.BLOCKSIZES:
            raise ValueError(
                f"blocksize must be one of {', '.join(map(str, blocks.BLOCKSIZES))}, got "
                f"{self.blocksize!r}"
            )

    def __str__(self) -> str:
        double = ", double quantisation" if self.double_quant else ""
        return f"{self.quant_type}, blocks of {self.blocksize}{double}"


class Nested(NamedTuple):
    """What scales in 8 bits mean: scales of 256 of them, the mean, and the values of the codes."""

    absmax: Tensor
    mean: Tensor
    levels: Tensor


@dataclass(frozen=True, eq=False)
class PackedWeight(PackedBase):
    """A matrix in 4 bits.

    Attributes
    ----------
    packed : Tensor
        The bytes, two values each; of uint8, or another dtype for the same bytes.
    absmax : Tensor, shape (ceil(numel / blocksize),)
        Scales of the blocks: float32, or uint8 where they are quantised.
    nested : Nested or None
        What the quantised scales mean.
    format : Format
        Code and block size.
    shape : (int, int)
        Output and input width.
    dtype : torch.dtype
        Of the matrix that it was made from, and that :meth:`dequantize` gives by default.
    backend : str
        Who computes.
    rowwise : bool
        Whether bitsandbytes' kernel is called for the matrix as it stands, as its own layer does.
    """

    packed: Tensor
    absmax: Tensor
    nested: Nested | None
    format: Format
    shape: tuple[int, int]
    dtype: torch.dtype
    backend: Backend
    rowwise: bool = False

    @classmethod
    def of(
        cls,
        weight: Tensor,
        format: Format,
        *,
        dtype: torch.dtype | None = None,
        backend: Backend | None = None,
    ) -> PackedWeight:
        """Quantise a matrix of any floating dtype, by default remembered as its original one.

        Raises
        ------
        ValueError
            If it has no values (meta device), or one is nan or infinite.
        """
        check_values(weight)
        backend = best_backend() if backend is None else backend
        values = weight.detach().reshape(-1)
        if values.dtype not in HALVES:
            values = values.float()
        packed, absmax = quantize(values, format.quant_type, format.blocksize, backend)
        if not torch.isfinite(absmax.sum()):
            raise ValueError("the weight, or a sum of its largest values, is beyond float32")
        nested = None
        if format.double_quant:
            mean = absmax.mean()
            absmax, largest = quantize_scales(absmax - mean, backend)
            nested = Nested(largest, mean, blocks.dynamic_map(weight.device))
        rows, columns = weight.shape
        shape = rows, columns
        dtype = weight.dtype if dtype is None else dtype
        return cls(packed.view(-1, 1), absmax, nested, format, shape, dtype, backend)

    def scales(self) -> Tensor:
        """Scales of the blocks in float32."""
        if self.nested is None:
            return self.absmax
        absmax, mean, levels = self.nested
        return blocks.dequantize_scales(self.absmax, absmax, levels).add_(mean)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix (out_features, in_features), in a tensor that is the caller's own.

        Values are products of code and scale in float32, then cast.
        """
        dtype = self.dtype if dtype is None else dtype
        kind, size = self.format.quant_type, self.format.blocksize
        packed = self.packed.view(torch.uint8)
        if self.rowwise and dtype in HALVES:
            operators: Any = torch.ops.bitsandbytes
            whole: Tensor = operators.dequantize_4bit.default(
                packed, self.scales(), size, kind, self.shape, dtype
            )
            return whole
        count = self.shape[0] * self.shape[1]
        values = dequantize(packed, self.scales(), kind, size, count, dtype, self.backend)
        return values.view(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values and of all scales."""
        # The values of the codes are the same for all weights.
        tensors = (self.packed, self.absmax, *(self.nested or ())[:2])
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.nbytes / max(1, self.shape[0] * self.shape[1])

    def placed(self, packed: Tensor) -> PackedWeight:
        """The same with these bytes, and the scales on their device."""
        device = packed.device
        nested = None if self.nested is None else Nested(*(t.to(device) for t in self.nested))
        return replace(self, packed=packed, absmax=self.absmax.to(device), nested=nested)


def check_values(weight: Tensor) -> None:
    """Raise ValueError unless a weight is a finite matrix of floating point, and TypeError else."""
    if weight.is_meta:
        raise ValueError(
            "the weight is on the meta device and has no values; load the model, then quantise"
        )
    if weight.dtype not in (*HALVES, torch.float64) or weight.ndim != 2 or not weight.numel():
        raise TypeError(
            "only a matrix of float16, bfloat16, float32 or float64 can be quantised, got "
            f"{weight.dtype} of shape {tuple(weight.shape)}"
        )
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds nan or inf, which 4 bits cannot; repair it first")
