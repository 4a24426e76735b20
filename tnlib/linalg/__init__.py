"""Factorisations and truncated bases of one matrix."""
