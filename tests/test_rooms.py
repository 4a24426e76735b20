"""The packages are rooms in an order: a room imports only what lies before it, without circles.

A room is a first-level file or folder of a package. Imports for type checking count as any other.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Rooms of one line do not import each other.
ORDER = {
    "tnlib": [
        ["common"],
        ["arrays"],
        ["result", "mode_sizes", "linalg", "weights"],
        ["contraction", "ranks"],
        ["trains", "tucker"],
        ["cp", "cross"],
        ["io", "interop", "testing", "surveys"],
    ],
    "tnlib_adapters": [
        ["requirements", "checks", "progress", "base_model", "execution"],
        ["fourbit", "networks"],
        ["layers", "fitting"],
        ["quantization"],
        ["peft_plugin"],
        ["methods"],
        ["parameter_count"],
        ["convert"],
        ["gradients"],
        ["commands", "surveys"],
    ],
}
# What one package may know of another, besides its public names.
BETWEEN = {
    "tnlib": (),
    "tnlib_adapters": ("tnlib.common", "tnlib.weights", "tnlib.surveys"),
    "tnlib_adapters_cli": ("tnlib.common", "tnlib_cli.driver"),
    "tnlib_cli": ("tnlib.common",),
}


def imports(path: Path) -> set[str]:
    """Full names of the modules of the three packages that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = ROOT.joinpath(*f"{node.module}.{alias.name}".split("."))
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in BETWEEN}


def modules(package: str) -> dict[str, set[str]]:
    """What every module of a package imports, by name; packages are their ``__init__``."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = imports(path)
    return found


def room(module: str) -> str:
    return ".".join(module.split(".")[1:2])


@pytest.mark.parametrize("package", ORDER)
def test_rooms_import_what_lies_before_them(package):
    levels = {name: k for k, names in enumerate(ORDER[package]) for name in names}
    known = modules(package)
    assert {room(name) for name in known} - {""} == set(levels)
    for name, taken in known.items():
        for other in taken:
            if other.startswith(f"{package}.") and room(name) not in ("", room(other)):
                assert levels[room(other)] < levels[room(name)], f"{name} imports {other}"


@pytest.mark.parametrize("package", ORDER)
def test_no_files_import_each_other_in_a_circle(package):
    known = modules(package)
    graph = {name: taken & known.keys() - {name} for name, taken in known.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", BETWEEN)
def test_packages_know_each_others_public_names(package):
    for name, taken in modules(package).items():
        for other in taken:
            owner = other.split(".")[0]
            if owner != package:
                allowed = package != "tnlib" and other == owner
                assert allowed or other.startswith(BETWEEN[package]), f"{name} imports {other}"
