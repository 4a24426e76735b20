"""What an extraction kept of a fine-tuned model, and what not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tnlib_adapters.convert.conversion import Conversion


@dataclass(frozen=True)
class Extraction(Conversion):
    """Result of an extraction; printing it shows a table.

    Beside these it has the attributes of :class:`Conversion`.

    Attributes
    ----------
    saved : tuple of str
        Modules that changed and are in the adapter in full, and biases.
    left_out : dict of str to str
        What else changed, with how much or why it cannot be had: the adapter does not have it.
    unchanged : tuple of str
        Targets whose weights are those of the base.

    Examples
    --------
    >>> from tnlib_adapters.convert.conversion import ConvertedWeight
    >>> weight = ConvertedWeight("q_proj", (64, 48), (4,), n_params=448, error=0.3, norm=1.0)
    >>> found = Extraction((weight,), 0, 2000, ("norm",), {"embed": "changed by 0.10%"})
    >>> print(found)
    weight  shape  ranks  parameters  error
    q_proj  64x48  4      448         3.00e-01
    448 parameters; 2,000 bytes; relative error 0.3
    in full: norm
    left out: embed changed by 0.10%
    """

    saved: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    unchanged: tuple[str, ...] = ()

    def of_size(self, n_bytes: int) -> Extraction:
        """The same, with the size of the file that was written."""
        return replace(self, n_bytes=n_bytes)

    def __str__(self) -> str:
        """The table, and what is beside it."""
        lines = [super().__str__()]
        if self.saved:
            lines.append(f"in full: {_some(self.saved)}")
        lines += [f"left out: {name} {reason}" for name, reason in self.left_out.items()]
        if self.unchanged:
            lines.append(f"unchanged: {_some(self.unchanged)}")
        return "\n".join(lines)


def _some(names: tuple[str, ...], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
