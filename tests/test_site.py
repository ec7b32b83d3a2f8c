"""The web edition: built once, then read as files and in a real Chromium, offline."""

import os
import posixpath
import re
import shutil
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import test_browser
import yaml
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course import form
from lib import paths
from report import build, colab
from studies import controlled, omniglot, tuning, verdicts

pytest.importorskip("sphinx", reason="the web edition needs Python 3.11")

import itertools

from report import site
from report.site import article, mending, sources

pytestmark = pytest.mark.filterwarnings("ignore:.* Check CHANGES for Sphinx API modifications")  # within myst_parser
browser, tab, needs_chromium = test_browser.browser, test_browser.tab, test_browser.needs_chromium
NOTEBOOKS = sorted((paths.PROJECT / "notebooks").glob("*.ipynb"))
DOCUMENTS = [f"report/{name}" for name in build.DOCUMENTS]
WRITTEN = sorted(path.relative_to(sources.PAGES).with_suffix("").as_posix() for path in sources.PAGES.rglob("*.md"))
DOCS = sorted(f"docs/{path.stem}" for path in (paths.PROJECT / "docs").glob("*.md"))
READ = [*(f"notebooks/{path.stem}" for path in NOTEBOOKS), *DOCUMENTS, *WRITTEN, *DOCS, "genindex", "search"]


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> Path:
    """The whole site, built once, also where several processes test."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.mktemp("site")
    with FileLock(base / "site.lock"):
        site.write_site(base / "site", base / "site_source")
    return base / "site"


class Page(HTMLParser):
    """What a page has: its anchors, what it links to, what it loads, its pictures."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.pictures, self.classes = set(), [], [], [], Counter()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.classes.update((found.get("class") or "").split())
        self.links += [found["href"]] if tag == "a" and found.get("href") else []
        self.loads += [found[key] for key in ("src", "srcset", "poster", "data") if found.get(key)]
        self.loads += [found["href"]] if tag in ("link", "image", "use") and found.get("href") else []
        self.pictures += [found] if tag == "img" else []


@pytest.fixture(scope="session")
def read(pages) -> dict[str, Page]:
    found = {path.relative_to(pages).as_posix(): Page(path) for path in sorted(pages.rglob("*.html"))}
    assert found.keys() >= {f"{name}.html" for name in READ} and len(found) > 20
    return found


# ---------------------------------------------------------------- files


def test_nothing_comes_from_a_network(read, pages):
    outside = {(name, one) for name, page in read.items() for one in page.loads if re.match(r"\s*(\w+:)?//", one)}
    assert {(name, one[:60]) for name, one in outside} == set()
    for path in pages.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(\w+:)?//", path.read_text(encoding="utf-8")), path


def test_every_link_leads_somewhere(read, pages):
    def leads_on(name, target):
        path = (
            posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(target.path))) if target.path else name
        )
        anchors = read[path].anchors if path in read else {unquote(target.fragment)}
        return (pages / path).is_file() and (not target.fragment or unquote(target.fragment) in anchors)

    broken = []
    for name, page in read.items():
        targets = {link: urlsplit(link) for link in [*page.links, *page.loads]}
        inside = {link: one for link, one in targets.items() if not (one.scheme or one.netloc)}
        broken += [(name, link) for link, one in inside.items() if not leads_on(name, one)]
    assert broken == []


def test_every_notebook_and_document_is_a_page_and_leads_on(read):
    wanted = [f"notebooks/{path.stem}.html" for path in NOTEBOOKS] + [f"{name}.html" for name in DOCUMENTS]
    assert {*wanted, "docs/use_a_head.html"} <= read.keys()
    for name, following in itertools.pairwise(wanted):
        assert posixpath.relpath(following, posixpath.dirname(name)) in read[name].links
    assert any(link.endswith(".pdf") for link in read["report/report.html"].links)


def test_every_picture_keeps_its_text(read):
    without = [(name, one["src"][:80]) for name, page in read.items() for one in page.pictures if not one.get("alt")]
    assert without == []
    for path in NOTEBOOKS:
        given = [text for cell in nbformat.read(path, 4).cells for text in form.alternatives(cell)]
        shown = [one["alt"] for one in read[f"notebooks/{path.stem}.html"].pictures]
        assert len(shown) == len(given), path
        assert all(there.startswith("A figure of the section") or there for there in shown)
        assert [there for text, there in zip(given, shown, strict=True) if text] == [
            sources.html.unescape(text) for text in given if text
        ]


