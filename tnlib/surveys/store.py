"""The folder of a survey: what it was asked, and one line of JSON for everything that is done.

A line is appended whole or not at all; what a process that was killed left of one is taken away
when the folder is opened again. The other files appear whole, under their names, at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save as serialized

from tnlib.common import atomic
from tnlib.surveys.tasks import Done, Factors

ABOUT, RECORDS, FACTORS = "survey.json", "records.jsonl", "factors"
_SIDES = ("left", "right")
Record = dict[str, Any]


class Store:
    """A new folder, or that of a survey that was not finished.

    Parameters
    ----------
    folder : Path
        It is made where it is not there.
    about : dict
        What the numbers depend on; of a survey that is continued it must be the same.

    Raises
    ------
    FileExistsError
        If there is something else in the folder, or a survey of something else.
    ValueError
        If a file in it is damaged.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.records: dict[str, Record] = {}
        path = folder / ABOUT
        if path.is_file():
            _check_same(folder, atomic.read_json(path), about)
            self._read()
        else:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise FileExistsError(f"{folder} is not empty; name a new folder")
            folder.mkdir(parents=True, exist_ok=True)
            self.write(ABOUT, json.dumps(about, indent=1, sort_keys=True))

    def _read(self) -> None:
        path = self.folder / RECORDS
        if not path.is_file():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines()):
            try:
                record = json.loads(line)
                key = key_of(record)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged in line {number + 1}: {error}") from error
            # What failed is tried again.
            if record["record"] != "failure":
                self.records[key] = record

    def add(self, key: str, done: Done) -> None:
        """Keep a result."""
        if done.factors is not None:
            # safetensors writes the memory of an array as if it was in C order.
            arrays = {k: np.ascontiguousarray(v) for k, v in zip(_SIDES, done.factors, strict=True)}
            (self.folder / FACTORS).mkdir(exist_ok=True)
            atomic.replace(self._factors(done.record["name"]), serialized(arrays))
        line = (json.dumps(done.record, allow_nan=False) + "\n").encode()
        path = self.folder / RECORDS
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                written = file.write(line)
                os.fsync(file.fileno())
                if written != len(line):
                    raise OSError(28, "the disk is full", str(path))
            except BaseException:
                file.truncate(size)
                raise
        self.records[key] = done.record

    def factors(self, name: str) -> Factors | None:
        """The leading factors of an update; None where it is zero."""
        path = self._factors(name)
        if not path.is_file():
            return None
        arrays = load_file(path)
        left, right = (arrays[side] for side in _SIDES)
        return left, right

    def has_factors(self, record: Record) -> bool:
        """Whether nothing is missing of the update that a record is of."""
        return record["norm"] == 0 or self._factors(record["name"]).is_file()

    def write(self, name: str, text: str) -> None:
        """Write a file, whole or not at all."""
        atomic.replace(self.folder / name, text.encode())

    def finish(self, ordered: Iterable[Record]) -> None:
        """Put the records in their order, and remove what is needed no more."""
        lines = (json.dumps(record, allow_nan=False) + "\n" for record in ordered)
        self.write(RECORDS, "".join(lines))
        folder = self.folder / FACTORS
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    def _factors(self, name: str) -> Path:
        # Names of tensors may be anything, those of files may not.
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self.folder / FACTORS / f"{digest}.safetensors"


class Memory:
    """The same for a survey that is not written anywhere."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self._kept: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}

    def add(self, key: str, done: Done) -> None:
        """Keep a result."""
        self.records[key] = done.record
        if done.factors is not None:
            self._kept[done.record["name"]] = done.factors

    def factors(self, name: str) -> Factors | None:
        """The leading factors of an update; None where it is zero."""
        return self._kept.get(name)

    def has_factors(self, record: Record) -> bool:
        """Whether nothing is missing of the update that a record is of."""
        return record["norm"] == 0 or record["name"] in self._kept


def key_of(record: Record) -> str:
    """The key of the task that a record is the result of."""
    what = record["what"] if record["record"] == "failure" else record["record"]
    return f"{what} {record['name']}"


def _check_same(folder: Path, there: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    for field in [*about, *there]:
        if there.get(field) != json.loads(json.dumps(about.get(field))):
            raise FileExistsError(
                f"{folder} has a survey with {field} {there.get(field)!r:.80}, and now it is "
                f"{about.get(field)!r:.80}; name a new folder, or call it as it was called before"
            )
