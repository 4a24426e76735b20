"""Types of what users pass and get.

NumPy in, NumPy out; torch in, torch out: `ArrayT` stands for one of the two in a signature. NumPy
arrays keep no dtype in their static type here, since integers come back as floating point. torch is
imported for type checking alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

NumPyArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]
ArrayT = TypeVar("ArrayT", NumPyArray, "torch.Tensor")

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    AnyArray: TypeAlias = NumPyArray | torch.Tensor
    DType: TypeAlias = str | type[np.generic] | np.dtype[Any] | torch.dtype
    Device: TypeAlias = str | torch.device
    Indices: TypeAlias = AnyArray | int | Sequence[AnyArray | int | Sequence[int]]
    Scalar: TypeAlias = complex | np.number[Any]
    RNG: TypeAlias = int | np.integer[Any] | np.random.Generator | torch.Generator | None
else:
    AnyArray = Device = DType = Indices = Scalar = RNG = Any

# Array libraries.
Library = Literal["numpy", "torch"]
# Starts of an iteration: leading singular vectors, or random numbers.
Start = Literal["hosvd", "random"]
# Kernels of a truncated basis.
Method = Literal["auto", "svd", "gram", "krylov"]
