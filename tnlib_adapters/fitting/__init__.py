"""Decompositions of given low-rank updates: what turns a LoRA into another method."""
