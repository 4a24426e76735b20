"""Keyword arguments that a function does not have: the error names the one it has instead."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# What other libraries call our parameters; the first that the function has is meant.
_WORDS = {
    "bond_dim": ("ranks", "rank"),
    "cutoff": ("eps", "tol"),
    "epsilon": ("eps", "tol"),
    "max_bond": ("ranks",),
    "max_rank": ("ranks", "rank"),
    "maxiter": ("max_iter",),
    "n_iter": ("max_iter",),
    "n_iter_max": ("max_iter",),
    "n_params": ("max_params",),
    "optimize": ("minimize",),
    "r": ("ranks", "rank"),
    "random_state": ("rng",),
    "rmax": ("ranks", "rank"),
    "seed": ("rng",),
    "tolerance": ("tol", "eps"),
    "verbose": ("progress", "callback"),
}


def keywords_named(function: Callable[P, R]) -> Callable[P, R]:
    """Let a wrong keyword argument raise a TypeError that says how it is called here."""
    known = list(signature(function).parameters)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(_text(function.__name__, name, known))
        return function(*args, **kwargs)

    return call


def _text(function: str, name: str, known: list[str]) -> str:
    words = [word for word in _WORDS.get(name, ()) if word in known]
    near = words or difflib.get_close_matches(name, known, 1)
    advice = f"it is called {near[0]} here" if near else f"it has {', '.join(known)}"
    return f"{function}() got an unexpected keyword argument {name!r}; {advice}"
