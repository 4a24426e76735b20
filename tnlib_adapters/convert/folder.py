"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_free(output: str | Path) -> Path:
    """The folder to write, which must be new or empty.

    Raises
    ------
    FileExistsError
        If there is a file, or something in the folder.
    """
    # Of a link the folder that it leads to.
    path = Path(output).resolve()
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty; name a new folder, or remove this one")
    elif path.exists():
        raise FileExistsError(f"{path} is a file; name a new folder")
    return path


@contextmanager
def whole(output: Path, n_bytes: int = 0) -> Iterator[Path]:
    """Give a folder beside `output` to write to, which takes its place at the end.

    After an error it is removed, and `output` is as it was. What a process that was killed has
    left is removed by the next, with a warning.

    Parameters
    ----------
    output : Path
        The folder to write.
    n_bytes : int
        About how much will be written.

    Raises
    ------
    OSError
        If the disk has no room for that much, or is full before the end.
    """
    parent = output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(parent, output.name)
    free = shutil.disk_usage(parent).free
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{output} needs {n_bytes / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free; "
            "nothing was written",
        )
    beside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=parent))
    try:
        (beside / _OWNER).write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
        inner = beside / "folder"
        inner.mkdir()
        yield inner
        check_free(output)
        if output.is_dir():
            output.rmdir()
        os.replace(inner, output)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"the disk was full while {output} was written ({_size(beside) / 1e9:.2f} GB so far); "
            "what was written is removed",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# The file that says which process writes to a folder.
_OWNER = "owner"


def _remove_leftovers(parent: Path, name: str) -> None:
    """Remove what processes of this machine that run no more have left beside a folder."""
    for owner in parent.glob(f".{name}-*/{_OWNER}"):
        try:
            host, pid = owner.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            continue
        if host == socket.gethostname() and not _runs(int(pid)):
            size = _size(owner.parent)
            shutil.rmtree(owner.parent, ignore_errors=True)
            warnings.warn(
                f"removed {owner.parent} ({size / 1e9:.2f} GB), which an earlier run that was "
                "killed had left",
                stacklevel=4,
            )


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
