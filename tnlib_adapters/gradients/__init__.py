"""Gradients of adapted weights: what a method can hold of them, and starts made of them."""