def test_what_is_folded_in_jupyter_is_folded_here(read):
    for path in NOTEBOOKS:
        hidden = [c for c in nbformat.read(path, 4).cells if c.metadata.get("jupyter", {}).get("source_hidden")]
        assert read[f"notebooks/{path.stem}.html"].classes["hide"] == len(hidden), path


def test_the_report_hides_its_code_and_numbers_what_it_cites(read, pages):
    text = (pages / "report" / "report.html").read_text(encoding="utf-8")
    assert read["report/report.html"].classes["cell_input"] == 0 and "# @title" not in text
    assert re.search(r">Figure\s1</", text) and "@fig:" not in text and "@tbl:" not in text
    assert all(one["alt"] and len(one["alt"]) > 40 for one in read["report/report.html"].pictures)


def test_the_reference_has_what_is_public(pages):
    text = {path.stem: path.read_text(encoding="utf-8") for path in (pages / "reference").glob("*.html")}
    for module, name in (
        ("losses", "Head.target"), ("losses", "ArcFace"), ("heads", "relatives.MagFace"), ("data", "load"),
        ("models", "Classifier"), ("train", "fit"), ("metrics", "calibration_error"), ("plots", "save"),
    ):  # fmt: skip
        assert f'id="lib.{module}.{name}"' in text[module]
    assert "get_extra_state" not in text["losses"]  # PyTorch's words
    words = re.sub(r"<[^>]+>", "", text["losses"])
    assert "ArcFace(num_classes: int, embedding_dim: int, s=16.0, m=0.3)" in words
    assert "Head(num_classes: int, embedding_dim: int, **constants: Any)" in words


def test_the_front_page_has_the_answer_of_readme(read, pages):
    page = re.sub(r"<[^>]+>", "", (pages / "index.html").read_text(encoding="utf-8"))
    answer = re.search(r"The answer\..*", page.replace("\n", " "))[0].split(" Read ")[0]
    assert len(answer.split()) < 115 and "two exceptions" in answer
    assert "#two-exceptions" in read["index.html"].links and "<!--" not in page
    with pytest.raises(ValueError, match=r"one paragraph begins “\*\*The answer"):
        sources.front("<!-- the answer -->", "# Another\n\nTwo exceptions stand.")


def test_the_answer_of_the_front_page_holds():
    front = " ".join((paths.PROJECT / "README.md").read_text(encoding="utf-8").split())
    assert "no advantage, neither with ten balanced classes nor with" in front
    cifar10 = tuning.finished("cifar10")
    frames = {"mnist": controlled.finished("mnist"), "cifar10": cifar10.assign(stalled=verdicts.stalled(cifar10))}
    for name, frame in frames.items():
        bound = controlled.SETTINGS[name].bound
        found = verdicts.compare(frame, "AdaLoss", "ArcFace", "test_accuracy", bound, 100)
        assert found["verdict"] in ("equivalent", "lower", "lower by less than the bound") and found["high"] < bound
    for metric, (_, factor, _, bound, _) in omniglot.QUESTIONS.items():
        found = verdicts.compare(omniglot.finished(), "AdaLoss", "ArcFace", metric, bound, factor, comparisons=2)
        assert found["verdict"] in ("equivalent", "lower by less than the bound")


def test_a_second_build_does_nothing_until_something_changes(pages, monkeypatch):
    source = pages.with_name("site_source")
    monkeypatch.setattr(site, "_sphinx", lambda *arguments: pytest.fail("it was built again"))
    monkeypatch.setattr(sources, "files", lambda: pytest.fail("it was laid out again"))
    assert site.write_site(pages, source)[0].startswith("nothing has changed")
    monkeypatch.setattr(colab, "address", lambda: "https://github.com/ada/margins")
    with pytest.raises(pytest.fail.Exception, match="laid out"):
        site.write_site(pages, source)
    source.with_name(f"{source.name}.hash").write_text("")


