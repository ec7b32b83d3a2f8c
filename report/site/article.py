"""The report and its supplement as pages of the site: their notebooks, read as for the PDF, written as MyST."""

import json
import re

from nbconvert.exporters import Exporter

from lib import paths
from report import build, cells, notebooks, pdf

FILTER = paths.PROJECT / "report" / "site" / "pages" / "article.lua"
MYST = "commonmark-smart+pipe_tables+tex_math_dollars+footnotes+strikeout"
# the PDF of each, in the words of its page
PDFS = {"report": "The report as a PDF", "supplement": "The supplement as a PDF"}


def page(name: str) -> str:
    """The Markdown of one of ``build.DOCUMENTS``. Raises ValueError for what the page cannot hold."""
    source = paths.folder("report") / f"{name}.ipynb"
    exporter = pdf.ReportExporter(strict=True)
    nb, _ = Exporter.from_notebook_node(exporter, notebooks.read(source), {})
    problems = []

    def complain(message, cell=0):
        problems.append(message)

    parts, _ = cells.parts(nb, True, complain)
    beside = paths.PROJECT / "report"
    job = {"parts": parts, "strict": True, "title": "", "keys": pdf.keys(beside / "references.bib")}
    document = pdf.pandoc(json.dumps(job), complain, f"--from={pdf.LAYOUT / 'notebook.lua'}", "--to=json")
    text = pdf.pandoc(
        document, complain, "--from=json", f"--to={MYST}", "--wrap=none", f"--lua-filter={FILTER}",
        f"--bibliography={beside / 'references.bib'}", f"--metadata=name:{name}",
    )  # fmt: skip
    if problems:
        raise ValueError(f"{name}: " + "; ".join(dict.fromkeys(problems)))
    title = pdf.title_block(beside / "metadata.yml")["title"]
    title = title if name == build.DOCUMENTS[0] else f"{name.capitalize()} to “{title.split(':')[0]}”"
    text = re.sub(rf"`({'|'.join(PDFS)})\.pdf`", r"[\g<0>](\1.pdf)", text)  # where one speaks of the other
    return f"# {title}\n\n[{PDFS[name]}]({name}.pdf)\n\n{text}"
