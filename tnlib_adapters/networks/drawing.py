"""A drawing of a network: a circle a core, a line a leg."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from typing import TYPE_CHECKING

from tnlib_adapters.networks.core import Core
from tnlib_adapters.networks.network import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tnlib_adapters.networks.declaration_kinds import Declaration

_OWN, _SHARED, _FROZEN = "#99ccee", "#ffbb99", "#cccccc"


def draw(declaration: Declaration) -> Figure:
    """Draw a declaration: one network, or one below the other where it has several.

    Cores stand in the order in which they are joined, those of this weight blue, shared ones
    orange, frozen ones grey. A line between two cores is a leg that they share, with its size; a
    leg of three cores or more meets in a dot. Legs that point down are open, with their names;
    those that end in a square are fixed at an index.

    Parameters
    ----------
    declaration : Network, FusedProjection, BottleneckAdapter or ReplacedLinear
        Such as ``config.network(site)``.

    Returns
    -------
    matplotlib.figure.Figure
        Outside pyplot; a notebook shows it.

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from tnlib_adapters import DoTAConfig, Site, draw
    >>> figure = draw(DoTAConfig(r=16).network(Site("q_proj", 576, 576)))
    >>> figure.axes[0].get_title()
    '576 x 576, 18,704 parameters'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("draw needs matplotlib: pip install matplotlib") from error

    class Drawing(Figure):
        """Notebooks show it as a picture, also where pyplot was not used before."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png")
            return picture.getvalue()

    networks = [network for _, network in declaration.networks]
    width = 1.6 * max(len(network.cores) for network in networks) + 1
    figure = Drawing(figsize=(width, 3.0 * len(networks)), layout="constrained")
    for k, network in enumerate(networks):
        _draw(network, figure.add_subplot(len(networks), 1, k + 1))
    return figure


def _draw(network: Network, ax: Axes) -> None:
    order = _in_line(network)
    place = {core.name: (1.6 * k, 0.0) for k, core in enumerate(order)}
    holders: dict[str, list[str]] = defaultdict(list)
    for core in order:
        for leg in core.legs:
            holders[leg].append(core.name)
    joints = [leg for leg, names in holders.items() if len(names) > 2]
    parallel: dict[tuple[str, ...], int] = defaultdict(int)
    for leg, names in holders.items():
        size = network.sizes[leg]
        if leg in joints:
            x = sum(place[name][0] for name in names) / len(names)
            spot = (x, 1.3 + 0.5 * joints.index(leg))
            for name in names:
                _line(ax, place[name], spot)
            ax.plot(*spot, "k.", markersize=9)
            ax.annotate(f"{leg} {size}", spot, (4, 5), textcoords="offset points", fontsize=8)
        elif len(names) == 2:
            left, right = place[names[0]], place[names[1]]
            far = abs(left[0] - right[0]) > 1.7
            bend = (0.55 if far else 0.0) + 0.25 * parallel[tuple(names)]
            parallel[tuple(names)] += 1
            middle = ((left[0] + right[0]) / 2, bend)
            _line(ax, left, middle)
            _line(ax, middle, right)
            ax.annotate(str(size), middle, (0, 3), textcoords="offset points", fontsize=8)
    for core in order:
        hanging = [
            leg
            for leg in core.legs
            if leg in network.fixed_indices
            or (len(holders[leg]) == 1 and not _trivial(network, leg))
        ]
        for k, leg in enumerate(hanging):
            x, y = place[core.name]
            end = (x + 0.75 * (k - (len(hanging) - 1) / 2), y - 0.9)
            _line(ax, (x, y), end)
            text = f"{leg}\n{network.sizes[leg]}"
            if leg in network.fixed_indices:
                text = f"{leg}\n{network.fixed_indices[leg]} of {network.sizes[leg]}"
                ax.plot(*end, "ks", markersize=5)
            ax.annotate(
                text, end, (0, -5), textcoords="offset points", fontsize=8, ha="center", va="top"
            )
    for core in order:
        colour = _FROZEN if core.frozen else _SHARED if core.group else _OWN
        ax.plot(*place[core.name], "o", markersize=20, color=colour, markeredgecolor="black")
        above = (place[core.name], (0, 15))
        ax.annotate(core.name, *above, textcoords="offset points", fontsize=8, ha="center")
    ax.set_title(
        f"{network.out_features} x {network.in_features}, {network.n_params:,} parameters",
        fontsize=9,
    )
    ax.set_xlim(-1.0, 1.6 * (len(order) - 1) + 1.0)
    ax.set_ylim(-1.9, 1.8 + 0.5 * max(len(joints) - 1, 0) if joints else 1.2)
    ax.set_axis_off()


def _line(ax: Axes, a: tuple[float, float], b: tuple[float, float]) -> None:
    ax.plot([a[0], b[0]], [a[1], b[1]], "k-", linewidth=1, zorder=0)


def _trivial(network: Network, leg: str) -> bool:
    """Whether a leg is the closed end of a chain."""
    return network.sizes[leg] == 1 and leg not in (*network.out_legs, *network.in_legs)


def _in_line(network: Network) -> list[Core]:
    """The cores such that neighbours share a leg where they can."""
    rest = list(network.cores)
    degree = {
        core.name: sum(bool(set(core.legs) & set(other.legs)) for other in rest) for core in rest
    }
    line = [min(rest, key=lambda core: degree[core.name])]
    rest.remove(line[0])
    while rest:
        joined = [core for core in rest if _bond(network, core, line[-1]) > 1]
        line.append(joined[0] if joined else rest[0])
        rest.remove(line[-1])
    return line


def _bond(network: Network, a: Core, b: Core) -> int:
    return math.prod(network.sizes[leg] for leg in set(a.legs) & set(b.legs))
