"""Settings of Sphinx for the web edition; it is read by `python -m report site` alone."""

project = html_title = "Angular-margin losses"
author = "the authors of Angular-margin losses"
extensions = [
    "myst_nb", "sphinx.ext.mathjax", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "report.site.mending",
]  # fmt: skip
html_theme, html_static_path, html_css_files = "furo", ["_static"], ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_theme_options = {"light_css_variables": {"color-brand-primary": "#1f3a5f", "color-brand-content": "#1f5a9f"}}
html_copy_source = html_show_sphinx = html_show_copyright = html_show_search_summary = False
html_favicon = "_static/favicon.svg"
highlight_language = "text"  # where no language is named
pygments_style, pygments_dark_style = "friendly", "github-dark"

nb_execution_mode, nb_render_markdown_format = "off", "myst"
nb_ipywidgets_js = {}  # widgets need a kernel, and their scripts a network
nb_merge_streams = True
myst_enable_extensions, myst_heading_anchors = ["amsmath", "dollarmath", "strikethrough", "tasklist"], 3
suppress_warnings = ["myst.strikethrough"]  # it is for HTML alone, as this is

mathjax_path = "mathjax/tex-svg.js"  # beside the pages, not from a network

autodoc_member_order, autodoc_typehints = "bysource", "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults, autodoc_inherit_docstrings = True, False
add_module_names = False
