"""The forward pass of experts whose weights carry updates: the module's own, on other weights.

The module's forward pass, whichever implementation of it is chosen, runs on a view of the module
that gives :class:`AdaptedWeight` in the place of its adapted weights. Their products with
activations are those of the base weight, with the products with the updates added: expert by
expert, row by row or in groups, as the implementation computes them. Any other use of such a weight
raises, so that no update is left out unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnlib_adapters.base_model.expert_parameters import uses_interface
from tnlib_adapters.layers.expert_update import ExpertUpdate

# Rows of the matrices of a weight, and the update of an adapter to them.
Part = tuple[slice, ExpertUpdate]


def experts_forward(
    base: nn.Module, parts: Mapping[str, Sequence[Part]], *args: Any, **kwargs: Any
) -> Any:
    """``base(...)`` with updates of its parameters, by their names.

    Raises
    ------
    TypeError
        If the module uses an adapted weight in a way that is not known.
    """
    forward: Any = type(base).forward
    tokens = None
    if uses_interface(base):
        from transformers.integrations import moe

        chosen: str = base.config._experts_implementation  # type: ignore[assignment,union-attr]
        forward = moe.ALL_EXPERTS_FUNCTIONS.get_interface(chosen, forward.__wrapped__)
        if forward is moe.grouped_mm_experts_forward:
            tokens = _Tokens.of(*args, **kwargs)
    weights = {}
    for name, found in parts.items():
        first = name != "down_proj"
        weights[name] = AdaptedWeight(getattr(base, name), found, None, tokens if first else None)
    return forward(_View(base, weights), *args, **kwargs)


@dataclass(frozen=True)
class _Tokens:
    """The activations that experts are called with, and which of them every sorted row is.

    Products that all experts share are done once a token, and not once for each of its experts.
    """

    hidden_states: Tensor
    source: Tensor

    @classmethod
    def of(cls, hidden_states: Tensor, top_k_index: Tensor, *_: Any, **__: Any) -> _Tokens:
        """As transformers sorts them for grouped products."""
        order = torch.sort(top_k_index.reshape(-1))[1]
        return cls(hidden_states, order // top_k_index.shape[-1])


class _View:
    """A module with other values for some of its attributes; its methods see those too."""

    def __init__(self, module: nn.Module, instead: Mapping[str, Any]) -> None:
        self._module = module
        self._instead = instead

    def __getattr__(self, name: str) -> Any:
        if name in self._instead:
            return self._instead[name]
        method = getattr(type(self._module), name, None)
        if isinstance(method, FunctionType):
            return lambda *args, **kwargs: method(self, *args, **kwargs)
        return getattr(self._module, name)


class AdaptedWeight:
    """A weight of experts, or what was taken of it, that is multiplied with its updates added.

    Parameters
    ----------
    value : Tensor
        The base weight: of all experts, of one, or one for every row.
    parts : sequence of Part
        The updates.
    experts : Tensor, optional
        By which index it was taken of the weight of all experts.
    tokens : _Tokens, optional
        What it is multiplied with, before rows are made of it.
    """

    def __init__(
        self,
        value: Tensor,
        parts: Sequence[Part],
        experts: Tensor | int | None = None,
        tokens: _Tokens | None = None,
    ) -> None:
        self.value = value
        self.parts = parts
        self.experts = experts
        self.tokens = tokens

    @property
    def shape(self) -> torch.Size:
        """Of the base weight."""
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the base weight."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Of the base weight."""
        return self.value.device

    def data_ptr(self) -> int:
        """Of the base weight."""
        return self.value.data_ptr()

    def dim(self) -> int:
        """Of the base weight."""
        return self.value.dim()

    def size(self, *axis: int) -> Any:
        """Of the base weight."""
        return self.value.size(*axis)

    def transpose(self, first: int, second: int) -> AdaptedWeight:
        """The weight with its matrices transposed: how it is multiplied says how they lie."""
        value = self.value.transpose(first, second)
        return AdaptedWeight(value, self.parts, self.experts, self.tokens)

    def to(self, *args: Any, **kwargs: Any) -> AdaptedWeight:
        """The weight in another dtype or place."""
        value = self.value.to(*args, **kwargs)
        return AdaptedWeight(value, self.parts, self.experts, self.tokens)

    def float(self) -> AdaptedWeight:
        """The weight in float32."""
        return self.to(torch.float32)

    def __getitem__(self, index: Any) -> AdaptedWeight:
        one = isinstance(index, int) or (isinstance(index, Tensor) and index.ndim <= 1)
        if self.experts is not None or not one:
            raise TypeError(_unknown(f"an index {index!r}"))
        return AdaptedWeight(self.value[index], self.parts, index)

    def __rmatmul__(self, x: Any) -> Any:
        # A tensor asks for this where __torch_function__ raised: say why.
        return type(self).__torch_function__(torch.matmul, (type(self),), (x, self))

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        product = _PRODUCTS.get(function)
        if product is None and "grouped_mm" in str(function):
            product = _grouped
        if product is None:
            raise TypeError(_unknown(getattr(function, "__name__", str(function))))
        plain = [arg.value if isinstance(arg, AdaptedWeight) else arg for arg in args]
        y = function(*plain, **(kwargs or {}))
        return product(y, *args, **(kwargs or {}))

    def added(self, y: Tensor, product: Callable[[ExpertUpdate], Tensor | None]) -> Tensor:
        """``y`` plus the product of every update, in place: nobody else has seen it yet."""
        if torch.is_grad_enabled() and not y.requires_grad:
            y = y.clone()  # a view of what has no gradient cannot be added to
        for rows, update in self.parts:
            part = product(update)
            if part is not None:
                (y if rows == slice(None) else y[..., rows]).add_(part.to(y.dtype))
        return y

    def of_expert(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the updates where one expert's matrix is multiplied."""
        if self.experts is None or (isinstance(self.experts, Tensor) and self.experts.ndim):
            raise TypeError(_unknown("the matrices of several experts as one"))
        expert = int(self.experts)
        return self.added(y, lambda update: update.apply_one(x, expert))


def _unknown(use: str) -> str:
    return (
        f"this module uses its experts' weights in a way in which they cannot be adapted ({use}); "
        "choose another implementation (model.set_experts_implementation('grouped_mm')), or leave "
        "the parameter out of target_parameters"
    )


def _linear(y: Tensor, x: Tensor, weight: AdaptedWeight, bias: Any = None) -> Tensor:
    return weight.of_expert(y, x)


def _matmul(y: Tensor, x: Any, weight: Any) -> Tensor:
    if not isinstance(weight, AdaptedWeight):
        raise TypeError(_unknown("as the first factor of a product"))
    return weight.of_expert(y, x)


def _bmm(y: Tensor, first: Any, second: Any) -> Tensor:
    """One matrix a row, on either side; or one an expert, all of them."""
    swapped = isinstance(first, AdaptedWeight)
    weight: AdaptedWeight
    weight, x = (first, second.mT) if swapped else (second, first)
    result = y.mT if swapped else y
    if isinstance(weight.experts, int):
        raise TypeError(_unknown("one expert's matrix in a product of many"))
    if weight.experts is not None:
        rows, experts = x.squeeze(1), weight.experts
        added = weight.added(result.squeeze(1), lambda update: update.apply_rows(rows, experts))
        return added.unsqueeze(2 if swapped else 1)
    ends = torch.arange(1, len(x) + 1, device=x.device) * x.shape[1]
    rows = x.reshape(-1, x.shape[-1])

    def product(update: ExpertUpdate) -> Tensor:
        part = update.apply_groups(rows, ends)
        return part.view(*x.shape[:2], part.shape[-1])

    found = weight.added(result, product)
    return found.mT if swapped else found


def _grouped(y: Tensor, x: Tensor, weight: AdaptedWeight, *args: Any, **kwargs: Any) -> Tensor:
    """Sorted rows, with the row behind each expert's last one."""
    ends, tokens = args[0] if args else kwargs["offs"], weight.tokens

    def product(update: ExpertUpdate) -> Tensor:
        if tokens is None or not update.network.starts_shared:
            return update.apply_groups(x, ends)
        return update.apply_groups(tokens.hidden_states, ends, tokens.source)

    return weight.added(y, product)


_PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    functional.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.bmm: _bmm,
    Tensor.bmm: _bmm,
}
