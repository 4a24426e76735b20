"""Every method in the forms that the tests go through; a new one is among them by itself."""

from __future__ import annotations

from functools import partial

from tnlib_adapters import Site, methods

# Names of the forms, with their method and what it is given; others are tried at size 4.
_FORMS = {
    "lotr": ("lotr", {"r": 4, "alpha": 16.0}),
    "rep": ("loretta", {"dropout": 0.0}),
    "adp": ("loretta", {"variant": "adp", "bottleneck": 8}),
}
_KNOWN = {method for method, _ in _FORMS.values()}
_OTHERS = {
    name: (name, {kind.size_field: 4})
    for name, kind in methods.METHODS.items()
    if name not in _KNOWN
}


def _made(form, **kwargs):
    method, fields = (_FORMS | _OTHERS)[form]
    return methods.METHODS[method](**(fields | kwargs))


SITE = Site("", 64, 64)
METHODS = {form: partial(_made, form) for form in _FORMS | _OTHERS}
# Updates of weights, those that a LoRA can become, and those with exact factors.
MERGEABLE = [form for form in METHODS if METHODS[form]().network(SITE).additive]
FITTED = [form for form in MERGEABLE if METHODS[form]().fit_updates]
_NETWORKS = {form: METHODS[form]().network(SITE) for form in MERGEABLE}
EXACT = [form for form, own in _NETWORKS.items() if own.cut_factors(own.initial()) is not None]
