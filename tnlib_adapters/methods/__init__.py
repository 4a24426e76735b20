"""The methods, one readable file each."""

from tnlib_adapters.methods.dota import DoTAConfig

__all__ = ["DoTAConfig"]
