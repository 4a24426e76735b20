"""Every public name shows its use in a doctest."""

from __future__ import annotations

import doctest
import inspect

import pytest

import tnlib
import tnlib.testing
import tnlib_adapters
from tnlib_adapters import Initializer, quantization

NAMES = [
    pytest.param(package, name, id=f"{package.__name__}.{name}")
    for package in (tnlib, tnlib.testing, tnlib_adapters, quantization)
    for name in package.__all__
]


def runs(test: doctest.DocTest) -> bool:
    """Whether a public docstring has an example that is not skipped."""
    public = not test.name.rpartition(".")[2].startswith("_")
    return public and any(not example.options.get(doctest.SKIP) for example in test.examples)


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_has_a_doctest(package, name):
    value = getattr(package, name)
    # Ready initializers, such as `zeros`, are shown where the class is.
    shown = type(value) if isinstance(value, Initializer) else value
    where = " or that of a public method" if inspect.isclass(shown) else ""
    assert any(map(runs, doctest.DocTestFinder().find(shown, name))), (
        f"{package.__name__}.{name} has no doctest that runs: end its docstring{where} with a "
        "section Examples that has >>> lines"
    )
