"""Numbers of bytes for people."""

from __future__ import annotations


def size(n_bytes: int) -> str:
    """A number of bytes in its unit.

    Examples
    --------
    >>> size(999), size(1_234_567)
    ('999 B', '1.23 MB')
    """
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{n_bytes} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
