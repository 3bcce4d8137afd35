"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``. No page asks another host."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import matplotlib

import fastce

matplotlib.use("Agg")

project = "fastce"
author = "The fastce developers"
copyright = f"2026, {author}"
version = release = fastce.__version__

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
plot_formats = [("png", 160)]
plot_html_show_formats = plot_html_show_source_link = False
autosummary_generate = True
autodoc_typehints = "none"  # the Parameters sections name the types, in words
numpydoc_show_class_members = False
suppress_warnings = ["config.cache"]  # a function in sphinx_gallery_conf


def plain_style(gallery_conf, name):
    """What the plots of all examples share."""
    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 100})


sphinx_gallery_conf = {
    "reset_modules": ("matplotlib", plain_style),
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 10,  # seconds; an example that takes as long is too slow for its page
    "matplotlib_animations": False,
    "abort_on_example_error": True,
    "image_srcset": ["2x"],
    "reference_url": {"fastce": None},
    "doc_module": ("fastce",),
    "backreferences_dir": "generated/backreferences",
}

exclude_patterns = ["_build", "examples", "sg_execution_times.rst", "gallery/sg_execution_times.rst"]
templates_path = ["_templates"]  # of a class its own members, not those of its base from another library
html_theme = "pydata_sphinx_theme"
html_title = f"fastce {version}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["fastce.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "fastce", "image_light": "_static/favicon.svg", "image_dark": "_static/favicon.svg"},
    "show_prev_next": False,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": [], "gallery/index": []},
    "header_links_before_dropdown": 4,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
html_context = {"default_mode": "auto"}
html_sidebars = {"**": []}

# Formulas: MathJax from a Python package, of which the site carries the engine and its fonts, not the rest.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0], "static", "mathjax")
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu would load what the site has not


def copy_mathjax(app, error):
    """Put MathJax beside the pages that are written."""
    if error is None and app.builder.format == "html":
        target = Path(app.outdir, "_static", "mathjax")
        fonts = "output/chtml/fonts/woff-v2"
        shutil.copytree(MATHJAX / fonts, target / fonts, dirs_exist_ok=True)
        shutil.copy(MATHJAX / "tex-chtml.js", target)


def setup(app):
    """What the extensions above don't do."""
    app.connect("build-finished", copy_mathjax)
