"""Earlier names work, and say the present ones."""

from __future__ import annotations

import copy
import dataclasses

import pytest

import tnlib_adapters
from tnlib_adapters import Core, Network, Site, ones

EARLIER = {
    "Stacked": "FusedProjection",
    "Series": "BottleneckAdapter",
    "Replacement": "ReplacedLinear",
    "Start": "Initializer",
}


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_names_are_the_same_objects(name):
    with pytest.warns(DeprecationWarning, match=f"{name} is called {EARLIER[name]} now"):
        found = getattr(tnlib_adapters, name)
    assert found is getattr(tnlib_adapters, EARLIER[name])


def test_names_that_never_were_are_missing():
    with pytest.raises(AttributeError, match="has no attribute 'Sries'"):
        _ = tnlib_adapters.Sries


@pytest.mark.parametrize(
    ("kind", "given", "old", "new"),
    [
        (Core, {"name": "a", "legs": ("in",)}, {"start": ones}, {"initializer": ones}),
        (
            Network,
            {
                "cores": (Core("a", ("out", "in", "layer")),),
                "sizes": {"out": 2, "in": 3, "layer": 4},
                "out_legs": ("out",),
                "in_legs": ("in",),
            },
            {"at": {"layer": 1}},
            {"fixed_indices": {"layer": 1}},
        ),
        (
            Site,
            {"name": "q", "out_features": 2, "in_features": 3},
            {"stack": "layers", "slot": 1, "slots": 4},
            {"container": "layers", "matrix": 1, "n_matrices": 4},
        ),
    ],
)
def test_earlier_fields_are_given_and_read(kind, given, old, new):
    for name, value in zip(old, new.values(), strict=True):
        with pytest.warns(DeprecationWarning, match=rf"\({name}=\) is called"):
            made = kind(**given, **{name: value})
        with pytest.warns(DeprecationWarning, match=rf"\.{name} is called"):
            assert getattr(made, name) == value
    made = kind(**given, **new)
    assert [getattr(made, name) for name in new] == list(new.values())
    assert all(name not in {f.name for f in dataclasses.fields(made)} for name in old)
    assert {name: getattr(copy.deepcopy(made), name) for name in new} == new
