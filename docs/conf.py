"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``."""

from importlib.metadata import version as installed_version

project = "fastce"
author = "The fastce developers"
copyright = f"2026, {author}"
version = release = installed_version("fastce")

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
plot_formats = [("png", 160)]
plot_html_show_formats = plot_html_show_source_link = False
autosummary_generate = True
autodoc_typehints = "none"  # the Parameters sections name the types, in words
numpydoc_show_class_members = False

exclude_patterns = ["_build"]
templates_path: list[str] = []
html_theme = "pydata_sphinx_theme"
html_title = f"fastce {version}"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_sidebars = {"*": []}
