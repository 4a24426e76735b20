"""How an update is applied to activations: tensors in, tensors out."""
