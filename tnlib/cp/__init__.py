"""Canonical polyadic decompositions: a sum of rank-one terms."""

from tnlib.cp.format import CP

__all__ = ["CP"]
