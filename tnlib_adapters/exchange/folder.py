"""A folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it is not JSON, or holds no fields.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}; name the folder that has it")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds no fields but a {type(fields).__name__}")
    return fields


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
