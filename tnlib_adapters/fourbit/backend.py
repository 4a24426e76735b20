"""Who computes: bitsandbytes where it is installed, else plain torch, with the same bits."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor

from tnlib_adapters.fourbit import blocks

Backend = Literal["bitsandbytes", "torch"]
# Values that are quantised at once, a multiple of every block size: memory for a few copies.
_CHUNK = 1 << 22


def best_backend() -> Backend:
    """The backend of this installation."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "torch"
    import bitsandbytes  # noqa: F401  # its operators are found by name

    return "bitsandbytes"


def quantize(
    values: Tensor, quant_type: str, blocksize: int, backend: Backend
) -> tuple[Tensor, Tensor]:
    """Bytes and scales of a flat tensor, in slices; see :func:`blocks.quantize`."""
    parts = [
        _quantize(part, quant_type, blocksize, backend) for part in torch.split(values, _CHUNK)
    ]
    if len(parts) == 1:
        return parts[0]
    packed, absmax = zip(*parts, strict=True)
    return torch.cat(packed), torch.cat(absmax)


def dequantize(
    packed: Tensor,
    absmax: Tensor,
    quant_type: str,
    blocksize: int,
    count: int,
    dtype: torch.dtype,
    backend: Backend,
) -> Tensor:
    """The `count` values of bytes and scales, flat, in a new tensor."""
    whole = count - count % blocksize
    native = dtype in (torch.float32, torch.bfloat16, torch.float16)
    if backend == "torch" or not native or not whole:
        plain = blocks.dequantize(packed, absmax, quant_type, blocksize, count)
        return plain.to(dtype)
    # A row per block: on CPUs the kernel of bitsandbytes 0.50 takes the scales of other blocks
    # where rows are no multiple of a block, and is not used at all for blocks of 2048 and more.
    row = min(blocksize, 1024)
    scales = absmax[: whole // blocksize].repeat_interleave(blocksize // row)
    operators: Any = torch.ops.bitsandbytes
    values: Tensor = operators.dequantize_4bit.default(
        packed.reshape(-1)[: whole // 2], scales, row, quant_type, (whole // row, row), dtype
    ).view(-1)
    if whole == count:
        return values
    rest = packed.reshape(-1)[whole // 2 :]
    tail = blocks.dequantize(rest, absmax[-1:], quant_type, blocksize, count - whole)
    return torch.cat([values, tail.to(dtype)])


def quantize_scales(centered: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """Scales less their mean in 8 bits; see :func:`blocks.quantize_scales`."""
    if backend == "torch":
        return blocks.quantize_scales(centered)
    operators: Any = torch.ops.bitsandbytes
    levels = blocks.dynamic_map(centered.device)
    codes, largest = operators.quantize_blockwise.default(centered, levels, blocks.NESTED_BLOCKSIZE)
    return codes, largest


def _quantize(
    values: Tensor, quant_type: str, blocksize: int, backend: Backend
) -> tuple[Tensor, Tensor]:
    if backend == "torch":
        return blocks.quantize(values, quant_type, blocksize)
    operators: Any = torch.ops.bitsandbytes
    packed, absmax = operators.quantize_4bit.default(values, blocksize, quant_type, torch.uint8)
    return packed.view(-1), absmax.float()
