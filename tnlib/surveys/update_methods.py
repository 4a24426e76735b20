"""Methods of fine-tuning side by side: how much of an update each can hold, at which size.

tnlib knows low rank alone. Other packages register theirs as an entry point of the group
``tnlib.update_methods``: a function without arguments that gives, by the names of methods,
functions from an :class:`Update` to one :class:`MethodPoint` for every size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from tnlib.ranks.choose_ranks import Task, choose
from tnlib.ranks.parameter_counts import ChainCount
from tnlib.ranks.spectra import Spectra
from tnlib.surveys.inventory import Matrix
from tnlib.surveys.tasks import Done, Factors

GROUP = "tnlib.update_methods"
# Singular vectors of every update that methods are fitted to.
LEADING = 64
_RANKS = (1, 2, 4, 8, 16, 32, 64)
_BYTES = 4


@dataclass(frozen=True)
class Update:
    """An update of many weights, as a method is fitted to it.

    Attributes
    ----------
    matrices : tuple of Matrix
        The weights that changed, inside the numbered layers of the model.
    energies : dict of str to float
        The squared norm of the update of every matrix, by its name.
    factors : callable
        Gives the leading part of the update of a name as two float32 arrays (m, k) and (k, n), with
        orthonormal columns in the first; None for a zero update.
    read : callable
        Gives the update of a name in full.
    base : callable or None
        Gives the weight that was changed; None where there is no base.
    folder : Path or None
        The base model, where it is a folder.
    """

    matrices: tuple[Matrix, ...]
    energies: dict[str, float]
    factors: Callable[[str], Factors | None]
    read: Callable[[str], np.ndarray[Any, Any]]
    base: Callable[[str], np.ndarray[Any, Any]] | None
    folder: Path | None

    @property
    def energy(self) -> float:
        """The squared norm of the whole update."""
        return math.fsum(self.energies.values())


@dataclass(frozen=True)
class MethodPoint:
    """One method of one size.

    Attributes
    ----------
    setting : str
        What its size is, such as ``r=8``.
    params : int
        Values that are trained.
    bytes : int
        Bytes of the adapter's file, without its header.
    kept : float
        Which part of the update's energy it holds.

    Examples
    --------
    >>> MethodPoint("r=8", params=460_800, bytes=1_843_200, kept=0.62).kept
    0.62
    """

    setting: str
    params: int
    bytes: int
    kept: float


@dataclass(frozen=True)
class MethodTask:
    """A method to fit to an update, at all its sizes."""

    name: str
    update: Update

    @property
    def key(self) -> str:
        """By which it is found again."""
        return f"method {self.name}"

    @property
    def cost(self) -> int:
        """One; how long a method takes nobody knows."""
        return 1

    def run(self) -> Done:
        """Fit it."""
        points = [asdict(point) for point in known_methods()[self.name](self.update)]
        return Done({"record": "method", "name": self.name, "points": points})


def known_methods() -> dict[str, Callable[[Update], Iterable[MethodPoint]]]:
    """Low rank, and what other packages have registered, by name."""
    found: dict[str, Callable[[Update], Iterable[MethodPoint]]] = {"low rank": low_rank}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            found |= entry.load()()
        except ImportError as error:
            found[f"methods of {entry.name}"] = _missing(error)
    return found


def _missing(error: ImportError) -> Callable[[Update], Iterable[MethodPoint]]:
    """In the place of methods whose package lacks something: the failure says what."""

    def missing(update: Update) -> Iterable[MethodPoint]:
        raise ImportError(f"cannot be compared: {error}; install tnlib[adapters]") from error

    return missing


def low_rank(update: Update) -> Iterator[MethodPoint]:
    """Truncated SVDs with ranks that are chosen for all matrices at once.

    The sizes are those of equal ranks of 1, 2, 4 and so on.
    """
    spectra, weights, widths = [], [], []
    for matrix in update.matrices:
        factors = update.factors(matrix.name)
        if factors is None:
            continue
        values = np.sort(np.square(factors[1], dtype=np.float64).sum(1))[::-1]
        energy = update.energies[matrix.name]
        beyond = max(1.0 - math.fsum(values) / energy, 0.0)
        spectra.append(Spectra(ChainCount(matrix.shape), (values / energy,), (beyond,), energy))
        weights.append(energy)
        widths.append((min(matrix.shape), sum(matrix.shape)))
    if not spectra:
        return
    largest = max(weights)
    task = Task(tuple(spectra), tuple(weight / largest for weight in weights))
    for rank in _RANKS:
        budget = sum(min(rank, side) * both for side, both in widths)
        chosen = choose(task, budget)
        kept = 1.0 - task.loss(chosen) * largest / update.energy
        params = task.values(chosen)
        yield MethodPoint(f"mean rank {rank}", params, _BYTES * params, kept)
