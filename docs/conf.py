"""Settings of the documentation: Sphinx with MyST-NB. Built offline; no page needs the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import geoeco

HERE = Path(__file__).parent

# The notebooks lie beside the pages as percent scripts; Sphinx reads only below its own folder.
COPIES = HERE / "notebooks"
COPIES.mkdir(exist_ok=True)
for notebook in sorted((HERE.parent / "notebooks").glob("*.py")):
    target = COPIES / notebook.name
    if not target.exists() or target.read_bytes() != notebook.read_bytes():
        shutil.copyfile(notebook, target)

project = "geoeco"
author = "the geoeco developers"
copyright = f"2026, {author}"
version = release = geoeco.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_autodoc_typehints"]
exclude_patterns = ["_build", "conf.py", "**/.ipynb_checkpoints"]
html_theme = "alabaster"
html_theme_options = {"description": "Earth observation in, georeferenced answers out.", "fixed_sidebar": True}
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_rtype = False
# fields of named tuples are objects of their own already
napoleon_use_ivar = True
napoleon_custom_sections = [("Class attributes", "Attributes")]
typehints_document_rtype = False
# types of libraries whose own pages are not linked, because the pages are built offline
suppress_warnings = [
    "ref.python",  # an attribute named like a built-in type
    "sphinx_autodoc_typehints.forward_reference",
    "sphinx_autodoc_typehints.guarded_import",
]
