"""Declarations: which cores an adapter has, and what is made of them."""