# ---------------------------------------------------------------- a small site of one's own


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Builds a site of one notebook, and returns its page; the project stays where it is."""

    def made(*cells, repository=""):
        path = tmp_path / "01_small.ipynb"
        nbformat.write(new_notebook(cells=[new_markdown_cell("# Small"), *cells]), path)
        text, pictures = sources.notebook(path)
        files = {
            name: (sources.PAGES / name).read_bytes() for name in ("conf.py", "_static/favicon.svg", "_static/site.css")
        }
        files |= {"index.md": b"# Start\n\n```{toctree}\nnotebooks/01_small\nreference/losses\n```\n", **pictures}
        files |= {"reference/losses.md": b"# Losses\n", "notebooks/01_small.ipynb": text.encode()}
        monkeypatch.setattr(sources, "files", lambda: files)
        monkeypatch.setattr(colab, "address", lambda: repository)
        (tmp_path / "source.hash").unlink(missing_ok=True)
        site.write_site(tmp_path / "site", tmp_path / "source")
        return (tmp_path / "site" / "notebooks" / "01_small.html").read_text(encoding="utf-8")

    return made


LINKS = """[a study](../studies/omniglot.py), [the losses](../lib/losses.py), [contents](../README.md#what-is-here),
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/x),
`heads[name](../studies/omniglot.py)`"""


def test_links_out_of_the_site(small):
    plain = small(new_markdown_cell(LINKS))
    assert re.search(r">a study</span></span>,", plain) and "studies/omniglot.py)</span>" in plain  # the last is code
    assert 'href="../reference/losses.html"' in plain and plain.count('href="../index.html"') > 1
    assert "colab-badge" not in plain and re.search(r'href="https://colab[^"]*"[^>]*>Open in Colab</a>', plain)
    linked = small(new_markdown_cell(LINKS), repository="https://github.com/ada/margins")
    assert 'href="https://github.com/ada/margins/blob/HEAD/studies/omniglot.py"' in linked
    assert 'href="../reference/losses.html"' in linked


def test_a_link_to_nothing_is_a_failure(small, capsys):
    for text in ("[gone](../studies/nothing.py)", "[gone](02_nothing.ipynb)", "![gone](../figures/nothing.png)"):
        with pytest.raises(ValueError, match=r"^the site is not whole"):
            small(new_markdown_cell(text))
        assert "nothing" in capsys.readouterr().err


PNG = sources.base64.b64encode((paths.PROJECT / "figures" / "02_scale.png").read_bytes()).decode()


def test_outputs(small, tmp_path):
    widget = {sources.WIDGET: {"model_id": "x"}, "text/plain": "a widget"}
    own = {
        "text/html": f'<img alt="a &lt;curve&gt;" src="data:image/png;base64,{PNG}" style="width:9px">',
        "image/png": PNG,
    }
    table = {"text/markdown": "| a |\n|---|\n| $x_1$ |", "text/plain": "?"}
    cells = [
        new_code_cell("# @title Draw\n1", metadata={"jupyter": {"source_hidden": True}}, execution_count=1),
        new_code_cell("open", metadata={"tags": ["remove-nothing"]}, execution_count=1),
    ]
    moving = {"text/html": '<figure class="picture-1"><img alt="moves" src="data:image/svg+xml,%3Csvg/%3E"></figure>'}
    shown = (widget, own, {"image/png": PNG}, table, moving)
    cells[0]["outputs"] = [new_output("display_data", data) for data in shown]
    text = small(*cells, new_markdown_cell("$$a \\\\ b \\tag{1}$$"))
    assert "Code: Draw" in text and text.count('<details class="') == 1 and "a widget" not in text
    assert text.count("<img") == 3 and text.count(".png") == 4 and "base64" not in text
    assert text.count('<a class="wide"') == 2 and re.search(
        r'"picture-1"><div class="wide"><img[^>]*></div></fig', text
    )
    assert 'alt="a &lt;curve&gt;"' in text and 'alt="A figure of the section “Small”; it has no description."' in text
    assert text.count('loading="lazy"') == 2 and re.search(r'<img[^>]*width="\d+" height="\d+"', text)
    assert "<td" in text and r"\(x_1\)" in text and r"\begin{split}" not in text and r"\tag{1}" in text
    assert len(list((tmp_path / "site" / "_static" / "pictures").iterdir())) == 1


def test_a_page_that_has_gone_is_gone(small, tmp_path):
    small()
    stale = tmp_path / "source" / "old.md"
    stale.write_text("# Old\n")
    (tmp_path / "site" / "old.html").write_text("old")
    small()
    assert not stale.exists() and not (tmp_path / "site" / "old.html").exists()


def test_docstrings():
    lines = ["Three ways", "", "    a(x)   |x|", "    b(x)", "", "and |x|:", "", "- a list", "", "  goes on |y|"]
    mending.docstring(None, "module", "m", None, None, lines)
    assert lines[:6] == ["Three ways", "", "::", "", "    a(x)   |x|", "    b(x)"]
    assert lines[7:] == [r"and \|x\|:", "", "- a list", "", r"  goes on \|y\|"]


REPORT = """## Abstract

