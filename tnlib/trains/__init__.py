"""Tensor trains and matrix product operators: chains of cores."""
