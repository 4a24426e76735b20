"""Cores: names, legs, where they start and who shares them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tnlib.common.deprecation import renamed_fields
from tnlib_adapters.networks.initializers import Initializer, nonzero, normal

Cores = Mapping[str, Tensor]
# Chains of matrices, one for each map of an adapter.
Maps = tuple[Sequence[Tensor], ...]
Factors = tuple[Tensor, Tensor]


@renamed_fields(start="initializer")
@dataclass(frozen=True)
class Core:
    """One core of a network.

    Attributes
    ----------
    name : str
        Its name, an identifier.
    legs : tuple of str
        Names of its legs, in the order of its axes.
    initializer : Initializer
        Distribution of its initial values.
    group : str, optional
        None for a core of one weight; otherwise the name of a sharing group, for example "model":
        cores of one name and group are one tensor.
    frozen : bool
        Whether it is kept as it starts.

    Examples
    --------
    >>> from tnlib_adapters import normal
    >>> core = Core("u", ("out", "rank"), normal(0.02), group="768x768")
    >>> core.key, str(core.initializer), core.frozen
    ('u_768x768', 'N(0, 0.02^2)', False)
    """

    name: str
    legs: tuple[str, ...]
    initializer: Initializer = normal()  # noqa: RUF009 (an immutable value)
    group: str | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"core names must be identifiers, got {self.name!r}")
        if self.group is not None and not re.fullmatch(r"\w+", self.group):
            raise ValueError(f"groups are named by letters, digits and _, got {self.group!r}")

    @property
    def key(self) -> str:
        """The name under which its values are kept: with the group, where it has one."""
        return self.name if self.group is None else f"{self.name}_{self.group}"

    def initialized(
        self, shape: tuple[int, ...], generator: torch.Generator | None, *, zeros: bool
    ) -> Tensor:
        """Draw it; without `zeros`, small values in the place of zeros."""
        drawn = self.initializer if zeros else nonzero(self.initializer, shape)
        return drawn.draw(shape, generator)


def computing(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which tensors are combined: theirs, but at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
