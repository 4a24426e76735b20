"""The result of a survey, as Python and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tnlib.common.table import aligned

Record = Mapping[str, Any]


@dataclass(frozen=True)
class SurveyedMatrix:
    """What a survey tells of one matrix.

    Attributes
    ----------
    name, kind : str
        Its name, and the name with stars for layer and expert.
    layer, expert : int or None
        Their numbers.
    shape : (int, int)
        Rows and columns.
    norm, spectral_norm : float
        Frobenius norm and largest singular value.
    base_norm : float or None
        Of an update, the norm of the weight that it changes.
    stable_rank : float
        Squared Frobenius norm over squared spectral norm.
    effective_rank : (float, float)
        The exponential of the entropy of the squared singular values as shares, or bounds of it;
        equal where the spectrum is exact.
    exact : bool
        Whether all singular values are known, and not the leading ones only.
    power_law : float or None
        Exponent alpha of the power law that fits the largest squared singular values best; None
        where there are fewer than ten.
    singular_values : tuple of (int, float)
        Some singular values by their number, from 1.
    low_rank : tuple of (int, int, float)
        Rank, number of values and relative error of truncated SVDs.
    formats : tuple of dict
        For every format and mode shape: its modes, ranks, numbers of values, estimated errors and
        their bounds ``low`` and ``high``.
    best : tuple of dict
        For every budget the format with the least error, its ranks and its error.
    least : tuple of dict
        For every eps the fewest values by format, None where more than the curve has.

    Examples
    --------
    >>> import numpy as np
    >>> from tnlib import survey
    >>> found = survey({"layers.3.q_proj.weight": np.diag([2.0, 1.0, 1.0, 0.0])}, progress=False)
    >>> matrix = found.matrices[0]
    >>> matrix.name, matrix.layer, matrix.stable_rank, matrix.exact
    ('layers.3.q_proj', 3, 1.5, True)
    """

    name: str
    kind: str
    layer: int | None
    expert: int | None
    shape: tuple[int, int]
    norm: float
    spectral_norm: float
    base_norm: float | None
    stable_rank: float
    effective_rank: tuple[float, float]
    exact: bool
    power_law: float | None
    singular_values: tuple[tuple[int, float], ...]
    low_rank: tuple[tuple[int, int, float], ...]
    formats: tuple[Record, ...]
    best: tuple[Record | None, ...]
    least: tuple[Record, ...]

    def ends_before(self, budget: float) -> bool:
        """Whether ranks were looked at for fewer values than a share of the matrix's."""
        if self.exact or not self.low_rank:
            return False
        step = sum(self.shape)
        return self.low_rank[-1][1] + step <= budget * self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Survey:
    """What is in some weights, or in a change of them; printing it shows a table.

    Attributes
    ----------
    source : str
        What was looked at.
    is_update : bool
        Whether it is a change of weights.
    options : dict
        What the numbers depend on.
    records : tuple of dict
        Everything that was found, as in ``records.jsonl``: matrices, stacks, methods, failures.
    notes : tuple of str
        What is odd about the source.

    Examples
    --------
    >>> import numpy as np
    >>> from tnlib import survey
    >>> rng = np.random.default_rng(0)
    >>> names = [f"layers.{k}.q_proj.weight" for k in range(2)]
    >>> found = survey({name: rng.standard_normal((16, 24)) for name in names})
    >>> [(matrix.name, matrix.shape) for matrix in found.matrices]
    [('layers.0.q_proj', (16, 24)), ('layers.1.q_proj', (16, 24))]
    """

    source: str
    is_update: bool
    options: Mapping[str, Any]
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()

    def of(self, kind: str) -> list[Record]:
        """The records of one kind: "matrix", "stack", "method" or "failure"."""
        return [record for record in self.records if record["record"] == kind]

    @cached_property
    def matrices(self) -> tuple[SurveyedMatrix, ...]:
        """All matrices, in the order of the source."""
        return tuple(map(_matrix, self.of("matrix")))

    @property
    def failures(self) -> dict[str, str]:
        """What could not be looked at, with the reason."""
        return {record["name"]: record["reason"] for record in self.of("failure")}

    def report(self, path: str | Path) -> None:
        """Write the report: one page of HTML that needs nothing else.

        Parameters
        ----------
        path : path
            The file; one that is there is replaced.
        """
        from tnlib.common import atomic
        from tnlib.surveys.report import page

        text = page(self.source, self.is_update, self.options, self.records, self.notes)
        atomic.replace(Path(path), text.encode())

    def __str__(self) -> str:
        """A row for every kind of matrix, and what failed."""
        return "\n\n".join(filter(None, (self._kinds(), self._methods(), self._failed())))

    def _kinds(self) -> str:
        last = self.options["budgets"][-1]
        head = ["kind", "matrices", "shape", "norm", "stable rank", "effective rank", "alpha"]
        head += [f"low rank at {last:.0%}", f"best at {last:.0%}"]
        head += ["of the base"] if self.is_update else []
        rows = [head]
        groups: dict[tuple[str, tuple[int, int]], list[SurveyedMatrix]] = {}
        for matrix in self.matrices:
            groups.setdefault((matrix.kind, matrix.shape), []).append(matrix)
        for (kind, shape), same in groups.items():
            best = [one.best[-1]["error"] if one.best[-1] else 1.0 for one in same]
            low = [one.low_rank[-1][2] if one.low_rank else 1.0 for one in same]
            alphas = [one.power_law for one in same if one.power_law is not None]
            norms = [one.norm for one in same]
            cells = [kind, str(len(same)), "x".join(map(str, shape)), f"{_mean(norms):.4g}"]
            cells.append(f"{_mean([one.stable_rank for one in same]):.3g}")
            cells.append(f"{_mean([sum(one.effective_rank) / 2 for one in same]):.4g}")
            cells.append(f"{_mean(alphas):.2f}" if alphas else "")
            # Where curves end before the budget, the error at the budget is lower still.
            short = any(one.ends_before(last) for one in same)
            cells += [f"{'<' if short else ''}{_mean(values):.3f}" for values in (low, best)]
            if self.is_update:
                shares = [one.norm / one.base_norm for one in same if one.base_norm]
                cells.append(f"{_mean(shares):.2%}" if shares else "")
            rows.append(cells)
        return aligned(rows)

    def _methods(self) -> str:
        methods = self.of("method")
        if not methods:
            return ""
        rows = [("method", "size", "parameters", "bytes", "of the update's energy")]
        for method in methods:
            for point in method["points"]:
                sizes = (f"{point[key]:,}" for key in ("params", "bytes"))
                rows.append((method["name"], point["setting"], *sizes, f"{point['kept']:.1%}"))
        return aligned(rows)

    def _failed(self) -> str:
        failed = self.failures
        if not failed:
            return ""
        lines = [f"{name}: {reason}" for name, reason in failed.items()]
        return "\n".join([f"{len(lines)} could not be looked at:", *lines[:20]])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _matrix(record: Record) -> SurveyedMatrix:
    spectrum, low = record["spectrum"], record["low_rank"]
    law = record["power_law"]
    return SurveyedMatrix(
        record["name"],
        record["kind"],
        record["layer"],
        record["expert"],
        (record["shape"][0], record["shape"][1]),
        record["norm"],
        record["spectral_norm"],
        record.get("base_norm"),
        record["stable_rank"],
        (record["effective_rank"][0], record["effective_rank"][1]),
        spectrum["exact"],
        None if law is None else law["alpha"],
        tuple(zip(spectrum["positions"], spectrum["values"], strict=True)),
        tuple(zip(low["ranks"], low["params"], low["error"], strict=True)),
        tuple(record["formats"]),
        tuple(record["best"]),
        tuple(record["least"]),
    )
