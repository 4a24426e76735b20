"""A dense layer in the place of a quantised one."""

from __future__ import annotations

from torch import Tensor, nn


class DenseLinear(nn.Linear):
    """A linear layer that computes in its weight's dtype whatever the activations have.

    What a quantised layer becomes when an update is merged into it: quantised layers take
    activations of any dtype, and so does this.

    Parameters
    ----------
    weight : Tensor, shape (out_features, in_features)
        Not copied.
    bias : Tensor or None, shape (out_features,)
        Cast to the weight's dtype.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        own = None if bias is None else nn.Parameter(bias.detach().to(weight.dtype), False)
        self.bias = own  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` of shape (..., in_features), in its dtype."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)
