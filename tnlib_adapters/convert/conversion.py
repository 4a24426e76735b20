"""What a conversion did to every weight, and to all of them together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tnlib.common.table import aligned


@dataclass(frozen=True)
class ConvertedWeight:
    """One weight of a conversion.

    Attributes
    ----------
    name : str
        Name of the module.
    shape : (int, int) or (int, int, int)
        Output and input width, of a weight of experts after their number.
    ranks : tuple of int
        Rank of the result: one number for LoRA, LoTR and LoRTA, the bonds of a train.
    n_params : int
        Values that belong to this weight alone.
    error : float
        ``||new - old|| / ||old||`` in the Frobenius norm, of the values as written; 0 where the
        old update is zero and the new one too, inf where only the old one is.
    norm : float
        ``||old||``.

    Examples
    --------
    >>> weight = ConvertedWeight("q_proj", (64, 48), (4,), n_params=448, error=0.05, norm=2.0)
    >>> weight.ranks, weight.error
    ((4,), 0.05)
    """

    name: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    n_params: int
    error: float
    norm: float


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion; printing it shows a table.

    Attributes
    ----------
    weights : tuple of ConvertedWeight
        Every adapted weight.
    shared : int
        Values that several weights share.
    n_bytes : int
        Size of the tensor file that was written.

    Examples
    --------
    >>> def weight(name, error, norm):
    ...     return ConvertedWeight(name, (64, 48), (4,), n_params=448, error=error, norm=norm)
    >>> found = Conversion((weight("q_proj", 0.3, 1.0), weight("v_proj", 0.0, 2.0)), 0, 4000)
    >>> print(found)
    weight  shape  ranks  parameters  error
    q_proj  64x48  4      448         3.00e-01
    v_proj  64x48  4      448         0.00e+00
    896 parameters; 4,000 bytes; relative error 0.134
    """

    weights: tuple[ConvertedWeight, ...]
    shared: int
    n_bytes: int

    @property
    def n_params(self) -> int:
        """Values of the new adapter, without modules that are kept in full."""
        return self.shared + sum(weight.n_params for weight in self.weights)

    @property
    def error(self) -> float:
        """Relative error of all updates together, in the Frobenius norm."""
        total = math.hypot(*(weight.norm for weight in self.weights))
        off = math.hypot(*(w.error * w.norm for w in self.weights if w.norm))
        return off / total if total else max((w.error for w in self.weights), default=0.0)

    def __str__(self) -> str:
        """A row per weight, and the sums."""
        rows = [
            (
                weight.name,
                "x".join(map(str, weight.shape)),
                ",".join(map(str, weight.ranks)),
                f"{weight.n_params:,}",
                f"{weight.error:.2e}",
            )
            for weight in self.weights
        ]
        table = aligned([("weight", "shape", "ranks", "parameters", "error"), *rows])
        shared = f", {self.shared:,} of them shared" if self.shared else ""
        return (
            f"{table}\n{self.n_params:,} parameters{shared}; {self.n_bytes:,} bytes; "
            f"relative error {self.error:.3g}"
        )
