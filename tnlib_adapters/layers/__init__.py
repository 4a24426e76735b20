"""Layers that carry updates, and the trained state of an update."""
