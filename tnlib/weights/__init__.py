"""Weights in files, in memory, and what is between two of them: read one tensor at a time."""
