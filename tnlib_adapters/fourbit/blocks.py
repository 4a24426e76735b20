"""Four bits per value with one scale per block, in plain torch.

The layout is that of bitsandbytes, and so are all bits: values in row-major order, the one with the
even index in the high half of a byte, each the index of a code in [-1, 1] times the largest
magnitude of its block. The scales of NF4 and FP4 themselves can be stored in 8 bits, less their
mean, with a dynamic map and one scale for 256 (arXiv 2305.14314, section 3; the map is that of
arXiv 2110.02861, section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Quantiles of the normal distribution (arXiv 2305.14314, appendix E); sign, exponent and mantissa.
CODES = {
    "nf4": (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    "fp4": tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)),
}
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# Scales that share one scale where they are in 8 bits themselves.
NESTED_BLOCKSIZE = 256
# What stands for the scale of a block of zeros.
_TINY = 1e-38
_STEPS = 65535


def code(quant_type: str, device: torch.device) -> Tensor:
    """The 16 values of a code, float32."""
    return torch.tensor(CODES[quant_type], dtype=torch.float32, device=device)


def dynamic_map(device: torch.device) -> Tensor:
    """The 256 values of signed 8-bit dynamic tree quantisation, ascending, float32.

    Decades 10^-6 ... 1, of which the k-th has 2^k values on either side of zero: the midpoints of
    equal parts of [0.1, 1].
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = (10 ** (decade - 6)) * ((edges[:-1] + edges[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def quantize(values: Tensor, quant_type: str, blocksize: int) -> tuple[Tensor, Tensor]:
    """Bytes and scales of a flat tensor.

    Parameters
    ----------
    values : Tensor, shape (n,)
        Floating point.
    quant_type : str
        A key of :data:`CODES`.
    blocksize : int
        Values that share a scale.

    Returns
    -------
    packed : Tensor of uint8, shape (ceil(n / 2),)
        Two values per byte; an odd n ends with half a byte of the code nearest to zero.
    absmax : Tensor of float32, shape (ceil(n / blocksize),)
        Largest magnitude of every block.
    """
    whole = len(values) - len(values) % blocksize
    blocks = values[:whole].float().view(-1, blocksize)
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1 / absmax.clamp(min=_TINY))[:, None]).clamp_(-1, 1).view(-1)
    if whole < len(values):
        rest = values[whole:].float()
        largest = rest.abs().max().clamp(min=_TINY)
        absmax = torch.cat([absmax, largest[None]])
        scaled = torch.cat([scaled, (rest / largest).clamp_(-1, 1)])
    if len(scaled) % 2:
        scaled = functional.pad(scaled, (0, 1))
    levels = code(quant_type, values.device)
    order = levels.argsort()
    ascending = levels[order]
    nearest = torch.bucketize(scaled, (ascending[:-1] + ascending[1:]) / 2, out_int32=True)
    index = order.to(torch.uint8)[nearest]
    return (index[::2] << 4) | index[1::2], absmax


def dequantize(
    packed: Tensor, absmax: Tensor, quant_type: str, blocksize: int, count: int
) -> Tensor:
    """The `count` values of bytes and scales, flat, in a new tensor of float32."""
    levels = code(quant_type, packed.device)
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1)
    values = functional.embedding(packed.reshape(-1).int(), pairs).view(-1)[:count]
    whole = count - count % blocksize
    values[:whole].view(-1, blocksize).mul_(absmax[: whole // blocksize, None])
    values[whole:].mul_(absmax[-1:])
    return values


def quantize_scales(centered: Tensor) -> tuple[Tensor, Tensor]:
    """Scales less their mean in 8 bits: codes of uint8, and scales of 256 codes each."""
    short = -len(centered) % NESTED_BLOCKSIZE
    blocks = functional.pad(centered, (0, short)).view(-1, NESTED_BLOCKSIZE)
    largest = blocks.abs().amax(1)
    scaled = (blocks * (1 / largest)[:, None]).nan_to_num_(0).clamp_(-1, 1)
    # The nearest value is looked up for one of 65,536 steps, as bitsandbytes does on CPUs.
    steps = ((scaled + 1) * 0.5 * _STEPS + 0.5).int()
    levels = dynamic_map(centered.device)
    nearest = torch.bucketize(-1 + 2 * steps.float() / _STEPS, (levels[:-1] + levels[1:]) / 2)
    nearest.mul_((largest > 0)[:, None])
    return nearest.view(-1)[: len(centered)].to(torch.uint8), largest


def dequantize_scales(codes: Tensor, absmax: Tensor, levels: Tensor) -> Tensor:
    """What :func:`quantize_scales` was given, float32; `levels` is :func:`dynamic_map`."""
    values = levels[codes.int()]
    return values.mul_(absmax.repeat_interleave(NESTED_BLOCKSIZE)[: len(values)])