One sentence.

## Method {#sec:method}

More is in `supplement.pdf`.
See @sec:method, @eq:loss, @fig:curve, @tbl:heads, @lst:margin and [@deng2019arcface; @wang2018cosface].

$$ L = -x $$ {#eq:loss}

![A curve of @eq:loss.](../figures/02_curve.png "it falls"){#fig:curve width=60%}

| head | m |
|:-----|--:|
| ArcFace | -0.5 |

: The heads. {#tbl:heads}

```{.python #lst:margin caption="The margin $m$."}
theta = theta + m
```

## References

## The code {.appendix}

### Parts"""


@pytest.fixture
def written(project):
    """Writes a report in an empty project, and returns its page."""
    (project / "report").mkdir()
    for name in ("metadata.yml", "references.bib"):
        shutil.copy(Path(build.__file__).parent / name, project / "report")

    def page(text, name="report"):
        cells = [new_markdown_cell("# Title"), new_code_cell("hidden = 1"), new_markdown_cell(text)]
        nbformat.write(new_notebook(cells=cells), project / "report" / f"{name}.ipynb")
        return article.page(name)

    return page


def test_the_report_becomes_a_page(written):
    text = written(REPORT)
    assert text.startswith("# Angular-margin losses") and "\n## Abstract\n" in text and "hidden" not in text
    assert "## 1 Method" in text and "## A The code" in text and "### A.1 Parts" in text
    for kind, number in (
        ("sec-method", "Section 1"),
        ("eq-loss", "Equation (1)"),
        ("fig-curve", "Figure 1"),
        ("tbl-heads", "Table 1"),
        ("lst-margin", "Listing 1"),
    ):
        assert f"[{number.replace(' ', chr(160))}](#report-{kind})" in text
        assert f":name: report-{kind}" in text or f"(report-{kind})=" in text
    assert "[1](#report-ref-deng2019arcface), [2](#report-ref-wang2018cosface)" in text
    assert "(report-ref-wang2018cosface)=" in text and "Large Margin Cosine Loss" in text
    assert "$$\nL = -x \\tag{1}\n$$" in text and ":alt: it falls" in text and ":width: 60%" in text
    assert "```{table} **Table 1.** The heads." in text and "\u22120.5" in text
    assert ":caption: **Listing 1.** The margin $m$." in text and "theta = theta + m" in text
    assert "[`supplement.pdf`](supplement.pdf)" in text
    assert "Supplement to" in written(REPORT, "supplement")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("See @fig:nothing.", "undefined reference @fig:nothing"),
        ("See [@nobody1999].", "unknown citation @nobody1999"),
        ("![A curve.](a.png){#fig:a}", "figure fig:a has no alternative text"),
    ],
)
def test_a_hole_in_the_report_fails_with_its_name(written, text, message):
    with pytest.raises(ValueError, match=message):
        written(text)


def test_the_address_of_the_repository(project, monkeypatch):
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n')
    monkeypatch.setattr(colab, "_git", lambda *arguments: "")
    assert colab.address() == ""
    monkeypatch.setattr(colab, "_git", lambda *arguments: "git@github.com:ada/margins.git")
    assert colab.address() == "https://github.com/ada/margins"
    (project / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/bob/study"\n')
    assert colab.address() == "https://github.com/bob/study"


def test_without_notebooks_there_is_no_site(project):
    with pytest.raises(ValueError, match=r"^there are no notebooks here: clone the project"):
        sources.files()


# ---------------------------------------------------------------- in a browser


def measure(tab, width):
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)


def waits(tab, condition, seconds=100):
    """Whether it becomes true: in a second or two, on a machine that has much else to do in a hundred."""
    end = time.monotonic() + seconds
    while not (true := tab.ask(condition)) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(true)


TYPESET = "!window.MathJax || !MathJax.startup || document.querySelectorAll('mjx-container').length >= {}"


# of every picture its file, its own width and the one shown, without the ground around it
SHOWN = """[...document.querySelectorAll('.wide > img, a.image-reference > img')].map(one => {
  const look = getComputedStyle(one);
  return [one.src, one.naturalWidth, one.clientWidth - parseFloat(look.paddingLeft) - parseFloat(look.paddingRight)];
})"""
# the sizes of the words of pictures with sliders, in pixels of the page
WORDS = """[...document.querySelectorAll('.wide > svg text')].map(
  one => parseFloat(getComputedStyle(one).fontSize) * one.ownerSVGElement.getScreenCTM().a)"""
# what is wider than its box: how its box treats it, whether it says so, whether it moves to its end
WIDE = """[...document.querySelectorAll('article pre, .wide, a.image-reference, .table-wrapper, div.math')]
  .filter(one => one.checkVisibility() && one.scrollWidth > one.clientWidth + 1).map(one => {
    const rest = one.scrollWidth - one.clientWidth, hint = getComputedStyle(one, '::before').content;
    const found = {box: one.className || one.localName, more: one.classList.contains('more'), hint};
    one.scrollLeft = rest;
    found.moves = getComputedStyle(one).overflowX === 'auto' && one.scrollLeft > rest - 2;
    one.scrollLeft = 0;
    return found;
  })"""
SLIDERS = "[...document.querySelectorAll('figure[class^=picture] input')].map(one => '#' + one.id)"


def fits(tab, width):
    """Nothing but boxes of its own is wider than the page, and these move; returns them."""
    measure(tab, width)
    assert tab.ask("document.documentElement.scrollWidth") <= width
    waits(tab, f"{WIDE}.every(one => one.more)", 5)  # what watches the boxes is called a moment later
    boxes = tab.ask(WIDE)
    assert [one for one in boxes if not (one["moves"] and one["more"])] == []
    return boxes


def points(source, width):
    """The width on paper of a picture of so many pixels, in points."""
    return width * 72 / (160 if source.endswith(".png") else 96)  # 160 to the inch: lib/style.mplstyle


def can_be_read(tab):
    """The words of the pictures: on paper the small ones have 7 points in the report's, 8 in other figures."""
    for source, own, shown in tab.ask(SHOWN):
        small = 8.5 / 8 if source.endswith(".png") else 9 / 7
        assert shown / points(source, own) >= small, (source, own, shown)
    assert min(tab.ask(WORDS), default=9) >= 9


def slides(tab, slider):
    """Whether the picture changes as the slider is led to one of its ends."""
    before = tab.ask(test_browser.STATE)
    at_end = tab.ask(f"(one => one.value === one.max)(document.querySelector({slider!r}))")
    x, y = tab.place(slider, 0.05 if at_end else 0.95)
    tab.drag((x, y), (x, y))
    return tab.ask(test_browser.STATE) != before


@needs_chromium
@pytest.mark.parametrize("name", READ)
def test_a_page_is_whole_and_fits_a_phone(tab, pages, read, name):
    page = read[f"{name}.html"]
    measure(tab, 390)
    tab.open(pages / f"{name}.html")
    tab.ask("document.documentElement.style.scrollBehavior = 'auto'")
    formulas = tab.ask("document.querySelectorAll('.math').length")
    assert formulas == page.classes["math"]
    assert waits(tab, TYPESET.format(formulas))
    assert tab.ask("document.querySelectorAll('[data-mml-node=merror]').length") == 0
    tab.ask("document.images.length && [...document.images].forEach(one => { one.loading = 'eager' })")
    assert waits(tab, "[...document.images].every(one => one.complete && one.naturalWidth)")
    pictures = [one for one in fits(tab, 390) if re.search("wide|image-reference", one["box"])]
    assert all("scroll sideways" in one["hint"] for one in pictures)
    assert bool(pictures) == bool(page.classes["wide"] + page.classes["image-reference"])
    can_be_read(tab)
    sliders = tab.ask(SLIDERS)
    assert bool(sliders) == any(key.startswith("picture-") for key in page.classes)
    assert all(slides(tab, slider) for slider in sliders[:1])
    assert not [one for one in fits(tab, 1200) if re.search("wide|image-reference", one["box"])]


def test_formulas_are_in_the_notebooks_and_the_report(read):
    assert read["notebooks/02_arcface_derivation.html"].classes["math"] > 100
    assert read["report/report.html"].classes["math"] > 50


@needs_chromium
@pytest.mark.parametrize("width", [390, 700, 768, 1000, 1280])
def test_the_code_of_the_front_page_is_whole(tab, pages, width):
    measure(tab, width)
    tab.open(pages / "index.html")
    assert tab.ask("document.querySelectorAll('.door pre').length") == 2
    assert [one for one in fits(tab, width) if "more" in one["box"]] == []


@needs_chromium
def test_a_finger_moves_a_picture_that_is_too_wide(tab, pages):
    measure(tab, 390)
    tab.open(pages / "notebooks" / "01_cosine_distance.html")
    assert waits(tab, "document.querySelectorAll('div.wide.moves > svg').length")
    look = "getComputedStyle(document.querySelector('div.wide > svg')).touchAction"
    assert "pan-x" in tab.ask(look)  # else the handle alone would take it
    measure(tab, 1200)
    assert waits(tab, f"{look} === 'pan-y'")


@needs_chromium
def test_a_slider_moves_its_picture_and_a_folded_cell_opens(tab, pages):
    measure(tab, 1200)
    tab.open(pages / "notebooks" / "02_arcface_derivation.html")
    assert waits(tab, TYPESET.format(100))  # until then the page moves
    tab.ask("document.documentElement.style.scrollBehavior = 'auto'")
    sliders = tab.ask(SLIDERS)
    assert len(sliders) >= 4 and all(slides(tab, slider) for slider in sliders)
    code = "document.querySelector('details.hide pre').checkVisibility()"
    assert tab.ask(code) is False
    tab.ask("document.querySelector('details.hide summary').click()")
    assert tab.ask(code) is True


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_lie_on_white_and_text_can_be_read(tab, pages, scheme):
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(pages / "notebooks" / "02_arcface_derivation.html")
    ground = "getComputedStyle({}).backgroundColor"
    assert tab.ask("matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
    for figure in ("div.cell_output img", "div.cell_output figure[class^=picture]"):
        assert tab.ask(ground.format(f"document.querySelector({figure!r})")) == "rgb(255, 255, 255)"
    page = [int(part) for part in re.findall(r"\d+", tab.ask(ground.format("document.body")))[:3]]
    ink = [int(part) for part in re.findall(r"\d+", tab.ask("getComputedStyle(document.body).color"))[:3]]
    assert (sum(page) < 150) is (scheme == "dark") and abs(sum(page) - sum(ink)) > 450
    tab.call("Emulation.setEmulatedMedia", features=[])


@needs_chromium
def test_the_search_finds_pages(tab, pages):
    tab.open(pages / "search.html")
    assert waits(tab, "typeof Search !== 'undefined' && Search.hasIndex()")
    tab.ask("Search.performSearch('margin')")
    found = "[...document.querySelectorAll('#search-results a')].map(one => one.getAttribute('href'))"
    assert waits(tab, f"{found}.length > 5")
    assert any("02_arcface" in link for link in tab.ask(found))


# ---------------------------------------------------------------- workflows


@pytest.mark.parametrize("name", ["ci", "site"])
def test_what_the_workflows_call_is_there(name):
    root = paths.PROJECT
    flow = yaml.safe_load((root / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    (job,) = flow["jobs"].values()
    targets = re.findall(r"^([a-z]+):", (root / "Makefile").read_text(encoding="utf-8"), re.M)
    calls = [step["run"].split() for step in job["steps"] if "run" in step]
    assert flow[True]["push"]["branches"] == ["main"] and len(calls) == 1 and "permissions" in flow
    for program, *rest in calls:
        assert rest[0] in targets if program == "make" else os.access(root / program, os.X_OK)
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    kept = [step["with"]["path"] for step in job["steps"] if "upload-pages" in step.get("uses", "")]
    assert kept == ([".build/site"] if name == "site" else [])
