"""How cores start: distributions as data, so that a declaration can be printed and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Initializer:
    """The distribution of a core's initial entries.

    Attributes
    ----------
    kind : str
        "zeros", "ones", "normal" or "uniform".
    size : float
        Standard deviation of "normal", half-width of "uniform".

    Examples
    --------
    >>> from tnlib_adapters import normal, ones, uniform, zeros
    >>> for start in (zeros, ones, normal(0.02), uniform(0.1)):
    ...     print(start, tuple(start.draw((4, 3)).shape))
    zeros (4, 3)
    ones (4, 3)
    N(0, 0.02^2) (4, 3)
    U(+-0.1) (4, 3)
    """

    kind: str
    size: float = 0.0

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw a float32 tensor of `shape`, on the generator's device or else the CPU.

        Examples
        --------
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> round(normal(0.02).draw((768, 8), generator).std().item(), 3)
        0.02
        >>> ones.draw((3,))
        tensor([1., 1., 1.])
        """
        device = "cpu" if generator is None else generator.device
        if self.kind in ("zeros", "ones"):
            return torch.full(tuple(shape), float(self.kind == "ones"), device=device)
        if self.kind == "normal":
            return torch.randn(tuple(shape), generator=generator, device=device) * self.size
        return (torch.rand(tuple(shape), generator=generator, device=device) * 2 - 1) * self.size

    def __str__(self) -> str:
        names = {"normal": f"N(0, {self.size:.3g}^2)", "uniform": f"U(+-{self.size:.3g})"}
        return names.get(self.kind, self.kind)


zeros = Initializer("zeros")
ones = Initializer("ones")


def normal(deviation: float = 1.0) -> Initializer:
    """Independent normal entries of mean zero.

    Examples
    --------
    >>> import torch
    >>> sample = normal(0.02).draw((100, 100), torch.Generator().manual_seed(0))
    >>> round(sample.std().item(), 3)
    0.02
    """
    return Initializer("normal", deviation)


def uniform(width: float) -> Initializer:
    """Independent entries between ``-width`` and ``width``.

    Examples
    --------
    >>> import torch
    >>> sample = uniform(0.1).draw((100, 100), torch.Generator().manual_seed(0))
    >>> round(sample.min().item(), 3), round(sample.max().item(), 3)
    (-0.1, 0.1)
    """
    return Initializer("uniform", width)


def nonzero(initializer: Initializer, shape: Sequence[int]) -> Initializer:
    """`initializer`, or a small normal distribution in the place of zeros."""
    return normal(0.1 / math.sqrt(max(shape[-1], 1))) if initializer == zeros else initializer


def deviation(initializer: Initializer) -> float:
    """Root mean square of the entries.

    Examples
    --------
    >>> deviation(zeros), deviation(ones), deviation(normal(0.02)), round(deviation(uniform(3)), 3)
    (0.0, 1.0, 0.02, 1.732)
    """
    factors = {"zeros": 0.0, "normal": initializer.size, "uniform": initializer.size / 3**0.5}
    return factors.get(initializer.kind, 1.0)
