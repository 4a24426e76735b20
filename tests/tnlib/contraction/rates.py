"""A roofline with round numbers."""

from __future__ import annotations

from tnlib import Roofline

RATES = Roofline(
    library="torch",
    device="cpu",
    dtype="float32",
    itemsize=4,
    flops_per_second=1e11,
    read_bytes_per_second=1e10,
    write_bytes_per_second=1e10,
    fresh_bytes_per_second=1e10,
    move_bytes_per_second=1e9,
    seconds_per_step=1e-5,
    seconds_per_batch=1e-7,
)
