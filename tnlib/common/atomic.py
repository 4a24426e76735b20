"""Files: written whole or not at all, and read with errors that name them."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any


def replace(path: Path, payload: bytes) -> None:
    """Put a file in the place of another, or leave everything as it was."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
