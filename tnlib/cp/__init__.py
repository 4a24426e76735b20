"""Canonical polyadic decompositions: a sum of rank-one terms."""

from tnlib.cp.decompose import cp_als, cp_als_batch
from tnlib.cp.format import CP

__all__ = ["CP", "cp_als", "cp_als_batch"]
