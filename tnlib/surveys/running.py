"""Tasks done by this process, by several, or by the workers of a Dask cluster, with one code.

joblib starts the processes and hands out the tasks, or lets Dask do so. Where a worker is lost, the
first task in line is done alone, and given up if its worker dies of it; all others whose results
did not arrive are handed out again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from tnlib.surveys.tasks import Done, Task, done, failure


def run(
    tasks: Sequence[Task], *, workers: int, scheduler: str | None = None
) -> Iterator[tuple[Task, Done]]:
    """Results of tasks as they come.

    Parameters
    ----------
    tasks : sequence of task
        The longest first, so that none is left for the end.
    workers : int
        Processes; with one the work is done in this one. Threads of the linear algebra are
        divided among them.
    scheduler : str, optional
        Address of a Dask scheduler, whose workers do the tasks, with the threads that they have.

    Raises
    ------
    ImportError
        If there is a scheduler and no Dask.
    ValueError
        If no scheduler answers.
    """
    left = {task.key: task for task in tasks}
    if scheduler is None and workers == 1:
        for task in tasks:
            yield task, done(task, None)[1]
        return
    with _handing_out(workers, scheduler) as handed_out:
        while left:
            try:
                for key, found in handed_out(left.values()):
                    yield left.pop(key), found
            except _losses():
                task = left.pop(next(iter(left)))
                yield task, _alone(task, handed_out)


def _alone(task: Task, handed_out: Any) -> Done:
    """The result of a task that a worker may have died of."""
    try:
        ((_, found),) = handed_out([task])
    except _losses():
        return failure(task, "its worker died, perhaps for want of memory; use fewer workers")
    result: Done = found
    return result


@contextmanager
def _handing_out(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A function from tasks to keys and results as they come."""
    if scheduler is None:
        threads = max((os.cpu_count() or 1) // workers, 1)
        yield partial(_parallel, workers, threads, nullcontext)
        return
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ImportError("a scheduler needs Dask: pip install 'tnlib[cluster]'") from error
    from joblib import parallel_config

    try:
        client: Any = Client(scheduler, timeout=10)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler!r} ({error})") from error
    with client:
        yield partial(_parallel, -1, None, partial(parallel_config, backend="dask"))


def _parallel(
    workers: int, threads: int | None, where: Any, tasks: Iterable[Task]
) -> Iterator[tuple[str, Done]]:
    from joblib import Parallel, delayed

    context: AbstractContextManager[Any] = where()
    with context, warnings.catch_warnings():
        # joblib replaces a worker whose memory has grown, and no result is lost by it.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        parallel = Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
        yield from parallel(delayed(done)(task, threads) for task in [*tasks])


def _losses() -> tuple[type[BaseException], ...]:
    """What is raised where a worker is lost."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    found: tuple[type[BaseException], ...] = (TerminatedWorkerError,)
    try:
        from distributed import KilledWorker
    except ImportError:
        return found
    return (*found, KilledWorker)
