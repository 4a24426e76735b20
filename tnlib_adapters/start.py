"""How cores start: distributions as data, so that a declaration can be printed and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Start:
    """The distribution of a core's initial entries.

    Attributes
    ----------
    kind : str
        "zeros", "ones", "normal" or "uniform".
    size : float
        Standard deviation of "normal", half-width of "uniform".
    """

    kind: str
    size: float = 0.0

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw a float32 tensor of `shape`, on the generator's device or else the CPU."""
        device = "cpu" if generator is None else generator.device
        if self.kind in ("zeros", "ones"):
            return torch.full(tuple(shape), float(self.kind == "ones"), device=device)
        if self.kind == "normal":
            return torch.randn(tuple(shape), generator=generator, device=device) * self.size
        return (torch.rand(tuple(shape), generator=generator, device=device) * 2 - 1) * self.size

    def __str__(self) -> str:
        names = {"normal": f"N(0, {self.size:.3g}^2)", "uniform": f"U(+-{self.size:.3g})"}
        return names.get(self.kind, self.kind)


zeros = Start("zeros")
ones = Start("ones")


def normal(deviation: float = 1.0) -> Start:
    """Independent normal entries of mean zero."""
    return Start("normal", deviation)


def uniform(width: float) -> Start:
    """Independent entries between ``-width`` and ``width``."""
    return Start("uniform", width)


def somewhere(start: Start, shape: Sequence[int]) -> Start:
    """`start`, or a small normal distribution in the place of zeros."""
    return normal(0.1 / math.sqrt(max(shape[-1], 1))) if start == zeros else start
