"""The way from notebooks to the PDF, the submission and the Colab links."""

import ast
import base64
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pdfua
import pytest
import torch
import typst
from matplotlib import get_data_path, image
from nbconvert.exporters import get_exporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from pypdf import PdfReader

from lib import losses, paths
from report import build, colab, notebooks, pdf, submission

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SETUP = 'import sys\n\nREPO = ""  # the address\n'
REPORT = """# A study

## Abstract

Nine heads, **one** protocol, 99.6 % at best.

## Introduction

ArcFace [@deng2019arcface; @wang2018cosface] adds a margin; see @sec:method, @eq:loss, @fig:curve, @tbl:heads,
@lst:margin and @sec:the-code.^[A footnote.]
1. a list right below its sentence

## Method

$$ L = -\\log \\frac{e^{s\\cos(\\theta_y + m)}}{\\|x\\|\\;} $$ {#eq:loss}

![What the margin does, by @eq:loss.](../figures/02_curve.png "a \\"falling\\" curve"){#fig:curve}

| head | m |
|:-----|--:|
| ArcFace | 0.5 |

: The heads. {#tbl:heads}

```{.python #lst:margin caption="The margin $m$."}
theta = theta + m
```

## References

## The code {.appendix}

One module per step."""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A small project in tmp_path: two notebooks, a report with one figure, README and pyproject.toml."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.delenv("PROFILE", raising=False)
    for name in ("notebooks", "figures", "report"):
        (tmp_path / name).mkdir()
    for name in ("metadata.yml", "references.bib"):
        shutil.copy(ROOT / "report" / name, tmp_path / "report")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "README.md").write_text("# Study\n\nText.\n")
    for name in ("02_curve", "02_shown"):
        image.imsave(tmp_path / "figures" / f"{name}.png", np.eye(40))
    for name, save in (("01_first", 'plots.save(fig, "02_curve")'), ("02_second", 'show(fig, "02_shown", "a curve")')):
        notebook(tmp_path / "notebooks" / f"{name}.ipynb", "# Title", new_code_cell(SETUP), new_code_cell(save))
    for name in build.DOCUMENTS:
        notebook(tmp_path / "report" / f"{name}.ipynb", new_code_cell(SETUP), REPORT)
    return tmp_path


