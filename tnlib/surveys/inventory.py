"""Which matrices there are in some weights, and which of them are of one kind.

A name says where a matrix is: the first number in it is the layer, a number behind a part that
speaks of experts is the expert. Without them, names of one kind are equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tnlib.weights.tensor import WeightTensor


@dataclass(frozen=True)
class Matrix:
    """A matrix of some weights.

    Attributes
    ----------
    name : str
        Name of its module, of a member of a stack with its number: ``experts.up_proj[3]``.
    tensor : str
        Name of the tensor that has it.
    index : int or None
        Which member of the tensor it is; None where it is the whole of it.
    shape : (int, int)
        Rows and columns; of a convolution the output channels and all others.
    kind : str
        Its name with stars for layer and expert.
    layer, expert : int or None
        Their numbers.
    """

    name: str
    tensor: str
    index: int | None
    shape: tuple[int, int]
    kind: str
    layer: int | None
    expert: int | None

    @property
    def size(self) -> int:
        """Number of its values."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Stack:
    """Matrices of one kind and shape: of all layers, or all experts of one.

    Attributes
    ----------
    name : str
        Their kind, with the number of the layer for experts.
    over : {"layers", "experts"}
        What they are numbered by.
    matrices : tuple of Matrix
        In the order of their numbers.
    """

    name: str
    over: str
    matrices: tuple[Matrix, ...]


def matrices(tensors: Mapping[str, WeightTensor]) -> Iterator[Matrix]:
    """All matrices, in the order of the weights; vectors and empty tensors are none."""
    for name, tensor in tensors.items():
        shape = tensor.shape
        if len(shape) < 2 or 0 in shape:
            continue
        module = name.removesuffix(".weight")
        if len(shape) == 3 and re.search("expert|moe", module):
            kind, layer, _ = located(module)
            for index in range(shape[0]):
                member = f"{module}[{index}]"
                sides = (shape[1], shape[2])
                yield Matrix(member, name, index, sides, f"{kind}[*]", layer, index)
        else:
            sides = (shape[0], math.prod(shape[1:]))
            yield Matrix(module, name, None, sides, *located(module))


def located(name: str) -> tuple[str, int | None, int | None]:
    """The kind of a module by its name, its layer and its expert.

    Examples
    --------
    >>> located("model.layers.3.mlp.experts.7.up_proj")
    ('model.layers.*.mlp.experts.*.up_proj', 3, 7)
    >>> located("lm_head")
    ('lm_head', None, None)
    """
    parts = name.split(".")
    layer = expert = None
    for k, part in enumerate(parts):
        if not part.isdecimal():
            continue
        if k and "expert" in parts[k - 1] and expert is None:
            expert, parts[k] = int(part), "*"
        elif layer is None:
            layer, parts[k] = int(part), "*"
    return ".".join(parts), layer, expert


def stacks(found: Sequence[Matrix]) -> list[Stack]:
    """Stacks of at least two matrices, in the order of their first ones."""
    groups: dict[tuple[object, ...], list[Matrix]] = {}
    for matrix in found:
        if matrix.expert is not None:
            groups.setdefault((matrix.kind, matrix.shape, matrix.layer), []).append(matrix)
        elif matrix.layer is not None:
            groups.setdefault((matrix.kind, matrix.shape), []).append(matrix)
    result = []
    for same in groups.values():
        first = same[0]
        if len(same) < 2:
            continue
        if first.expert is None:
            name, over = first.kind, "layers"
            same.sort(key=lambda one: one.layer or 0)
        else:
            name, over = first.kind, "experts"
            if first.layer is not None:
                name = name.replace("*", str(first.layer), 1)
            same.sort(key=lambda one: one.expert or 0)
        result.append(Stack(name, over, tuple(same)))
    sizes: dict[str, list[Stack]] = {}
    for stack in result:
        sizes.setdefault(stack.name, []).append(stack)
    return [
        stack
        if len(sizes[stack.name]) == 1
        else replace(stack, name=f"{stack.name} {'x'.join(map(str, stack.matrices[0].shape))}")
        for stack in result
    ]
