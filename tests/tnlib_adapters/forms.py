"""Every method in the forms that the tests go through; a new one is among them by itself."""

from __future__ import annotations

from functools import partial

from tnlib_adapters import methods

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


METHODS = {form: partial(_made, form) for form in _FORMS | _OTHERS}
# Forms that a LoRA can become.
FITTED = [f for f in METHODS if METHODS[f]().merges and METHODS[f]().fit_updates]
MERGEABLE = [form for form in METHODS if METHODS[form]().merges]
