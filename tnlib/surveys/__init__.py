"""Whole checkpoints looked at: every matrix, stacks of them, and what fine-tuning changed."""