def notebook(path: Path, *cells) -> Path:
    cells = [new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def built(workspace: Path, *cells, **title) -> PdfReader:
    notebook(workspace / "report" / "report.ipynb", *cells)
    return PdfReader(io.BytesIO(pdf.report(**title)))


def words(reader: PdfReader) -> str:
    return " ".join(" ".join(page.extract_text() for page in reader.pages).split())


def tagged(source: str, *tags, outputs=()):
    return new_code_cell(source, metadata={"tags": list(tags)}, outputs=list(outputs))


def test_the_report_holds_what_was_written(workspace):
    reader = built(workspace, REPORT, author="Ada Lovelace", id="42")
    text = words(reader)
    for part in (
        "does an adaptive margin beat a fixed one?", "Ada Lovelace", "ID 42", "99.6 % at best",
        "1 Introduction", "2 Method", "A The code", "Section 2", "Equation (1)", "Figure 1.", "Table 1.", "Listing 1.",
        "Appendix A", "[1], [2]", "ArcFace: Additive Angular Margin Loss", "A footnote.", "1. a list right below",
    ):  # fmt: skip
        assert part in text, part
    assert "A study" not in text and "NormFace" not in text  # the notebook's title; a source not cited
    assert len(reader.pages) == 2
    assert sum(len(page.images) for page in reader.pages) == 1
    assert reader.metadata.author == "Ada Lovelace"


def structure(reader: PdfReader):
    """The elements of the PDF's structure: tag and alternative text."""
    stack = [reader.trailer["/Root"]["/StructTreeRoot"]]
    while stack:
        node = stack.pop()
        node = node.get_object() if hasattr(node, "get_object") else node
        if isinstance(node, list):
            stack += node
        elif isinstance(node, dict):
            if "/S" in node:
                yield node["/S"], str(node.get("/Alt", ""))
            stack.append(node.get("/K"))


def test_pictures_and_formulas_are_spoken(workspace):
    reader = built(workspace, REPORT + "\n\nSo $W_j^\\top x \\in \\mathbb{R}$ and $a - b \\ne \\bar d$(x).")
    texts = [(tag, alt) for tag, alt in structure(reader) if tag in ("/Figure", "/Formula")]
    assert ("/Figure", 'a "falling" curve') in texts
    spoken = [alt for tag, alt in texts if tag == "/Formula"]
    assert "W sub j transposed x in R" in spoken and "a minus b is not d bar" in spoken
    exponent = "fraction e to the power s cos ( theta sub y plus m), end of power"
    assert any(exponent in alt for alt in spoken), spoken
    assert not [alt for alt in spoken if not alt or "\\" in alt]
    root = reader.trailer["/Root"]
    assert root["/ViewerPreferences"]["/DisplayDocTitle"] and root["/Lang"] == "en"
    assert b"pdfuaid:part" in root["/Metadata"].get_object().get_data()


def test_signs_are_typeset(workspace):
    written = 'S1\'s gap is -0.5 [-1, 2], ("so") CIFAR-10 - a set, Recall@1 `x - 1`.'
    text = words(built(workspace, f"# Title\n\n## Section\n\n{written}"))
    minus, dash, apostrophe, quotes = "\u2212", "\u2013", "\u2019", ("\u201c", "\u201d")
    assert (
        f"S1{apostrophe}s gap is {minus}0.5 [{minus}1, 2], (so) CIFAR-10 {dash} a set".replace("so", "so".join(quotes))
        in text
    )
    assert "Recall@1 x - 1." in text


def test_the_answer_stands_above_the_abstract(workspace):
    figure = '![A curve.](../figures/02_curve.png "falling"){#fig:curve}'
    abstract = f"## Abstract\n\n> In one sentence: no.\n\n{figure}\n\nThe abstract."
    reader = built(workspace, f"# Title\n\n{abstract}\n\n## Section\n\nText, @fig:curve.")
    first = " ".join(reader.pages[0].extract_text().split())
    assert first.index("In one sentence: no.") < first.index("Figure 1.") < first.index("The abstract.")


# ---------------------------------------------------------------- the report that is committed


@pytest.fixture(scope="module")
def committed():
    """The notebook and the PDF made of it, by document."""
    nbs = {name: notebooks.read(ROOT / "report" / f"{name}.ipynb") for name in build.DOCUMENTS}
    return {name: (nb, PdfReader(io.BytesIO(pdf.report(name)))) for name, nb in nbs.items()}


@pytest.mark.parametrize("name", build.DOCUMENTS)
def test_the_pdf_breaks_no_rule_of_accessibility_that_can_be_checked(name):
    found = pdfua.validate(str(ROOT / "report" / f"{name}.pdf"))  # 16 of PDF/UA-1's 106 rules
    assert not found.findings and len(found.outcomes) > 10


def markdown(nb) -> str:
    """What the notebook says: its Markdown, and that of its outputs."""
    parts = []
    for cell in nb.cells:
        outputs = [output.get("data", {}) for output in cell.get("outputs", ())]
        parts += [cell.source] if cell.cell_type == "markdown" else []
        parts += [data["text/markdown"] for data in outputs if "text/markdown" in data]
    return "\n\n".join(parts)


def test_the_report_is_short_and_its_front_page_whole(committed):
    nb, reader = committed["report"]
    assert len(reader.pages) <= 14
    first = " ".join(reader.pages[0].extract_text().split())
    assert "Figure 1." in first and "A The code explained" in first and "MSDA-3440" in first
    [abstract] = [part for part in markdown(nb).split("\n\n") if part.startswith("ArcFace trains a classifier")]
    assert len(abstract.split()) <= 150 and abstract[-60:].split()[-1] in first
    assert len(re.findall(r"(?<![\w-])[+-]?\d+\.\d+", abstract)) <= 6


@pytest.mark.parametrize("name", build.DOCUMENTS)
def test_every_figure_and_table_is_cited(committed, name):
    text = markdown(committed[name][0])
    labels = set(re.findall(r"\{#((?:fig|tbl|lst|eq):[\w-]+)", text))
    assert len(labels) > 10
    assert not {label for label in labels if not re.search(rf"@{label}(?![\w-])", text)}


def test_figures_are_vectors_in_letters_that_can_be_read(committed):
    folder = Path(get_data_path(), "fonts", "ttf")
    fonts = set(typst.Fonts(include_system_fonts=False, font_paths=[str(folder)]).families())
    found = re.findall(r"\]\(figures/([\w-]+\.\w+)", markdown(committed["report"][0]))
    assert len(found) >= 13 and not [name for name in found if not name.endswith(".svg")]
    for name in found:
        text = (ROOT / "report" / "figures" / name).read_text(encoding="utf-8")
        width = float(re.search(r'<svg[^>]*? width="([\d.]+)pt"', text)[1])
        styles = re.findall(r'<text[^>]*? style="([^"]*)"', text)
        sizes = [float(re.search(r"font(?:-size)?:[^;]*?([\d.]+)px", style)[1]) for style in styles]
        assert min(sizes) * min(1, pdf.TEXT / width) >= 6.95, name  # points on paper
        assert set(re.findall(r"font: [^;]*?px '?([\w ]+)", text)) <= fonts, name
        assert (ROOT / "figures" / name).with_suffix(".png").exists()


def test_listings_are_python(committed):
    listings = dict(
        re.findall(r"```\{\.python #(lst:[\w-]+)[^\n]*\n(.*?)\n```", markdown(committed["report"][0]), re.S)
    )
    assert {"lst:loop", "lst:arcface"} <= listings.keys()
    for source in listings.values():
        ast.parse(source)
    space = {"torch": torch}
    exec(listings["lst:loop"], space)
    torch.manual_seed(0)
    labels = torch.arange(640) % 4
    images = torch.eye(4)[labels] + 0.1 * torch.randn(640, 4)
    network, head = torch.nn.Linear(4, 8), losses.ArcFace(4, 8)
    before = head.W.detach().clone()
    space["fit"](network, head, images, labels, epochs=3, batch_size=32)
    assert (head(network(images)).argmax(1) == labels).float().mean() > 0.95
    assert not torch.equal(before, head.W) and head.margin_scale == 1


@pytest.mark.parametrize("name, most", [("report", 1e6), ("supplement", 1e6)])
def test_the_pdf_that_is_committed_is_small_and_made_of_the_notebook(committed, name, most):
    path = ROOT / "report" / f"{name}.pdf"
    assert path.stat().st_size < most
    assert words(PdfReader(path)) == words(committed[name][1])


def test_only_a_long_table_breaks_over_pages(workspace):
    def table(name, rows):
        return "| row |\n|:--|\n" + "\n".join(f"| {name}{i} |" for i in range(rows)) + f"\n\n: A table. {{#tbl:{name}}}"

    text = "# Title\n\n## Section\n\n" + "\n\n".join(f"Line {i}." for i in range(26))
    reader = built(workspace, f"{text}\n\n{table('short', 20)}\n\n{table('long', 60)}")
    found = [{row for row in page.extract_text().split() if row.startswith(("short", "long"))} for page in reader.pages]
    assert {f"short{i}" for i in range(20)} in [{row for row in page if row.startswith("short")} for page in found]
    assert sum(any(row.startswith("long") for row in page) for page in found) > 1


def test_a_long_table_keeps_clear_of_the_text_above_it(workspace):
    rows = "\n".join(f"| row{i} |" for i in range(40))
    reader = built(workspace, f"# Title\n\n## Section\n\nAbove.\n\n| row |\n|:--|\n{rows}\n\n: Caption. {{#tbl:long}}")
    heights = {}
    for page in reader.pages:
        page.extract_text(visitor_text=lambda text, place, *_: heights.setdefault(text.strip(), place[5]))
    assert heights["Above."] - heights["Caption."] > 20  # points between their baselines


def test_the_same_inputs_give_the_same_bytes(workspace):
    assert pdf.report() == pdf.report()


@pytest.mark.parametrize(
    "text, message",
    [
        ("See @fig:nowhere.", "undefined reference @fig:nowhere"),
        ("See @eq:a [@deng2019arcface].\n\n## References", "undefined reference @eq:a"),
        ("As shown [@nobody2020].\n\n## References", "unknown citation @nobody2020: add it to references.bib"),
        ("As shown [@deng2019arcface].", "add the section ## References"),
        ("![A caption.](../figures/missing.png)", "image ../figures/missing.png is missing"),
        ("![](../figures/02_curve.png)", "no caption"),
        ("![A caption.](../figures/02_curve.png){#fig:a}", "figure fig:a has no alternative text"),
        ('![A caption.](../figures/02_curve.png "A caption."){#fig:a}', "figure fig:a has no alternative text"),
        ("$$ \\notacommand{x} $$", "notacommand"),
        ("$\\cancelto{a}{b}$", "\\cancelto converts wrongly"),
        ("A line<br>break", "<br>"),
        ("$$ a $$ {#eq:a}\n\n$$ b $$ {#eq:a}", "eq:a is defined twice"),
        ("## Method\n\ntext\n\n## Method {#sec:method}", "sec:method is defined twice"),
    ],
)
def test_a_hole_in_the_page_fails_with_its_name(workspace, text, message):
    with pytest.raises(ValueError) as error:
        built(workspace, "# Title\n\n## Section\n\n" + text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_code_and_prints_are_shown_only_where_asked(workspace):
    stream = new_output("stream", text="printed\n")
    table = new_output("display_data", {"text/markdown": "a **computed** sentence", "text/plain": "<Markdown>"})
    text = words(
        built(
            workspace,
            "# Title\n\n## Section",
            tagged("quiet_code()", outputs=[stream, table]),
            tagged("setup_code()", "setup", outputs=[table]),
            tagged("shown_code()", "listing", outputs=[new_output("stream", text="7.94\n")]),
        )
    )
    assert text.count("a computed sentence") == 1
    assert "shown_code()" in text and "7.94" in text
    assert not [part for part in ("quiet_code", "setup_code", "printed", "<Markdown>") if part in text]


def test_a_table_for_browsers_only_fails(workspace):
    html = new_output("display_data", {"text/html": "<table><tr><td>1</td></tr></table>", "text/plain": "1"})
    with pytest.raises(ValueError, match="raw html is dropped"):
        built(workspace, "## Section", new_code_cell("frame", outputs=[html]))


@pytest.mark.parametrize("line", ["date:", "course:"])
def test_metadata_without_an_entry_fails(workspace, line):
    path = workspace / "report" / "metadata.yml"
    path.write_text("".join(kept for kept in path.read_text().splitlines(True) if not kept.startswith(line)))
    with pytest.raises(ValueError, match=rf"metadata.yml.*{line.split(':')[0]}"):
        pdf.report()


def test_letters_that_no_font_here_has_fail(workspace, monkeypatch):
    compiler = pdf._compiler
    monkeypatch.setattr(pdf, "_compiler", lambda work, fonts, own, *rest: compiler(work, fonts, True, *rest))
    with pytest.raises(ValueError, match="no font here shows '学'"):
        pdf.report(author="学")
    assert pdf.report(author="Łukasz Ωμέγα Ильич Ngô")


def test_nbconvert_takes_the_exporter_by_its_path(workspace):
    exporter = get_exporter("report.pdf.ReportExporter")()  # as `jupyter nbconvert --to` does
    assert exporter.from_filename(workspace / "report" / "report.ipynb")[0].startswith(b"%PDF")


def test_execute_runs_in_the_notebooks_folder_and_keeps_no_times(workspace, capsys):
    bar = "from tqdm import tqdm; import sys\nfor i in tqdm(range(3), file=sys.stdout): pass"
    source = notebook(workspace / "notebooks" / "01_first.ipynb", "# Part", new_code_cell("%pwd"), new_code_cell(bar))
    notebooks.run_cells(source, workspace / "out" / "01_first.ipynb")
    nb = notebooks.read(workspace / "out" / "01_first.ipynb")
    assert str(workspace / "notebooks") in nb.cells[1].outputs[0]["data"]["text/plain"]
    assert re.fullmatch(r"100%\S* 3/3\n", nb.cells[2].outputs[0].text.split("\r")[-1])  # one bar, not its whole course
    assert "execution" not in nb.cells[1].metadata
    # a bar only on a terminal: in a log each of its steps would be a line
    said = re.fullmatch(r"01_first: executed in (\d+) s\n", capsys.readouterr().out)
    assert said and (workspace / ".build" / "full" / "seconds" / "01_first").read_text() == said[1]


def test_execute_stores_figures_in_256_colours_but_leaves_a_transparent_one(workspace):
    draw = (
        "from PIL import Image\nImage.linear_gradient('L').convert('RGB').resize((300, 300), Image.Resampling.BICUBIC)"
    )
    clear = "Image.new('RGBA', (9, 9), (255, 0, 0, 99))"
    page = (
        "import base64, io\nfrom IPython.display import HTML\n"
        "def tag(image):\n    image.save(file := io.BytesIO(), 'PNG')\n"
        "    return f'<img src=\"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}\">'\n"
        f"HTML(tag({draw.split(chr(10))[1]}) + '<b>&amp;</b>' + tag({clear}) + '<i>data:image/png;base64,abc</i>')"
    )
    source = notebook(workspace / "notebooks" / "01_first.ipynb", *map(new_code_cell, (draw, clear, page)))
    notebooks.run_cells(source, source)
    *plain, html = (cell.outputs[0]["data"] for cell in notebooks.read(source).cells)
    within = notebooks.PNG.findall(html["text/html"])
    assert within[2:] == ["abc"] and "<b>&amp;</b>" in html["text/html"]
    modes = [
        Image.open(io.BytesIO(base64.b64decode(png))).mode
        for png in (*(data["image/png"] for data in plain), *within[:2])
    ]
    assert modes == ["P", "RGBA", "P", "RGBA"]


def test_a_failing_cell_is_named_and_nothing_is_written(workspace):
    source = notebook(workspace / "notebooks" / "01_first.ipynb", "## The part {#sec:a}", new_code_cell("1 / 0"))
    before = source.read_text()
    with pytest.raises(ValueError, match=r"^01_first.ipynb, section 'The part': ZeroDivisionError: division by zero$"):
        notebooks.run_cells(source, source)
    assert source.read_text() == before


def test_submission_holds_everything_under_that_name(workspace):
    path = submission.submission(" Van  Dyk", "Anne-Marie", "a1")
    first = path.read_bytes()
    assert path == workspace / "Van-Dyk_Anne-Marie_a1_Project1.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # no clock in the bytes
        reader = PdfReader(io.BytesIO(archive.read("Van-Dyk_Anne-Marie_a1_Project1.pdf")))
        script = archive.read("notebooks/01_first.py").decode()
    assert {"figures/02_curve.png", "notebooks/02_second.py", "report/report.py", "report/supplement.py"} < set(names)
    folders = [ROOT / part for part in ("lib", "studies", "course", "report", "benchmarks")]
    parts = [path for folder in folders for path in folder.rglob("*.*")]
    code = {path.relative_to(ROOT).as_posix() for path in parts if path.suffix in submission.SUFFIXES}
    assert {"lib/heads/triplet.py", "report/layout/report.typ"} < code < set(names)
    assert {"README.md", "LICENSE", "pyproject.toml", "uv.lock", "requirements.txt", "docs/use_a_head.md"} < set(names)
    records = {path.relative_to(ROOT).as_posix() for path in (ROOT / "results").glob("*.jsonl")}
    assert {"results/mnist.jsonl"} < records < set(names)
    assert {"tests/test_losses.py", "report/references.bib", "report/metadata.yml"} < set(names)
    supplement = PdfReader(io.BytesIO(zipfile.ZipFile(path).read("supplement.pdf")))
    assert "Supplement to" in words(supplement) and "Anne-Marie Van Dyk" in words(supplement)
    assert "Anne-Marie Van Dyk" in words(reader) and "ID a1" in words(reader)
    compile(script, "01_first.py", "exec")
    os.utime(workspace / "figures" / "02_curve.png", (0, 0))
    assert submission.submission("Van Dyk", "Anne-Marie", "a1").read_bytes() == first


@pytest.mark.parametrize(
    "lastname, firstname, id, stem",
    [
        ("O'Brien", "Zoe\u0308", "x9", "OBrien_Zo\u00eb_x9_Project1"),
        ("李", "小龙", "7", "李_小龙_7_Project1"),
    ],
)
def test_submission_names(lastname, firstname, id, stem):
    assert submission.submission_name(lastname, firstname, id) == stem


@pytest.mark.parametrize(
    "lastname, firstname, id, message",
    [
        ("", "Ada", "1", "LASTNAME is empty"),
        ("Lovelace", " - ", "1", "FIRSTNAME is empty"),
        ("../up", "Ada", "1", "LASTNAME '../up' holds './'"),
        ("Lovelace", "Ada", "12/3", "ID '12/3' is not"),
    ],
)
def test_wrong_names_get_cause_and_cure(lastname, firstname, id, message):
    with pytest.raises(ValueError) as error:
        submission.submission_name(lastname, firstname, id)
    assert message in str(error.value) and "make submission LASTNAME=" in str(error.value)


def test_submission_without_its_parts(workspace):
    for name in ("02_curve", "02_shown"):
        (workspace / "figures" / f"{name}.png").unlink()
    with pytest.raises(ValueError, match=r"figures/02_curve.png, figures/02_shown.png missing"):
        submission.submission("Lovelace", "Ada", "1")
    assert not list(workspace.glob("*.zip"))


def test_the_smoke_profile_stays_in_its_folder(workspace, monkeypatch):
    monkeypatch.setenv("PROFILE", "smoke")
    with pytest.raises(ValueError, match=r"\.smoke/report/report.ipynb is missing: run `make report`"):
        pdf.report()
    assert paths.folder("figures") == workspace / ".smoke" / "figures"


def test_colab_writes_address_and_badges_once(workspace):
    readme = workspace / "README.md"
    rows = "\n".join(f"| [{name}](notebooks/{name}.ipynb) | A question? |" for name in ("01_first", "02_second"))
    readme.write_text(f"# Study\n\n| notebook | question |\n|---|---|\n{rows}\n\nText.\n")
    before = {path: path.read_text() for path in [*workspace.rglob("*.ipynb"), readme, workspace / "pyproject.toml"]}
    assert len(colab.link("ada/margins")) == len(before) == 6
    once = {path: path.read_text() for path in before}
    assert colab.link("ada/margins") == []
    for name in ("01_first", "02_second"):
        link = f"https://colab.research.google.com/github/ada/margins/blob/main/notebooks/{name}.ipynb"
        nb = notebooks.read(workspace / "notebooks" / f"{name}.ipynb")
        assert nb.cells[0].source.count(link) == 1 and nb.cells[0].source.startswith("# Title\n\n[![Open in Colab]")
        cell = colab.CELL.read_text().rstrip()
        assert nb.cells[1].source == cell.replace('""', '"https://github.com/ada/margins"', 1) != cell
        assert re.search(rf"^\| \[.*\]\(notebooks/{name}.ipynb\) \[!.*{link}\) \| .*\? \|$", once[readme], re.M)
    assert once[readme].count("colab-badge") == 2
    assert "colab-badge" not in once[workspace / "report" / "report.ipynb"]
    address = '[project.urls]\nRepository = "https://github.com/ada/margins"'
    assert once[workspace / "pyproject.toml"].count(address) == 1
    assert tomllib.loads(once[workspace / "pyproject.toml"])["dependency-groups"]
    colab.link("bob/other.name")
    assert "ada/margins" not in "".join(path.read_text() for path in once)
    colab.link("ada/margins")
    assert once == {path: path.read_text() for path in once}


@pytest.mark.parametrize(
    "text",
    ["# T", "# T\n\nText\n\n\n\n```\n# no title\n```", "Text\n\n# T\n\n- a", "Text", "# T\nText", "## T\n\nText"],
)
def test_the_badge_follows_the_title(text):
    first, second = (f"[![Open in Colab]({colab.BADGE})](https://x.org/{n})" for n in (1, 2))
    once = colab._with_badge(text, first)
    assert once == colab._with_badge(once, first) and once.count(first) == 1
    above = colab._with_badge(f"{first}\n\n{text}", first)  # where an earlier version wrote it
    assert above == once and colab._with_badge(once, second) == once.replace(first, second)
    words = [line for line in once.split("\n") if line and line != first]
    assert words == [line for line in text.split("\n") if line]
    if text.startswith("# T"):
        assert once.split("\n\n")[:2] == ["# T", first]


def test_every_notebook_keeps_its_form_with_a_badge():
    for path in (Path(colab.__file__).parent.parent / "notebooks").glob("*.ipynb"):
        source = notebooks.read(path).cells[0].source
        with_badge = colab._with_badge(source, f"[![Open in Colab]({colab.BADGE})](x)")
        assert with_badge.startswith("# ") and with_badge.splitlines()[0] == source.splitlines()[0]


def test_colab_takes_the_git_remote_and_its_branch(workspace):
    git = ["git", "-C", str(workspace)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    with pytest.raises(ValueError, match=r"^there is no git remote origin: run `make colab REPO=owner/name`$"):
        colab.link()
    subprocess.run([*git, "remote", "add", "origin", "git@github.com:ada/margins.git"], check=True)
    head = ["symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk"]
    subprocess.run([*git, *head], check=True)
    assert colab.link()
    assert "/github/ada/margins/blob/trunk/" in (workspace / "notebooks" / "01_first.ipynb").read_text()


@pytest.mark.parametrize(
    "address",
    [
        "ada/margins", "https://github.com/ada/margins", "https://github.com/ada/margins.git",
        "github.com/ada/margins/", "git@github.com:ada/margins.git", "ssh://git@github.com/ada/margins.git",
        " https://www.github.com/ada/margins ",
        "https://github.com/ada/margins/tree/main/notebooks", "https://ada:token@github.com/ada/margins",
    ],
)  # fmt: skip
def test_addresses_of_a_repository(address):
    assert colab.owner_and_name(address) == "ada/margins"


@pytest.mark.parametrize(
    "repo", ["name", "owner/", "https://gitlab.com/a/b", "a/b/c", "a b/c", "a/..", 'a/b"', "https://github.com/a"]
)
def test_colab_refuses_what_is_no_repository(workspace, repo):
    with pytest.raises(ValueError, match="is no repository on GitHub: run `make colab REPO=owner/name`"):
        colab.link(repo)


def test_colab_writes_all_or_nothing(workspace):
    notebook(workspace / "notebooks" / "02_second.ipynb", "# Title")
    before = (workspace / "notebooks" / "01_first.ipynb").read_text()
    with pytest.raises(ValueError, match=r"02_second.ipynb has no set-up cell"):
        colab.link("ada/margins")
    assert (workspace / "notebooks" / "01_first.ipynb").read_text() == before


def test_what_is_handed_in_runs_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("PROFILE", raising=False)
    monkeypatch.setattr(submission.paths, "write", lambda path, content: (tmp_path / path.name).write_bytes(content))
    name = submission.submission("Lovelace", "Ada", "1").name
    home = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / name) as archive:
        archive.extractall(home)
    assert "Ada Lovelace" in PdfReader(home / name.replace(".zip", ".pdf")).pages[0].extract_text()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON"))}

    def run(*arguments):
        done = subprocess.run([sys.executable, *arguments], cwd=home, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert str(home) in run("-c", "import lib; print(lib.__file__)")
    tests = run("-m", "pytest", "-q", "-p", "no:xdist", "tests/test_losses.py", "-k", "ArcFace and not compile")
    assert " passed" in tests or "100%" in tests
    assert re.search(r"^mnist +27 of 27 ", run("-m", "studies", "--list"), re.M)  # with its records
    readme = (home / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http|#)([^)#]+)", readme)
    assert {name.replace(".zip", ".pdf"), "notebooks/06_unseen_classes.py", "studies/PROTOCOL.md"} <= set(links)
    named = re.findall(r"^python ([\w/]+\.py)|pytest ([\w/]+\.py)|`(\w+\.pdf)`", readme, re.M)
    there = [*links, *("".join(found) for found in named)]
    assert len(named) == 4 and not [place for place in there if not (home / place).exists()]
    assert "python -m studies data" in readme and "data/cifar-10-batches-py/" in readme
    assert "make " not in readme and "python -m report" not in readme
    for command in ("build", "status", "submission A B 1", "pdf"):
        done = subprocess.run(
            [sys.executable, "-m", "report", *command.split()], cwd=home, env=env, capture_output=True, text=True
        )
        assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: this folder holds no notebooks, as the zip that is handed in")
    assert not (home / ".venv").exists() and not (home / "data").exists()
    script = (home / "notebooks" / "02_arcface_derivation.py").read_text(encoding="utf-8")
    parts = script.split("\n# ## ")  # its first sections: all of it takes a minute
    (home / "notebooks" / "02_begin.py").write_text("\n# ## ".join(parts[:4]), encoding="utf-8")
    assert "get_ipython" not in script and len(parts) > 5
    shown = run("notebooks/02_begin.py")
    assert "\nThe pull against the angle. " in shown and "base64" not in shown and "object>" not in shown
