"""Hypothesis strategies that draw arrays and formats, and oracles to measure results against."""

from tnlib.testing.oracles import mode_tails, relative_error, unfolding_tails, with_spectrum
from tnlib.testing.strategies import (
    adversarial_tensors,
    cps,
    matrices,
    operators,
    tensors,
    trains,
    tuckers,
)

__all__ = [
    "adversarial_tensors",
    "cps",
    "matrices",
    "mode_tails",
    "operators",
    "relative_error",
    "tensors",
    "trains",
    "tuckers",
    "unfolding_tails",
    "with_spectrum",
]
