"""Settings of the documentation; `make docs` builds it into docs/_build."""

from importlib import metadata

project = "sanrobust"
copyright = "the authors of sanrobust, MIT licence"
release = version = metadata.version("sanrobust")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

# The pages ask no other server for anything: nothing of intersphinx, no fonts, no mathjax.
html_theme = "furo"
html_title = "sanrobust"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_show_sphinx = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# What stands in single backticks in a docstring is a name.
default_role = "code"
