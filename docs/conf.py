"""Sphinx configuration."""

from importlib.metadata import version as installed_version

project = "tnlib"
author = "the tnlib authors"
copyright = "2026, the tnlib authors"
version = release = installed_version("tnlib")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# "shape (m, n)" in a type is no reference.
suppress_warnings = ["ref.python"]
html_theme = "furo"
html_title = "tnlib"
exclude_patterns = ["_build"]
