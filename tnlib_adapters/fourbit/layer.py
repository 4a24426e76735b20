"""A linear layer whose weight is in 4 bits, in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tnlib_adapters.base_model.linear_modules import is_transposed
from tnlib_adapters.fourbit.bitsandbytes import is_bitsandbytes, packed_of
from tnlib_adapters.fourbit.packed import Format, PackedWeight
from tnlib_adapters.fourbit.product import check_activations, computing_dtype, packed_linear
from tnlib_adapters.fourbit.stored import parts, read


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with its weight in 4 bits, dequantised in every call.

    Forward and backward pass hold one dense weight for as long as their matrix product takes. The
    layer is saved under the names that bitsandbytes uses, loads by ``load_state_dict``, and keeps
    its scales in float32 whatever dtype the model is cast to.

    Parameters
    ----------
    weight : PackedWeight
        The quantised weight.
    bias : torch.nn.Parameter, optional
        Of shape (out_features,).
    compute_dtype : torch.dtype, optional
        In which activations and weight are multiplied; by default that of the activations, or
        autocast's. The output has the dtype of the input.
    deviation : float
        Relative Frobenius distance of the dequantised weight from the one it was made of; nan
        where that is not known.
    transposed : bool
        Whether the layer stands for a ``Conv1D`` of transformers, whose weight is (in, out).

    Attributes
    ----------
    weight : torch.nn.Parameter
        The bytes, of uint8; without gradient.
    deviation, transposed
        As given.

    Examples
    --------
    >>> import torch
    >>> from tnlib_adapters.quantization import QuantizedLinear
    >>> layer = QuantizedLinear.from_linear(torch.nn.Linear(512, 256))
    >>> layer(torch.randn(3, 512)).shape
    torch.Size([3, 256])
    >>> layer.dequantize().shape, layer.nbytes, round(layer.bits_per_weight, 2)
    (torch.Size([256, 512]), 67620, 4.13)
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: nn.Parameter | None = None,
        *,
        compute_dtype: torch.dtype | None = None,
        deviation: float = float("nan"),
        transposed: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.packed, requires_grad=False)
        self.bias = bias  # type: ignore[assignment]
        self.compute_dtype = compute_dtype
        self.deviation = deviation
        self.transposed = transposed
        self._packed = weight

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        *,
        quant_type: str = "nf4",
        blocksize: int = 64,
        double_quant: bool = True,
        compute_dtype: torch.dtype | None = None,
    ) -> QuantizedLinear:
        """Quantise a linear layer; the bias is shared, the weight is left as it is.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers' Conv1D
            Of any floating dtype.
        quant_type : str
            "nf4" or "fp4".
        blocksize : int
            Values that share a scale: 32, 64, ..., 4096.
        double_quant : bool
            Store the scales in 8 bits, for 4.13 bits per weight instead of 4.5 at blocks of 64.
        compute_dtype : torch.dtype, optional
            See the class.

        Raises
        ------
        TypeError
            If it is no linear layer.
        ValueError
            If it is quantised already, on the meta device or not finite, or an option is unknown.

        Examples
        --------
        >>> import torch
        >>> linear = torch.nn.Linear(256, 128)
        >>> layer = QuantizedLinear.from_linear(linear, blocksize=128, double_quant=False)
        >>> layer.bits_per_weight, 0.08 < layer.deviation < 0.11
        (4.25, True)
        """
        form = Format(quant_type, blocksize, double_quant)
        check_compute_dtype(compute_dtype)
        weight = dense_weight_of(linear)
        packed = PackedWeight.of(weight, form)
        deviation = relative_distance(packed.dequantize(torch.float32), weight)
        bias: Any = linear.bias
        return cls(
            packed,
            bias,
            compute_dtype=compute_dtype,
            deviation=deviation,
            transposed=is_transposed(linear),
        )

    @property
    def packed(self) -> PackedWeight:
        """The weight as data, without a copy."""
        return self._packed.placed(self.weight)

    @property
    def format(self) -> Format:
        """Code, block size and whether the scales are quantised."""
        return self._packed.format

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight (out_features, in_features), new, by default in its original dtype.

        Examples
        --------
        >>> import torch
        >>> layer = QuantizedLinear.from_linear(torch.nn.Linear(256, 128))
        >>> layer.dequantize(torch.bfloat16).dtype
        torch.bfloat16
        """
        return self.packed.dequantize(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight with its scales, without the bias."""
        return self.packed.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of memory for one value of the weight."""
        return 8 * self.nbytes / (self.out_features * self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` of shape (..., in_features), floating point."""
        check_activations(x)
        dtype = computing_dtype(self, x.dtype, x.device.type)
        return packed_linear(x.to(dtype), self.packed, self.bias).to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._packed = self._packed.placed(self.weight.data)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, value in parts(self.packed).items():
            destination[f"{prefix}weight.{key}"] = value

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        start = f"{prefix}weight"
        device = self.weight.device
        given = {
            key.removeprefix(f"{start}."): value.to(device)
            for key, value in state_dict.items()
            if key.startswith(f"{start}.")
        }
        found = None
        if start in state_dict:
            try:
                found = read(state_dict[start], given).placed(self.weight)
                if found.shape != self._packed.shape:
                    raise ValueError(f"the file has {found.shape}, the layer {self._packed.shape}")
            except ValueError as error:
                error_msgs.append(f"{start}: {error}")
                return
        rest = {k: v for k, v in state_dict.items() if not k.startswith(f"{start}.")}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if found is not None:
            self._packed, self.deviation = found, float("nan")

    def extra_repr(self) -> str:
        """Widths, format and memory."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.format}, "
            f"{self.bits_per_weight:.2f} bits per weight"
        )


def dense_weight_of(linear: nn.Module) -> Tensor:
    """The weight (out_features, in_features) of a layer that can be quantised.

    Raises
    ------
    TypeError
        If it is no linear layer.
    ValueError
        If it is quantised already.
    """
    if isinstance(linear, QuantizedLinear) or is_bitsandbytes(linear):
        raise ValueError(
            "the layer is in 4 bits already; quantise the layer in full precision, or leave this "
            "one out (skip=...)"
        )
    weight = getattr(linear, "weight", None)
    if not (isinstance(linear, nn.Linear) or is_transposed(linear)) or weight is None:
        raise TypeError(
            f"cannot quantise a {type(linear).__name__}: only torch.nn.Linear and transformers' "
            "Conv1D are supported"
        )
    if not weight.is_floating_point() and not weight.is_complex():
        raise ValueError(
            f"the layer is quantised already: its weight is of {weight.dtype}; quantise the layer "
            "in full precision, or leave this one out (skip=...)"
        )
    return weight.mT if is_transposed(linear) else weight  # type: ignore[no-any-return]


def packed_weight(layer: nn.Module) -> PackedWeight | None:
    """The weight of a layer in 4 bits, ours or bitsandbytes'; None for any other.

    Raises
    ------
    ValueError
        If bitsandbytes has rewritten the layer, or not quantised it yet.
    """
    if isinstance(layer, QuantizedLinear):
        return layer.packed
    return packed_of(layer) if is_bitsandbytes(layer) else None


def check_compute_dtype(dtype: torch.dtype | None) -> None:
    """Raise TypeError unless `dtype` is None or a floating dtype."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"compute_dtype must be a floating torch.dtype or None, got {dtype!r}")


def relative_distance(matrix: Tensor, reference: Tensor) -> float:
    """Frobenius distance of two matrices over the norm of the second; 0 for two zeros."""
    reference = reference.detach().to(matrix.dtype)
    norm = float(torch.linalg.norm(reference))
    return float(torch.linalg.norm(matrix - reference)) / norm if norm else 0.0
