"""Sphinx configuration.

Tutorials are MyST notebooks, executed while the site is built (``-D nb_execution_mode=off`` leaves
their outputs out). They load models by their hub names from ``_build/hub``, which
``examples/hub.py`` fills; nothing is read from the network here.
"""

import os
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import inventories  # noqa: E402

project = "tnlib"
author = "the tnlib authors"
copyright = "2026, the tnlib authors"
version = release = installed_version("tnlib")
extensions = [
    "lora_options",
    "method_table",
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
nitpicky = True
smartquotes = False

# Pages.
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"
# Without execution the kernel does not say how its language is highlighted.
suppress_warnings = ["myst-nb.lexer"]
copybutton_exclude = ".linenos, .gp, .go"

# What the kernels of the tutorials find: their helpers, and the models by hub name.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(DOCS.parent / "examples"), os.environ.get("PYTHONPATH")))
)
os.environ |= {
    "HF_HUB_CACHE": str(DOCS / "_build" / "hub"),
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

# Reference.
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = inventories.aliases()
intersphinx_mapping = inventories.mapping(DOCS / "_build" / "inventories")

# The site.
html_theme = "pydata_sphinx_theme"
html_title = f"tnlib {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "tnlib"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "show_toc_level": 2,
    "pygments_light_style": "github-light",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"index": [], "start": []}


def public_signature(app, what, name, obj, options, signature, returned):
    """Leave private parameters out of the signatures of classes that users do not build."""
    if signature:
        signature = re.sub(r", _\w+=(\([^)]*\)|[^,)]+)", "", signature)
    return signature, returned


def setup(app):
    """Connect what Sphinx has no setting for."""
    app.connect("autodoc-process-signature", public_signature)
