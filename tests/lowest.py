"""The lowest versions that pyproject.toml allows, as constraints for pip.

``make test-lowest`` installs them and runs the tests, so a bound that is too low is found. Programs
that only check the sources, such as mypy, are not among them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What a user can install, and the peer that the tests compare with.
EXTRAS = ("adapters", "quantization", "demo", "plot", "planning", "testing")
PEERS = ("tensorly",)


def lowest() -> dict[str, str]:
    """The lowest version of each requirement that has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for name in EXTRAS for line in extras[name])]
    wanted += [line for line in extras["dev"] if line.startswith(PEERS)]
    found = {}
    for line in wanted:
        if match := re.match(r"([\w.-]+)>=([\w.]+)", line):
            found[match[1]] = match[2]
        else:
            assert line.startswith("tnlib["), f"{line} has no lowest version"
    return found


if __name__ == "__main__":
    for name, version in sorted(lowest().items()):
        print(f"{name}=={version}")
