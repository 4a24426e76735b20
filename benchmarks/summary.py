"""One table of the times of other libraries over ours, from the results of the other benchmarks.

    python benchmarks/summary.py

It reads ``decompose.json``, ``tucker.json`` and ``cp_defaults.json`` and writes ``summary.md``,
which the README and the site show.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

RESULTS = Path(__file__).parent / "results"
Run = tuple[float, float]


def runs(name: str, fields: tuple[str, ...], peer: str) -> dict[tuple[Any, ...], dict[str, Run]]:
    """Median seconds and error of every library, by what was asked."""
    found: dict[tuple[Any, ...], dict[str, Run]] = defaultdict(dict)
    for record in json.loads((RESULTS / f"{name}.json").read_text())["records"]:
        key = tuple(record[field] for field in fields)
        found[key][record[peer]] = record["seconds"]["median"], record["error"]
    return found


def row(
    task: str,
    setting: str,
    peer: str,
    cases: dict[tuple[Any, ...], dict[str, Run]],
    theirs: str,
    ours: str,
    wanted: Callable[[tuple[Any, ...]], bool] = lambda _: True,
) -> list[str]:
    """Least and largest ratio of times over the cases that both have, and of errors."""
    pairs = [
        (case[theirs], case[ours])
        for key, case in cases.items()
        if wanted(key) and theirs in case and ours in case
    ]
    times = [other[0] / own[0] for other, own in pairs]
    # Where both are exact up to rounding a ratio of errors says nothing.
    errors = [max(other[1], 1e-6) / max(own[1], 1e-6) for other, own in pairs]
    asked = setting.startswith("eps")
    error = "both below eps" if asked else _range(errors)
    return [task, setting, peer, f"{len(pairs)}", _range(times), error]


def _range(values: list[float]) -> str:
    low, high = (f"{end:.2g}" if end < 10 else f"{end:.0f}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def rows() -> list[list[str]]:
    """All rows."""
    mpo = runs("decompose", ("matrix", "rank", "eps"), "peer")
    tucker = runs("tucker", ("case",), "peer")
    cp = runs("cp_defaults", ("case", "setting"), "library")
    found = []
    for peer in ("tensorly", "torchTT", "quimb"):
        found.append(row("MPO", "ranks 16, 64", peer, mpo, peer, "tnlib", lambda key: key[1]))
    for peer in ("torchTT", "quimb"):
        found.append(row("MPO", "eps 0.5 to 0.001", peer, mpo, peer, "tnlib", lambda key: key[2]))
    ours = "tnlib tucker_hosvd"
    found.append(row("Tucker, direct", "ranks, eps", "pyttb", tucker, "pyttb hosvd", ours))
    for setting in ("", ", tol 1e-08"):
        theirs, ours = f"tensorly tucker{setting}", f"tnlib tucker_hooi{setting}"
        named = setting.removeprefix(", ") or "defaults"
        found.append(row("Tucker, iterated", named, "tensorly", tucker, theirs, ours))
    for setting, own in (("defaults", "tnlib"), ("tol 1e-06, one start", "tnlib als")):
        for peer in ("tensorly parafac", "pyttb cp_als"):
            name = peer.split()[0]
            found.append(row("CP", setting, name, cp, peer, own, lambda k, s=setting: k[1] == s))
    return found


def main() -> None:
    header = ["task", "setting", "library", "cases", "its time / ours", "its error / ours"]
    text = harness.table(header, rows())
    harness.write(RESULTS / "summary.md", f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
