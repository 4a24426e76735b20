"""Decompositions in files."""
