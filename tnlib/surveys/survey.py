"""``survey``: every matrix of a checkpoint, or of what fine-tuning changed of one."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from tnlib.arrays import checks
from tnlib.common.keywords import keywords_named
from tnlib.surveys.inventory import Matrix
from tnlib.surveys.options import Options, checked_options
from tnlib.surveys.plan import Plan, ordered, planned
from tnlib.surveys.result import Survey
from tnlib.surveys.running import run
from tnlib.surveys.store import Memory, Store
from tnlib.surveys.tasks import Task
from tnlib.surveys.update_methods import LEADING, MethodTask, Update, known_methods
from tnlib.weights.difference import difference
from tnlib.weights.opening import open_weights
from tnlib.weights.source import Weights

if TYPE_CHECKING:
    import torch

    from tnlib.common.type_aliases import AnyArray, Device

    Source = str | os.PathLike[str] | torch.nn.Module | Mapping[str, AnyArray]

TABLE, REPORT = "table.txt", "report.html"
# Bytes that a worker needs for every value of its matrix, as measured.
_WORKING = 16


@keywords_named
def survey(
    source: Source,
    base: Source | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    select: str | None = None,
    exclude: str | None = None,
    shapes: Sequence[str] = ("mpo-2", "mpo-3", "tt-4"),
    budget: float | Sequence[float] = (0.01, 0.05, 0.2),
    eps: float | Sequence[float] = (0.5, 0.2, 0.1),
    dtype: str | None = None,
    device: Device | None = None,
    exact_side: int = 2048,
    leading: int = 256,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> Survey:
    """Look into all matrices of a checkpoint, or into what fine-tuning changed of one.

    Of every matrix: norm, stable and effective rank, spectrum, the exponent of a power law, and how
    well low rank, operators and trains fit it. Of every kind of matrix over the layers, and over
    the experts of a layer: how much factors in common hold. Of an update also how much of it each
    method of fine-tuning can hold at which size.

    Tensors are read one at a time. With `output`, what is done is kept as it goes, and the same
    call continues a survey that was stopped.

    Parameters
    ----------
    source : path, str, torch.nn.Module or mapping of str to array
        A safetensors file, a folder of shards, the name of a model on the hub, a module, arrays by
        name; or the folder of a LoRA of PEFT, which is an update by itself.
    base : the same, optional
        What `source` was fine-tuned from: the difference is looked at.
    output : path, optional
        Folder to write: ``records.jsonl``, ``survey.json``, ``table.txt`` and ``report.html``. New,
        or that of a survey of the same with the same arguments.
    select, exclude : str, optional
        Regular expressions, searched for in the names of matrices.
    shapes : sequence of str, optional
        Formats: ``mpo-3`` is an operator of three cores with balanced modes, ``tt-4`` a train of
        four, two for the rows. Without any, low rank alone is looked at.
    budget : float or sequence of float, optional
        Shares of a matrix's values, at which the best format is told; curves end at the largest.
    eps : float or sequence of float, optional
        Relative errors, for which the fewest values are told.
    dtype : {"float32", "float64"}, optional
        Precision of the arithmetic; by default that of the weights, float32 at least.
    device : str or torch.device, optional
        Compute by torch on this device; by default NumPy.
    exact_side : int, optional
        Matrices whose smaller side is at most this have an exact spectrum; of others the `leading`
        singular values are found, and the rest is bounded.
    leading : int, optional
        See `exact_side`.
    workers : int, optional
        Processes. By default as many as there are cores and memory has room for; one for weights in
        memory.
    scheduler : str, optional
        Address of a Dask scheduler, whose workers see the files under the same paths; needs the
        extra ``cluster``.
    progress : bool, optional
        Whether to show a progress bar, once a few seconds have gone.

    Returns
    -------
    Survey

    Raises
    ------
    FileNotFoundError, FileExistsError
        If there is no such source, or `output` holds something else.
    ImportError
        If a scheduler is named and Dask is not installed.
    TypeError, ValueError
        If an argument is wrong, the source has no matrices, is pickled, or does not fit `base`.
        A tensor that cannot be read or decomposed is a failure in the result, and stops nothing.

    Notes
    -----
    A worker needs about four times its largest matrix in single precision.

    Examples
    --------
    >>> import numpy as np
    >>> from tnlib import survey
    >>> i, j = np.ogrid[:48, :64]
    >>> found = survey({"kernel": 1.0 / (1 + abs(i - j))}, budget=0.2)
    >>> kernel = found.matrices[0]
    >>> round(kernel.stable_rank, 2), kernel.best[0]["format"]
    (2.64, 'mpo-3')
    """
    options = checked_options(
        shapes,
        budget,
        eps,
        select=select,
        exclude=exclude,
        dtype=dtype,
        device=device,
        exact_side=exact_side,
        leading=leading,
    )
    checks.flag("progress", progress)
    if workers is not None:
        checks.positive_int("workers", workers)
    weights = open_weights(source)
    before = None if base is None else open_weights(base, "base")
    folder = None if output is None else _free_of(output, source, base)
    if before is not None:
        weights = difference(weights, before)
    if weights.is_update:
        options = Options(**{**vars(options), "factors": LEADING})
    plan = planned(weights, before, options)
    about = _about(weights, before, options)
    store = Memory() if folder is None else Store(folder, about)
    processes = _workers(workers, plan, isinstance(source, str | os.PathLike))
    methods = [*known_methods()] if weights.is_update else []
    with_factors = any(f"method {name}" not in store.records for name in methods)
    left = [task for task in plan.by_cost if not _is_done(task.key, store, with_factors)]
    _work(plan.tasks, left, store, "survey", progress, workers=processes, scheduler=scheduler)
    if weights.is_update:
        update = _update(plan, store, weights, before, base)
        fits = [MethodTask(name, update) for name in methods if update.matrices]
        fitting = [task for task in fits if task.key not in store.records]
        # Methods read what was kept of all matrices, which workers of a cluster may not see.
        _work(fits, fitting, store, "methods", progress, workers=1 if scheduler else processes)
    records = ordered(plan, store.records)
    found = Survey(
        weights.label, weights.is_update, options.as_json(), tuple(records), weights.notes
    )
    if isinstance(store, Store):
        store.finish(records)
        store.write(TABLE, f"{found}\n")
        found.report(store.folder / REPORT)
    return found


def _free_of(output: Any, source: Any, base: Any) -> Path:
    """The folder to write, which must not be one that is read."""
    if not isinstance(output, str | os.PathLike):
        raise TypeError(f"output must be a path, got {type(output).__name__}")
    folder = Path(output).expanduser()
    for place in (source, base):
        if isinstance(place, str | os.PathLike) and Path(place).resolve() == folder.resolve():
            raise ValueError(f"output is {folder}, which is read; name a new folder")
    return folder


def _about(weights: Weights, base: Weights | None, options: Options) -> dict[str, Any]:
    """What the numbers of a survey depend on."""
    return {
        "source": weights.label,
        "fingerprint": weights.fingerprint(),
        "base_fingerprint": None if base is None else base.fingerprint(),
        "options": options.as_json(),
        "tnlib": importlib.metadata.version("tnlib"),
    }


def _workers(asked: int | None, plan: Plan, from_files: bool) -> int:
    """Processes: what is asked for, or as many as cores and memory allow."""
    if asked is not None:
        return asked
    if not from_files:
        return 1
    import joblib

    cores = int(joblib.cpu_count(only_physical_cores=True))
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return cores
    return max(min(cores, len(plan.tasks), memory // 2 // (_WORKING * plan.largest)), 1)


def _work(
    tasks: Sequence[Task],
    left: Sequence[Task],
    store: Store | Memory,
    what: str,
    progress: bool,
    **where: Any,
) -> None:
    """Do those of the tasks that are left."""
    total = sum(task.cost for task in tasks)
    begun = total - sum(task.cost for task in left)
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
    with tqdm(
        total=total, initial=begun, desc=what, disable=not progress, delay=2, bar_format=form
    ) as bar:
        number = len(tasks) - len(left)
        for task, done in run(left, **where):
            store.add(task.key, done)
            number += 1
            bar.set_postfix_str(f" {number} of {len(tasks)}", refresh=False)
            bar.update(task.cost)


def _is_done(key: str, store: Store | Memory, with_factors: bool) -> bool:
    """Whether a task has its result, with what methods that are left to fit need of it."""
    record = store.records.get(key)
    if record is None:
        return False
    return not (with_factors and record["record"] == "matrix") or store.has_factors(record)


def _update(
    plan: Plan, store: Store | Memory, weights: Weights, before: Weights | None, base: Any
) -> Update:
    """The update as methods see it: what changed inside the layers."""
    matrices = {}
    for matrix in plan.matrices:
        record = store.records[f"matrix {matrix.name}"]
        if record["record"] == "matrix" and matrix.layer is not None and record["norm"]:
            matrices[matrix.name] = matrix

    def read(name: str, of: Weights) -> np.ndarray[Any, Any]:
        one: Matrix = matrices[name]
        return of.tensors[one.tensor].read(one.index).reshape(one.shape)

    energies = {name: store.records[f"matrix {name}"]["norm"] ** 2 for name in matrices}
    folder = Path(base) if isinstance(base, str | os.PathLike) else None
    return Update(
        tuple(matrices.values()),
        energies,
        store.factors,
        lambda name: read(name, weights),
        None if before is None else lambda name: read(name, before),
        folder if folder is not None and folder.is_dir() else None,
    )
