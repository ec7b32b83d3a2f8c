"""An extension of Sphinx: what it does not make of notebooks and docstrings by itself."""

import itertools
import posixpath
import re
from urllib.parse import unquote

from docutils import nodes
from sphinx import addnodes

from lib import paths

# files of the project that are a page of another name here
PAGES = {"README.md": "index", "report/report.ipynb": "report/report", "report/supplement.ipynb": "report/supplement"}


def page_of(path: str) -> str:
    """The page that stands for a file of the project, "" if there is none."""
    folder, _, name = path.rpartition("/")
    if folder in ("lib", "lib/heads") and name.endswith(".py"):
        name = "heads" if folder == "lib/heads" else name.removesuffix(".py")
        here = paths.PROJECT / "report" / "site" / "pages" / "reference" / f"{name}.md"
        return f"reference/{name}" if here.exists() else ""
    return PAGES.get(path, "")


def mend(app, doctree) -> None:
    """Links, pictures and formulas of a page that was read."""
    links(doctree, app.env.docname, app.config.site_repository)
    pictures(doctree)
    formulas(doctree)


def links(doctree, name: str, repository: str) -> None:
    """A link to a file that is not on the site leads to its page here, or into the repository; it is plain text where
    the repository's address is not known. A link to a file that does not exist is left for Sphinx to complain of."""
    for node in [node for node in doctree.findall(addnodes.pending_xref) if node.get("reftype") == "myst"]:
        target, _, _ = unquote(node["reftarget"]).partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if not target or ":" in target or path.startswith("..") or not (paths.PROJECT / path).exists():
            continue
        if page := page_of(path):
            new = addnodes.pending_xref(
                "", *node.children, refdomain="std", reftype="doc", reftarget=f"/{page}", refexplicit=True,
                refdoc=name, refwarn=True,
            )  # fmt: skip
        elif repository:
            new = nodes.reference("", "", *node.children, refuri=f"{repository}/blob/HEAD/{path}")
        else:
            new = nodes.inline("", "", *node.children)
        node.replace_self(new)


def pictures(doctree) -> None:
    """No picture is fetched from a network: its text stands in its place."""
    for node in list(doctree.findall(nodes.image)):
        node.setdefault("alt", "")
        if "://" in node["uri"] or node["uri"].startswith("//"):
            node.replace_self(nodes.Text(node["alt"] or node["uri"]))


def formulas(doctree) -> None:
    """Sphinx sets a formula of several lines in an environment that takes no tag."""
    for node in doctree.findall(nodes.math_block):
        text = node.astext()
        if r"\tag" in text:
            node.clear()
            node.append(nodes.Text(rf"\[{text}\]"))
            node["no-wrap"] = node["nowrap"] = True


def docstring(app, what, name, item, options, lines) -> None:
    """What the project's docstrings mean otherwise than reStructuredText: an indented block is a table or code, and a
    bar is the length of something."""
    out, literal = [], False
    for before, line in itertools.pairwise(["", *lines]):
        indented = line.startswith(" ")
        if indented and not literal and not before.strip() and not (out and _opens(out)):
            out += ["::", ""]
            literal = True
        elif line.strip() and not indented:
            literal = False
        out.append(line if literal else line.replace("|", r"\|"))
    lines[:] = out


def _opens(lines: list[str]) -> bool:
    """Whether the last paragraph is one whose indented block is known already: of code, or of a list."""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.endswith("::") or last.startswith(("- ", "* ", ".. ", " ")) or last[:1].isdigit()


def signature(app, what, name, item, options, given, returned):
    """A head's constants with their defaults, in place of ``**constants``."""
    heads = [
        base for base in getattr(item, "__mro__", ())[1:] if f"{base.__module__}.{base.__name__}" == "lib.losses.Head"
    ]
    if what != "class" or not heads or "**constants" not in (given or ""):
        return None
    constants = "".join(f", {key}={getattr(item, key, 16.0)!r}" for key in item.ranges())  # only s has no attribute
    return re.sub(r", \*\*constants(: [^,)]*)?", constants, given), returned


def setup(app) -> dict:
    app.add_config_value("site_repository", "", "env", str)
    app.connect("doctree-read", mend, priority=100)  # before Sphinx collects the pictures
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
