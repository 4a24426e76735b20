"""Trains from a function of indices, of which few entries are asked."""
