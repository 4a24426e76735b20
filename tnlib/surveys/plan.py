"""From some weights to the tasks of a survey."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tnlib.surveys.inventory import Matrix, matrices, stacks
from tnlib.surveys.options import Options
from tnlib.surveys.tasks import MatrixTask, StackTask
from tnlib.weights.source import Weights
from tnlib.weights.tensor import Difference, WeightTensor

Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes
    ----------
    matrices : tuple of Matrix
        In the order of the source.
    tasks : tuple of MatrixTask or StackTask
        One for every matrix, and one for every stack.
    problems : tuple of dict
        Records of what cannot be read.
    others : tuple of str
        Tensors that are no matrices, such as norms and biases.
    """

    matrices: tuple[Matrix, ...]
    tasks: tuple[MatrixTask | StackTask, ...]
    problems: tuple[Record, ...]
    others: tuple[str, ...]

    @property
    def by_cost(self) -> list[MatrixTask | StackTask]:
        """The tasks, the longest first."""
        return sorted(self.tasks, key=lambda task: -task.cost)

    @property
    def largest(self) -> int:
        """Values of the largest matrix."""
        return max(matrix.size for matrix in self.matrices)


def planned(weights: Weights, base: Weights | None, options: Options) -> Plan:
    """The tasks for the matrices that are wanted.

    Raises
    ------
    ValueError
        If there are none.
    """
    everything = [*matrices(weights.tensors)]
    wanted = [matrix for matrix in everything if options.wanted(matrix.name)]
    problems = tuple(
        {"record": "failure", "what": "tensor", "name": name, "reason": reason, "seconds": 0.0}
        for name, reason in weights.problems.items()
        if options.wanted(name.removesuffix(".weight"))
    )
    if not wanted:
        some = ", ".join(matrix.name for matrix in everything[:3]) or "no matrices"
        raise ValueError(
            f"nothing is selected of {weights.label}, which has {some}"
            f"{' and others' if len(everything) > 3 else ''}"
        )
    tasks: list[MatrixTask | StackTask] = [
        MatrixTask(m, weights.tensors[m.tensor], options, _base(m, weights, base)) for m in wanted
    ]
    for stack in stacks(wanted):
        tensors = tuple(weights.tensors[matrix.tensor] for matrix in stack.matrices)
        tasks.append(StackTask(stack, tensors, options))
    used = {matrix.tensor for matrix in everything}
    others = tuple(name for name in weights.tensors if name not in used)
    return Plan(tuple(wanted), tuple(tasks), problems, others)


def _base(matrix: Matrix, weights: Weights, base: Weights | None) -> WeightTensor | None:
    tensor = weights.tensors[matrix.tensor]
    if isinstance(tensor, Difference):
        return tensor.old
    return base.tensors.get(matrix.tensor) if base is not None else None


def ordered(plan: Plan, records: Mapping[str, Record]) -> list[Record]:
    """All records in the order of the plan: matrices, stacks, methods, what failed."""
    places = {task.key: place for place, task in enumerate(plan.tasks)}
    found = sorted(records, key=lambda key: (places.get(key, len(places)), key))
    done = [records[key] for key in found if records[key]["record"] != "failure"]
    failed = [records[key] for key in found if records[key]["record"] == "failure"]
    return [*done, *failed, *plan.problems]
