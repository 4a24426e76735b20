"""A 4-bit base under every method.

:func:`quantize_base` puts the linear layers of a model in memory into 4 bits, in bitsandbytes'
layout; models that transformers loaded with a ``BitsAndBytesConfig`` are adapted as they are. For
DoTA there are two orders, by its field ``residual``: adapt a base in 4 bits, whose weights stay
untouched; or adapt the full-precision model with ``residual=True`` and quantise then, so that the
initial operator is taken out of every weight before it is rounded (QDoTA as published,
arXiv 2412.20891).
"""

from tnlib_adapters.fourbit.bitsandbytes import prevent_repacking
from tnlib_adapters.fourbit.layer import QuantizedLinear
from tnlib_adapters.quantization.footprint import Footprint, FootprintRow, footprint
from tnlib_adapters.quantization.quantize import dequantize_base, quantize_base

__all__ = [
    "Footprint",
    "FootprintRow",
    "QuantizedLinear",
    "dequantize_base",
    "footprint",
    "prevent_repacking",
    "quantize_base",
]
