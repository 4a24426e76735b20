"""Weights in 4 bits: their layout, the layer that has one, and bitsandbytes' layers as they are."""
