"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
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
    path = Path(output)
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty; name a new folder, or remove this one")
    elif path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} is a file; name a new folder")
    return path


@contextmanager
def whole(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` to write to, which takes its place at the end.

    After an error it is removed, and `output` is as it was.
    """
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.absolute().parent))
    try:
        inner = beside / "folder"
        inner.mkdir()
        yield inner
        check_free(output)
        if output.is_dir():
            output.rmdir()
        os.replace(inner, output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
