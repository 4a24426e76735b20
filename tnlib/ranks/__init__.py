"""Choosing ranks and modes: how many values for which error."""
