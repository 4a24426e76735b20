"""Exchange with tensorly, and what tnlib has tensorly compute."""

from tnlib.interop.conversions import cp_constrained, from_tensorly, to_tensorly

__all__ = ["cp_constrained", "from_tensorly", "to_tensorly"]
