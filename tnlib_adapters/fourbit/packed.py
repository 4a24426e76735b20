"""A weight matrix in 4 bits, as data: bytes, scales and what they mean."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnlib_adapters.checks import choice, flag
from tnlib_adapters.fourbit import blocks
from tnlib_adapters.fourbit.engine import (
    Engine,
    best_engine,
    dequantize,
    quantize,
    quantize_scales,
)

HALVES = (torch.float32, torch.bfloat16, torch.float16)
# The part of bitsandbytes' names in files that says which code a weight has.
_STATE = "quant_state.bitsandbytes__"


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
class PackedWeight:
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
    engine : str
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
    engine: Engine
    rowwise: bool = False

    @classmethod
    def of(
        cls,
        weight: Tensor,
        format: Format,
        *,
        dtype: torch.dtype | None = None,
        engine: Engine | None = None,
    ) -> PackedWeight:
        """Quantise a matrix of any floating dtype, by default remembered as its original one.

        Raises
        ------
        ValueError
            If it has no values (meta device), or one is nan or infinite.
        """
        check_values(weight)
        engine = best_engine() if engine is None else engine
        values = weight.detach().reshape(-1)
        if values.dtype not in HALVES:
            values = values.float()
        packed, absmax = quantize(values, format.quant_type, format.blocksize, engine)
        if not torch.isfinite(absmax.sum()):
            raise ValueError("the weight, or a sum of its largest values, is beyond float32")
        nested = None
        if format.double_quant:
            mean = absmax.mean()
            absmax, largest = quantize_scales(absmax - mean, engine)
            nested = Nested(largest, mean, blocks.dynamic_map(weight.device))
        rows, columns = weight.shape
        shape = rows, columns
        dtype = weight.dtype if dtype is None else dtype
        return cls(packed.view(-1, 1), absmax, nested, format, shape, dtype, engine)

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
        values = dequantize(packed, self.scales(), kind, size, count, dtype, self.engine)
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

    def state(self) -> dict[str, Tensor]:
        """All but the bytes, as bitsandbytes names it in files."""
        kind = self.format.quant_type
        device = self.absmax.device
        tensors = {"absmax": self.absmax, "quant_map": blocks.code(kind, device)}
        words: dict[str, Any] = {
            "quant_type": kind,
            "blocksize": self.format.blocksize,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.shape),
        }
        if self.nested is not None:
            tensors["nested_absmax"] = self.nested.absmax
            tensors["nested_quant_map"] = self.nested.levels
            words |= {
                "nested_blocksize": blocks.NESTED_BLOCKSIZE,
                "nested_dtype": "float32",
                "nested_offset": float(self.nested.mean),
            }
        text = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
        return tensors | {_STATE + kind: text}

    @classmethod
    def from_state(cls, packed: Tensor, state: Mapping[str, Tensor]) -> PackedWeight:
        """Read what :meth:`state`, or bitsandbytes, has written.

        Raises
        ------
        ValueError
            If parts are missing or do not fit each other.
        """
        kinds = [key.removeprefix(_STATE) for key in state if key.startswith(_STATE)]
        if len(kinds) != 1 or "absmax" not in state:
            raise ValueError(
                f"not a weight in 4 bits: needs absmax and one {_STATE}..., has {sorted(state)}"
            )
        try:
            words = json.loads(bytes(state[_STATE + kinds[0]].cpu().tolist()))
            double = "nested_blocksize" in words
            form = Format(words["quant_type"], words["blocksize"], double)
            rows, columns = (operator.index(size) for size in words["shape"])
            dtype = getattr(torch, words["dtype"])
            mean = torch.tensor(float(words["nested_offset"]) if double else 0.0)
            if double and int(words["nested_blocksize"]) != blocks.NESTED_BLOCKSIZE:
                raise ValueError("scales in 8 bits are read in blocks of 256 only")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{_STATE}{kinds[0]} cannot be read ({error!r})") from error
        device = packed.device
        nested = None
        absmax = state["absmax"].to(device)
        if double:
            largest = state.get("nested_absmax", absmax[:0]).to(device)
            nested = Nested(largest, mean.to(device), blocks.dynamic_map(device))
        found = cls(packed, absmax, nested, form, (rows, columns), dtype, best_engine())
        found._check(state)
        return found

    def _check(self, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless all parts fit each other, and the codes are the known ones."""
        (rows, columns), form = self.shape, self.format
        scales = -(-rows * columns // form.blocksize)
        parts = {
            "bytes": (self.packed.nbytes, (rows * columns + 1) // 2),
            "scales": (self.absmax.numel(), scales),
            "scales of scales": (
                0 if self.nested is None else self.nested.absmax.numel(),
                -(-scales // blocks.NESTED_BLOCKSIZE) if form.double_quant else 0,
            ),
        }
        for part, (has, needs) in parts.items():
            if has != needs or min(rows, columns) < 1:
                raise ValueError(
                    f"a weight {rows} x {columns} in {form} needs {needs} {part}, has {has}"
                )
        kind = torch.uint8 if form.double_quant else torch.float32
        if self.absmax.dtype != kind or not getattr(self.dtype, "is_floating_point", False):
            raise ValueError(
                f"scales of {self.absmax.dtype} for a weight of {self.dtype} in {form}: expected "
                f"{kind}, and a floating dtype"
            )
        known = {"quant_map": blocks.code(form.quant_type, self.absmax.device)}
        if self.nested is not None:
            known["nested_quant_map"] = self.nested.levels
        for name, values in known.items():
            given = state.get(name, values).to(values)
            if given.shape != values.shape or not torch.allclose(given, values, atol=1e-6):
                raise ValueError(f"{name} is not the one of {form}; such codes are not supported")


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
