"""What the linear layers of a model take, and how far they are from what they were made of."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from torch import nn

from tnlib.common.table import aligned
from tnlib_adapters.base_model.linear_modules import features, is_transposed
from tnlib_adapters.base_model.peft_names import public_name
from tnlib_adapters.fourbit.layer import QuantizedLinear, packed_weight
from tnlib_adapters.layers.base_layer import base_weight


@dataclass(frozen=True)
class FootprintRow:
    """Layers of one name but for numbers, one shape and one format.

    Attributes
    ----------
    name : str
        Their name, with ``*`` for numbers.
    layers : int
        How many there are.
    shape : (int, int)
        Output and input width.
    format : str
        Such as "nf4, blocks of 64, double quantisation", or the dtype of a dense weight.
    nbytes : int
        Bytes of all their weights, scales included.
    deviation : float
        Median of the relative Frobenius distances from the weights they were made of; nan where
        that is not known.

    Examples
    --------
    >>> row = FootprintRow("layers.*.q_proj", 24, (768, 768), "nf4, blocks of 64", 7_962_624, 0.09)
    >>> row.bits
    4.5
    """

    name: str
    layers: int
    shape: tuple[int, int]
    format: str
    nbytes: int
    deviation: float

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.nbytes / (self.layers * math.prod(self.shape))


@dataclass(frozen=True)
class Footprint:
    """The memory of a model's linear layers; printing it shows a table.

    Attributes
    ----------
    rows : tuple of FootprintRow
        In the model's order.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters.quantization import quantize_base
    >>> layers = {"q_proj": torch.nn.Linear(256, 128), "score": torch.nn.Linear(256, 2)}
    >>> found = footprint(quantize_base(torch.nn.ModuleDict(layers)))
    >>> [(row.name, round(row.bits, 2), row.nbytes) for row in found.rows]
    [('q_proj', 4.13, 16908), ('score', 32.0, 2048)]
    """

    rows: tuple[FootprintRow, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, scales included."""
        return sum(row.nbytes for row in self.rows)

    @property
    def bits(self) -> float:
        """Bits a weight.

        Examples
        --------
        >>> dense = FootprintRow("score", 1, (2, 768), "float32", 6_144, 0.0)
        >>> packed = FootprintRow("q_proj", 1, (768, 768), "nf4, blocks of 64", 331_776, 0.09)
        >>> round(Footprint((packed, dense)).bits, 3)
        4.571
        """
        return 8 * self.nbytes / sum(row.layers * math.prod(row.shape) for row in self.rows)

    def __str__(self) -> str:
        """The rows and their sum."""
        lines = [
            (
                f"{row.layers} x {row.name}",
                "x".join(map(str, row.shape)),
                row.format,
                f"{row.bits:.3f}",
                f"{row.nbytes / 1e6:,.2f}",
                "" if math.isnan(row.deviation) else f"{row.deviation:.2%}",
            )
            for row in self.rows
        ]
        head = ("layers", "shape", "format", "bits per weight", "MB", "off W by")
        total = f"{self.nbytes / 1e6:,.2f} MB, {self.bits:.3f} bits per weight"
        return f"{aligned([head, *lines])}\n{total}"


def footprint(model: nn.Module) -> Footprint:
    """Tell what the linear layers of a model take, dense ones and those in 4 bits.

    Layers below adapters count, adapters do not. Other quantised layers are left out.

    Parameters
    ----------
    model : torch.nn.Module
        Adapted or not.

    Raises
    ------
    ValueError
        If bitsandbytes has rewritten a layer for inference, or there are no layers to report.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters.quantization import footprint, quantize_base
    >>> layers = {"q_proj": torch.nn.Linear(256, 128), "score": torch.nn.Linear(256, 2)}
    >>> print(footprint(quantize_base(torch.nn.ModuleDict(layers))))
    layers      shape    format                                  bits per weight  MB    off W by
    1 x q_proj  128x256  nf4, blocks of 64, double quantisation  4.128            0.02  9...%
    1 x score   2x256    float32                                 32.000           0.00
    0.02 MB, 4.557 bits per weight
    """
    found: dict[tuple[str, tuple[int, int], str], list[tuple[int, float]]] = {}
    for name, module in model.named_modules():
        packed = packed_weight(module)
        plain = isinstance(module, nn.Linear) or is_transposed(module)
        widths = features(module)
        if widths is None or hasattr(module, "base_layer") or not (packed or plain):
            continue
        if packed is not None:
            known = module.deviation if isinstance(module, QuantizedLinear) else math.nan
            form, entry = str(packed.format), (packed.nbytes, known)
        else:
            weight = base_weight(module)
            form, entry = str(weight.dtype).removeprefix("torch."), (weight.nbytes, math.nan)
        title = ".".join("*" if part.isdigit() else part for part in public_name(name).split("."))
        found.setdefault((title, widths, form), []).append(entry)
    if not found:
        raise ValueError(f"this {type(model).__name__} has no linear layers")
    rows = []
    for (title, widths, form), entries in found.items():
        sizes, off = zip(*entries, strict=True)
        deviation = statistics.median(off)
        rows.append(FootprintRow(title, len(entries), widths, form, sum(sizes), deviation))
    return Footprint(tuple(rows))
