"""The site, for Sphinx: `make site` writes it to site/. It works from a folder, by a double click, and from a host."""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "site")]

import made  # noqa: E402

project = html_title = "Deep residual networks in Keras"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.githubpages", "sphinx_copybutton"]
exclude_patterns = ["made"]
templates_path = ["site"]
default_role = "code"  # docstrings have Markdown's single backticks
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
myst_heading_anchors = 3
highlight_language = "none"

html_theme = "furo"
html_static_path = ["site/static", "made/static"]
html_css_files = ["demo.css", "site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_additional_pages = {"404": "404.html"}
html_copy_source = html_show_sphinx = html_show_copyright = False
html_show_search_summary = False  # for which a page would fetch others, which from a folder it may not
html_theme_options = {"navigation_with_keys": True}


def setup(app):
    app.connect("config-inited", lambda app, config: made.write(HERE / "made"))
    app.connect("html-page-context", with_levels, priority=900)  # after the theme has made it
    app.connect("autodoc-process-docstring", understood, priority=100)  # before napoleon


def understood(app, what, name, value, options, lines):
    """An indented paragraph is code, as in Markdown; what stands before a colon of "Returns:" is no type."""
    if what == "data":
        lines.clear()  # a constant has the docstring of its type
    for i in reversed(range(2, len(lines))):
        if lines[i].startswith("    ") and not lines[i - 1] and not lines[i - 2].startswith(" "):
            lines[i:i] = ["::", ""]
        elif lines[i - 1] == "Returns:":
            lines[i] = f"    : {lines[i].strip()}"


def with_levels(app, page, template, context, doctree):
    """A screen reader needs the level of a heading, which Sphinx leaves out in the navigation."""
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
