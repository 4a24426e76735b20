"""Running peers side by side: alternating repeats, medians, peak memory, JSON and a table."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Seconds beyond which a run is not repeated.
PATIENCE = 20.0


def alternate(
    runs: Mapping[str, Callable[[], Any]], repeats: int, patience: float = PATIENCE
) -> dict[str, list[float]]:
    """Seconds of every run, all of them once per round, so that drift hits all alike.

    Runs that took longer than `patience` seconds are left out of further rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if any(spent > patience for spent in seconds[name]):
                continue
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(
    function: Callable[..., Any], *arguments: Any, preload: Sequence[str] = ()
) -> int | None:
    """Bytes that ``function(*arguments)()`` needs at its peak, in a process of its own.

    `function` prepares the input and returns the call to measure; what the preparation holds is
    not counted. With `preload`, names of modules, the process is forked from one that has imported
    them: worth it where that takes far longer than the call. None where the system does not tell.
    """
    found = _apart(False, function, arguments, preload)
    return None if found is None else found[1]


def apart(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int] | None:
    """What ``function(*arguments)()`` returns, and its bytes as `peak_memory` has them."""
    return _apart(True, function, arguments, ())


def _apart(
    keep: bool, function: Callable[..., Any], arguments: tuple[Any, ...], preload: Sequence[str]
) -> tuple[Any, int] | None:
    if not Path("/proc/self/clear_refs").exists():
        return None
    context: Any = multiprocessing.get_context("forkserver" if preload else "spawn")
    if preload:
        context.set_forkserver_preload([*preload])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, keep, function, arguments))
    process.start()
    sender.close()
    try:
        result, peak = receiver.recv()
        return result, int(peak)
    except EOFError:
        return None
    finally:
        process.join()


def _measure(
    sender: Any, keep: bool, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Send what the call returned, where that is to be kept, and its bytes."""
    call = function(*arguments)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = call()
    sender.send((result if keep else None, _status("VmHWM") - before))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def machine(packages: list[str]) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages if find_spec(name)},
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and extremes of repeated timings."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "repeats": len(seconds),
    }


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    write(path, json.dumps(data, indent=1) + "\n")


def report(
    path: Path, about: dict[str, Any], records: list[dict[str, Any]], text: str, **more: Any
) -> None:
    """Write the records and `more` as JSON, the text as Markdown beside it, and print the text."""
    write_json(path, {"machine": about, "records": records, **more})
    write(path.with_suffix(".md"), text)
    print(text)
