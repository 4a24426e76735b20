"""A layer whose weight is a quantised residual plus a frozen network.

Q(W - N(theta_0)) + N(theta_0): the base of QDoTA in the order of the paper. The initial operator is
taken out of the weight before it is quantised. The layer computes the sum, so that without its
adapter the model still is near the original one; with it, N(theta) takes the place of N(theta_0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tnlib_adapters.base_model.linear_modules import is_transposed
from tnlib_adapters.execution.base_weight import PackedBase
from tnlib_adapters.execution.recomputed_linear import recomputed_linear
from tnlib_adapters.fourbit.layer import QuantizedLinear, relative_distance
from tnlib_adapters.fourbit.packed import Format, PackedWeight
from tnlib_adapters.fourbit.product import check_activations, computing_dtype
from tnlib_adapters.networks.core import Cores

if TYPE_CHECKING:
    from tnlib_adapters.networks.network import Network

# Before the names of the initial cores in the layer's state.
REMOVED = "removed_"


@dataclass(frozen=True, eq=False)
class ResidualWeight(PackedBase):
    """A weight as its quantised residual and what was taken out of it.

    Attributes
    ----------
    packed : PackedWeight
        Q(W - N(theta_0)).
    network : Network
        N, without an anchor.
    cores : mapping of str to Tensor
        theta_0.
    """

    packed: PackedWeight
    network: Network
    cores: Cores

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The sum of both, new."""
        removed = self.network.delta(self.cores)
        total = self.packed.dequantize(removed.dtype).add_(removed)
        return total.to(self.packed.dtype if dtype is None else dtype)

    def without_anchor(self) -> PackedWeight:
        """The residual: the one adapter of such a base is the one taken out of it."""
        return self.packed


class ResidualLinear(QuantizedLinear):
    """A quantised residual plus a frozen network.

    Parameters
    ----------
    packed : PackedWeight
        The quantised residual.
    bias : torch.nn.Parameter or None
        Of the layer.
    network : Network
        N, without an anchor.
    cores : mapping of str to Tensor
        theta_0; kept as buffers ``removed_<name>``.
    compute_dtype, deviation, transposed
        See :class:`QuantizedLinear`; the deviation is that of the sum.
    """

    def __init__(
        self,
        packed: PackedWeight,
        bias: nn.Parameter | None,
        network: Network,
        cores: Cores,
        *,
        compute_dtype: torch.dtype | None = None,
        deviation: float = float("nan"),
        transposed: bool = False,
    ) -> None:
        super().__init__(
            packed, bias, compute_dtype=compute_dtype, deviation=deviation, transposed=transposed
        )
        self.network = network
        for key, core in cores.items():
            self.register_buffer(REMOVED + key, core.detach())

    @classmethod
    def without(
        cls,
        linear: nn.Module,
        weight: Tensor,
        network: Network,
        cores: Cores,
        form: Format,
        compute_dtype: torch.dtype | None = None,
    ) -> ResidualLinear:
        """Quantise the dense `weight` of `linear` less ``N(cores)``."""
        removed = network.delta(cores)
        packed = PackedWeight.of(weight.to(removed.dtype) - removed, form, dtype=weight.dtype)
        deviation = relative_distance(packed.dequantize(removed.dtype).add_(removed), weight)
        bias: nn.Parameter | None = linear.bias  # type: ignore[assignment]
        return cls(
            packed,
            bias,
            network,
            cores,
            compute_dtype=compute_dtype,
            deviation=deviation,
            transposed=is_transposed(linear),
        )

    @property
    def weights(self) -> ResidualWeight:
        """The weight as data, without a copy."""
        cores = {key: getattr(self, REMOVED + key) for key in self.network.shapes}
        return ResidualWeight(self.packed, self.network, cores)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight (out_features, in_features), new, by default in its original dtype."""
        return self.weights.dequantize(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` of shape (..., in_features)."""
        check_activations(x)
        weights, dtype = self.weights, computing_dtype(self, x.dtype, x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            update = weights.network.bound(weights.cores, None)
            y = recomputed_linear(x.to(dtype), weights.packed, self.bias, update)
        return y.to(x.dtype)
