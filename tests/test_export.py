# ruff: noqa: E501, RUF001
"""Any notebook as a PDF: a table of small inputs and what is on the page, or what is said of them."""

import base64
import gzip
import io
import json
import logging
import re
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pypandoc
import pytest
import typst
from matplotlib._mathtext_data import tex2uni
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell
from PIL import Image
from pypdf import PdfReader

from report import ansi, cells, formulas, pdf

ROOT = Path(__file__).resolve().parent.parent
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="20"><text x="2" y="15">in the svg</text></svg>'


def encoded(kind="PNG", size=(30, 20), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 0).save(file, kind)
    return file.getvalue()


def shown(*outputs, source="x", **metadata):
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def data(**kinds):
    """A display_data whose kinds are written image_png for image/png; bytes are encoded."""
    kinds = {
        kind.replace("__", "-").replace("_", "/", 1): base64.b64encode(one).decode() if isinstance(one, bytes) else one
        for kind, one in kinds.items()
    }
    return new_output("display_data", kinds)


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def wide(columns, cell="0.123456789"):
    names = [f"column_{i}" for i in range(columns)]
    return "\n".join("|" + "|".join(row) + "|" for row in (names, ["---"] * columns, [cell] * columns))


PLOTLY = {"application/vnd.plotly.v1+json": {"data": []}}
# name: the cells, what the page shows (a regular expression, or several) and what is said; - before a pattern: not shown
INPUTS = {
    # Markdown as JupyterLab reads it
    "emphasis": ("**bold** _it_ ~~old~~ `code`", "bold it old code", ""),
    "table below a sentence": ("Accuracy:\n| head | acc |\n|---|---|\n| ArcFace | 99 |", ["Accuracy: head acc ArcFace 99", "-\\|"], ""),
    "table below two lines": ("One\ntwo:\n| head | acc |\n|---|---|\n| ArcFace | 99 |", ["two: head acc", "-\\|"], ""),
    "table without outer pipes": ("head | acc\n---|---\nArcFace | 99", ["head acc ArcFace 99", "-\\|"], ""),
    "pipes in a fence": ("```\n| a | b |\n|---|---|\n```", r"\| a \| b \| \|---\|---\|", ""),
    "lists begin anew": (["1. one\n2. two", "1. first\n2. second"], "1. one 2. two 1. first 2. second", ""),
    "a list from 3": ("3. three\n4. four", "3. three 4. four", ""),
    "list below a sentence": ("Goals:\n- a\n- b", "Goals: • a • b", ""),
    "task list": ("- [ ] open\n- [x] done", ["☐ open", "☒ done|☑ done"], ""),
    "nested list": ("- a\n  - b\n    1. c", "• a . b 1. c", ""),
    "an open fence": (["```\nopen", "Result is text", "```"], ["open Result is text"], ""),
    "fence with a title": ('```text title="x"\nbody\n```', ["body", "-title"], ""),
    "fence of a directive": ("```{code-cell}\nbody\n```", "body", ""),
    "two links of one name": (["[one][1]\n\n[1]: https://a.org", "[two][1]\n\n[1]: https://b.org"], "one two", ""),
    "hyphens": ("Run with --full and --jobs 4, a -- b", "Run with --full and --jobs 4, a -- b", ""),
    "quotes": ("\"quoted\" and it's", "\"quoted\" and it's", ""),
    "at a name": ("Use @property here, mail a@b.org [@nobody2020] @fig:none", "Use @property here, mail a@b.org \\[@nobody2020\\] @fig:none", ""),
    "less and greater": ("If a<b and c>d", "If a<b and c>d", ""),
    "no element": ("Dict<str> and <your name>", "Dict<str> and <your name>", ""),
    "backslashes": ("C:\\Users\\name", r"C:\\Users\\name", ""),
    "what only pandoc reads": ("x^2^ ~a~ ^[no note] (@) A. item", r"x\^2\^ ~?a~? \^\[no note\] \(@\) A. item", ""),
    "braces": ("a {x} b {.y} {#z", r"a \{x\} b \{.y\} \{#z", ""),
    "alert": ("> [!NOTE]\n> Mind this.", "Note Mind this.", ""),
    "quote": ("> said\n> so", "said so", ""),
    "rule": ("above\n\n---\n\nbelow", "above below", ""),
    "line break": ("one  \ntwo\\\nthree", "one two three", ""),
    "entities": ("&alpha; &lt;b&gt; &copy;", "α <b> ©", ""),
    "html": ("<b>bold</b> and H<sub>2</sub>O<br>new <kbd>Ctrl</kbd>", "bold and H ?2 ?O new Ctrl", ""),
    "html with markdown": ('<div align="center">\n\n**inner** $x^2$\n\n</div>', "inner x ?2", ""),
    "html table": ("<table><tr><th>h</th></tr><tr><td>cell</td></tr></table>", "h cell", ""),
    "details": ("<details><summary>More</summary>\n\nhidden text\n\n</details>", "More hidden text", ""),
    "comment": ("a <!-- not seen --> b", ["a b", "-seen"], ""),
    "script in markdown": ("before <script>x</script> after", "before", "<script> cannot be shown"),
    "iframe in markdown": ('<iframe src="x"></iframe>\n\nafter', "after", "<iframe> cannot be shown"),
    "a link to a heading": ("[there](#BEGIN-emphasis-HERE)", "there", ""),
    "a link to nothing": ("[there](#nowhere)", "there", "the link #nowhere leads to no heading"),
    "bare address": ("see https://example.org/a_b_c", "see https://example.org/a_b_c", ""),
    "typst's own signs": ("a #let x = 1 * _ @ $ [b] \\# // c /* d */ = e", r"a #let x = 1 \* _ @ \$ \[b\] # // c /\* d \*/ = e", ""),
    # mathematics
    "dollars with spaces": ("Here $ x + y $.", "Here x ?\\+ ?y.", ""),
    "backslash parentheses": ("Here \\\\(a+b\\\\) and \\\\[z=1\\\\]", ["Here a ?\\+ ?b and", "-\\\\"], ""),
    "an environment": ("\\begin{align}\na &= b \\\\\n c &= d\n\\end{align}", "a ?= ?b c ?= ?d", ""),
    "an equation": ("\\begin{equation}\na = b\n\\end{equation}", "a ?= ?b", ""),
    "a pipe in a table's formula": ("| a | b |\n|---|---|\n| $|x|$ | 2 |", "a b \\| ?x ?\\| 2", ""),
    "underscores in a formula": ("$a_1 b_2$ and $c_1*d_2*e$", "-[*_]", ""),
    "no formula in code": ("`$x$` and\n\n```\n$y$\n```", r"\$x\$ and \$y\$", ""),
    "escaped dollars": ("costs \\$5 and \\$6", r"costs \$5 and \$6", ""),
    "an ampersand": ("$$a \\& b$$ $\\text{c \\& d}$", ["a ?& ?b c & d"], ""),
    "union": ("$$\\bigcup_i A_i$$", ["⋃", "-bigcup"], ""),
    "big": ("$$\\big( a \\big)$$", ["\\(a\\)", "-big"], ""),
    "macro in the next cell": (["$\\newcommand{\\R}{\\mathbb R}$", "$x \\in \\R$"], ["x ?∈ ?R", "-newcommand"], ""),
    "macro with an argument": ("$\\def\\norm#1{\\lVert #1 \\rVert}\\norm{v}$", ["∥ ?v ?∥|‖ ?v ?‖", "-norm"], ""),
    "a matrix without brackets": ("$$\\begin{matrix} & b \\\\ c & d \\end{matrix}$$", ["b", "c", "d", "-matrix", "-[(;\ue010]"], ""),
    "a column without brackets": ("$$\\begin{array}{c} a \\\\ b \\end{array}$$", ["a ?b", "-array", "-[(;\ue010]"], ""),
    "sympy's matrix": (shown(data(text_latex="$\\displaystyle \\left[\\begin{matrix}1 & 2\\\\3 & 4\\end{matrix}\\right]$")), ["\\[ ?1", "-matrix"], ""),
    "a determinant": ("$$\\left|\\begin{array}{cc} 1 & 2 \\\\ 3 & 4\\end{array}\\right|$$", ["1", "4", "-;|array"], ""),
    "cases as an array": ("$$f = \\left\\{\\begin{array}{ll} 1 & x \\\\ 0 & y\\end{array}\\right.$$", ["f ?= ?\\{ ?1", "-array"], ""),
    "an array with a rule": ("$$\\begin{array}{c|c} 1 & 2 \\end{array}$$", ["1 ?2", "-array|ruled|c\\|c|v1"], ""),
    "an array of columns of another kind": ("$$\\begin{array}{c@{x}c} 1 & 2 \\end{array}$$", "array", "the environment array"),
    "tags of several lines": ("\\begin{align}\na &= b \\tag{1} \\\\\nc &= d \\tag{2a}\n\\end{align}", ["b ?\\(1\\) ?c", "\\(2a\\)"], ""),
    "tag": ("$$a = b \\tag{7}$$", ["a ?= ?b \\(7\\)", "-tag"], ""),
    "old fonts": ("${\\rm x} {\\bf y}$", ["x ?y", "-rm|bf"], ""),
    "nothing to draw": ("$\\color{red}$ $\\left.\\right|$ $\\begin{array}{c|c} \\hline\\end{array}$ $\\begin{cases}\\end{cases}$ $\\phantom{}$ $\\mathop{}$ $\\xrightarrow{}$ end", "end", ""),
    "colour": ("$\\color{red}{x} + y$", ["x ?\\+ ?y", "-color|red|ff"], ""),
    "no colour": ("$\\color{nocolour}{x}$", "nocolour", "\\textcolor converts wrongly"),
    "one-sided bar": ("$$\\left.f\\right|_0$$", ["f ?[|∣∣] ?0", "-left|half"], ""),
    "below a word": ("$\\underset{i}{\\operatorname{argmin}} f$", ["argmin.*i.*f", "-under"], ""),
    "a sign of chemistry": ("$\\ce{H2O}$", "ce", "\\ce converts wrongly"),
    "a macro that is used often": (["$\\newcommand{\\Q}{q}$", "$" + "\\Q+" * 40 + "1$"], ["(q ?\\+ ?){40}1", "-Q"], ""),
    "a macro with a usual value": ("$\\newcommand{\\n}[2][p]{\\lVert #2 \\rVert_{#1}} \\n{v} = \\n[3]{w}$", ["v ?[∥‖] ?p ?= ?[∥‖] ?w ?[∥‖] ?3", "-#"], ""),
    "a macro of another kind": ("$\\def\\m#1.{x}\\m y.$", "def", "a definition of \\m that is not known"),
    "a macro for a font": ("$\\def\\b{\\mathbb}\\let\\c\\b \\b{R}\\c{N}$", ["R ?N", "-b"], ""),
    "an operator of one's own": ("$\\DeclareMathOperator*{\\amin}{arg\\,min}\\amin_x f$", ["arg ?min", "-amin"], ""),
    "a pair of delimiters": ("$\\DeclarePairedDelimiter{\\av}{\\langle}{\\rangle}\\av{x}$", ["⟨ ?x ?⟩", "-av"], ""),
    "a package": ("$\\require{cancel} \\cancel{x}$", ["x", "-require|cancel"], ""),
    "a reference to a formula": (["see \\eqref{eq:a} and \\ref{eq:a}", "$$a \\tag{7b}\\label{eq:a}$$"], ["see \\(7b\\) and 7b a \\(7b\\)", "-ref|label|eq:"], ""),
    "a reference within a formula": ("$$b \\tag*{B}\\label{eq:b}$$\n\n$$c = \\eqref{eq:b}$$", ["b B c ?= ?\\(B\\)", "-ref|label"], ""),
    "a reference to nothing": ("see \\eqref{none}", "see \\(\\?\\?\\?\\)", "\\eqref{none}: no formula has this label and a \\tag"),
    "no reference in code": ("`\\eqref{x}`", r"\\eqref\{x\}", ""),
    "a formula in the tag": ("$$a = b \\tag{$*$}$$", ["a ?= ?b ?\\( ?[∗*] ?\\)", "-tag|[$]"], ""),
    "pairs of columns": ("\\begin{align} a &= b & c &= d \\\\ e &= f & g &= h \\end{align}", ["a ?= ?b c ?= ?d", "-&"], ""),
    "no command": ("$\\notacommand x$", "notacommand", "\\notacommand converts wrongly"),
    "unbalanced": ("$$\\frac{a}{b$$ text", "frac", "pandoc cannot convert"),
    "too wide": ("$$" + " + ".join(["x"] * 90) + "$$", "x", ""),
    # pictures in Markdown
    "a width in pixels": ('<img src="a.png" style="width: 40px; height: auto">', "", ""),
    "a height": ('<img src="a.png" height="40" alt="high">', "high", ""),
    "svg of another encoding": ("![latin](latin.svg) ![utf-16](utf16.svg)", ["für svg", "utf-16"], ""),
    "svg that is packed": ("![packed](x.svgz)", ["in the svg"], ""),
    "svg without room": ("![none](none.svg)", "none", "image none.svg cannot be read (failed to parse SVG"),
    "svg with a symbol": ("![signs](signs.svg)", "signs", "no font here shows '✅' (white heavy check mark) in image signs.svg"),
    "a moving picture": ("![moves](moves.gif)", "moves", "image moves.gif has 2 frames, of which the first is shown"),
    "pdf of two pages": ("![pages](two.pdf)", "pages", "image two.pdf has 2 pages, of which the first is shown"),
    "a pdf that is cut": ("![cut](cut.pdf)", "cut", "image cut.pdf cannot be read"),
    "palette and 16 bits": ("![palette](palette.png) ![deep](deep.png) ![cmyk](cmyk.jpg)", ["palette", "deep", "cmyk"], ""),
    "a folder as a picture": ("![folder](.)", "folder", "image . is missing"),
    "two pictures": ("![cap one](a.png) ![cap two](b.png)", ["Figure \\d+. cap one", "Figure \\d+. cap two"], ""),
    "picture in a sentence": ("Text ![the cap](a.png) text.", "Text \\(the cap\\) text.", ""),
    "picture above its text": ("![above](a.png)\nText directly below.", ["Figure \\d+. above", "Text directly below."], ""),
    "picture in a list": ("- item\n- ![in list](a.png)", "Figure \\d+. in list", ""),
    "picture in a table": ("| a | b |\n|---|---|\n| ![in table](a.png) | 2 |", "in table", ""),
    "linked picture": ("[![linked](a.png)](https://x.org)", "Figure \\d+. linked", ""),
    "figure of html": ('<figure><img src="a.png" alt="alternative"><figcaption>the caption</figcaption></figure>', ["Figure \\d+. the caption", "-alternative"], ""),
    "table in a list": ("- item\n  | a | b |\n  |---|---|\n  | 1 | 2 |", ["item a b 1 2", "-\\|"], ""),
    "two headings of one name": ("### Same\n\n### Same\n\n[one](#Same) [two](#same-1)", "Same Same one two", ""),
    "two anchors of one name": (['<a id="twice"></a>\n\n[to it](#twice)', '<a id="twice"></a> again'], "to it again", ""),
    "anchor of html": ('<a id="place"></a>\n\n[there](#place)', "there", ""),
    "html picture": ('<img src="a.png" width="900" alt="by html">', "by html", ""),
    "a name with blanks": ("![blank](<a b.png>) ![twenty](a%20b.png)", ["blank", "twenty"], ""),
    "a query behind the name": ("![raw](a.png?raw=true)", "raw", ""),
    "a picture that is cut": ("![cut](cut.png)", "cut", "image cut.png cannot be read"),
    "an empty picture": ("![empty](empty.png)", "empty", "image empty.png cannot be read (it is empty)"),
    "a page of errors as a picture": ("![page](page.png)", "page", "image page.png cannot be read"),
    "a JPEG called png": ("![jpeg](jpeg.png)", "Figure \\d+. jpeg", ""),
    "bmp and tiff": ("![bmp](x.bmp)\n\n![tiff](x.tiff)", ["bmp", "tiff"], ""),
    "svg": ("![vector](x.svg)", ["vector", "in the svg"], ""),
    "svg of html": ("![foreign](foreign.svg)", "foreign", "HTML within the SVG"),
    "pdf": ("![a page](x.pdf)", "Figure \\d+. a page", ""),
    "data address": (f"![data](data:image/png;base64,{base64.b64encode(encoded()).decode()})", "Figure \\d+. data", ""),
    "no picture": ("![gone](gone.png)", "gone", "image gone.png is missing: save it, or correct its name"),
    "attachment": (new_markdown_cell("![image.png](attachment:image.png)", attachments={"image.png": {"image/png": base64.b64encode(encoded()).decode()}}), "-image.png", ""),
    # outputs
    "png that is no base64": (shown(data(image_png="!!!no base64", text_plain="<Figure>")), "Not shown here", "image in the output cannot be read"),
    "png output": (shown(data(image_png=encoded(), text_plain="<Figure>")), "-<Figure>", ""),
    "jpeg output": (shown(data(image_jpeg=encoded("JPEG"), text_plain="<Figure>")), "-<Figure>", ""),
    "svg output": (shown(data(**{"image_svg+xml": SVG}, text_plain="<Figure>")), ["in the svg", "-<Figure>"], ""),
    "latex output": (shown(data(text_latex="$\\displaystyle \\frac{1}{2}$", text_plain="1/2")), ["1 2", "-1/2"], ""),
    "dataframe": (shown(data(text_html="<style scoped>x</style><table><tr><th></th><th>acc</th></tr><tr><th>0</th><td>a &lt; b</td></tr></table>", text_plain="plain")), ["acc 0 a < b", "-plain"], ""),
    "markdown output": (shown(data(text_markdown="a **computed** line", text_plain="<Markdown>")), ["a computed line", "-<Markdown>"], ""),
    "json output": (shown(data(application_json={"key": 1}, text_plain="<JSON>")), ['"key": 1', "-<JSON>"], ""),
    "empty dataframe": (shown(data(text_html="<div><table><thead><tr><th></th></tr></thead></table></div>", text_plain="Empty DataFrame")), "Empty DataFrame", ""),
    "estimator": (shown(data(text_html='<div class="sk-text-repr-fallback"><pre>LR()</pre><b>rerun</b></div><input>', text_plain="LR(C=1)")), ["LR\\(C=1\\)", "-rerun"], ""),
    "rich": (shown(data(text_html='<pre>a <span style="color:red">b</span></pre>', text_plain="a \x1b[31mb\x1b[0m!")), "a b!", ""),
    "json list": (shown(new_output("display_data", {"application/json": [1, {"key": None}]})), '"key": null', ""),
    "bmp output": (shown(data(image_bmp=encoded("BMP"), text_plain="<bmp>")), "-<bmp>", ""),
    "svg output with a symbol": (shown(data(**{"image_svg+xml": SVG.replace("in", "✅")})), "the svg", "(white heavy check mark) in image in the output"),
    "plotly": (shown(new_output("display_data", PLOTLY)), "Not shown here: application/vnd.plotly", "plotly.v1\\+json is shown by a browser alone"),
    "plotly's script": (shown(new_output("display_data", {**PLOTLY, "text/html": "<div>plotly</div><script>1</script>"})), "Not shown here", "shown by a browser alone"),
    "altair": (shown(new_output("display_data", {"application/vnd.vegalite.v5+json": {}, "text/plain": "alt.Chart(...)"})), "Not shown here: .*alt.Chart", "vegalite"),
    "widget": (shown(new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "IntSlider(value=0)"})), "Not shown here: .*IntSlider", "widget-view"),
    "javascript": (shown(data(application_javascript="alert(1)", text_plain="<Javascript>")), "Not shown here", "javascript"),
    "plain": (shown(new_output("execute_result", {"text/plain": "array([1, 2])"}, execution_count=1)), "array\\(\\[1, 2\\]\\)", ""),
    "error": (shown(new_output("error", ename="E", evalue="v", traceback=["\x1b[31mTraceback\x1b[0m", "E: v"])), "Traceback E: v", ""),
    "colours": (shown(stream("\x1b[31mred\x1b[0m text\n")), ["red text", "-31m"], ""),
    "progress": (shown(stream("10%\r20%\r"), stream("100%\n")), ["100%", "-10%|20%"], ""),
    "bars within bars": (shown(stream("outer: 0%\n"), stream("\rinner: 9%\x1b[A\router: 9%\n\r          \x1b[A\router: 99%\n", "stdout")), ["outer: 99%", "-inner|outer: 9%|\\[A"], ""),
    "a link in what is printed": (shown(stream("see \x1b]8;;https://x.org\x07there\x1b]8;;\x07.")), ["see there\\.", "-8;;"], ""),
    "formulas in a table": (shown(data(text_html="<table><tr><th>f</th></tr><tr><td>$\\alpha$ and \\(b^2\\)</td><td>$5</td></tr></table>", text_plain="plain")), ["f α and b ?2 \\$5", "-alpha"], ""),
    "formulas in html": (shown(data(text_html="<p>$$\\beta$$ \\\\[c\\\\] \\\\begin{align}d\\\\end{align} cost \\\\$5 <code>$no$</code> <b class='tex2jax_ignore'>$ig$</b> @@0@@</p>".replace("\\\\", "\\"))), ["β c d cost \\$5 \\$no\\$ \\$ig\\$ @@0@@", "-align"], ""),
    "a formula in html that is none": (shown(data(text_html="<p>$\\nosuch$</p>")), "nosuch", "\\nosuch converts wrongly"),
    "a reference in html": (shown(data(text_html="<p>$$z \\tag{z}\\label{z}$$ as \\eqref{z}</p>")), ["as \\(z\\)", "-ref"], ""),
    "what is hidden": (shown(data(text_html="<style>.h {display: none}</style><p>seen<b class='h'>hid</b><i hidden>den</i><u style='display:none'>x</u></p>")), ["seen", "-hid|den|seenx"], ""),
    "bars in html": (shown(data(text_html="<p>a <progress value='3' max='10'></progress> <progress></progress> <meter value='.5'>fallback</meter> b</p>")), ["a b", "-fallback|[<>]"], ""),
    "bars in markdown": ("a <progress value='3' max='10'>old</progress> b", ["a b", "-progress|old"], ""),
    "boxes in html": (shown(data(text_html="<p><input type='checkbox' checked>on <input type='checkbox'>off</p>")), ["☒ ?on ☐ ?off"], ""),
    "a picture behind the text": (shown(data(text_html="<div style='background: url(a.png)'>text</div>")), "text", "a picture behind the text of an output is not shown"),
    "breaks of another kind": (shown(data(text_html="<title>gone</title><p>one</br>two</p>")), ["one two", "-gone"], ""),
    "classes of others": (shown(data(text_html="<span class='bar'>a</span> <span class='tagged'>b</span> <div class='part'>c</div> <progress class='k'></progress><pre styles='x'>d</pre>")), ["a b c d"], ""),
    "elements of html": (shown(data(text_html="<details><summary>Sum</summary>body</details>H<sub>2</sub>O <kbd>K</kbd> <mark>m</mark> <del>d</del> <u>u</u> <font color='red'>f</font> <big>b</big> <small>s</small>")), ["Sum body H ?2 ?O K m d u f b s"], ""),
    "tables within tables": (shown(data(text_html="<table style='color:red'><tr><td colspan=2>wide</td></tr><tr><td rowspan=2>tall</td><td>1</td></tr><tr><td><table><tr><td>inner</td></tr></table></td></tr></table>")), ["wide .*tall", "inner"], ""),
    "styled list": (shown(data(text_html="<ul style='color:red'><li>one<li style='font-weight:bold'>two</ul>")), "• one • two", ""),
    "a terminal's picture": (shown(stream("\x1b]1337;File=inline=1:AAAA\x07drawn")), ["drawn", "-1337"], "a picture that a terminal draws is not shown"),
    "stderr": (shown(stream("warned\n", "stderr")), "warned", ""),
    "a long line": (shown(stream("7" * 300)), "(7\\s?){300}", ""),
    # cells
    "raw": (new_raw_cell("as *it* is"), "as \\*it\\* is", ""),
    "raw markdown": (new_raw_cell("as **bold**", metadata={"format": "text/markdown"}), "as bold", ""),
    "raw latex": (new_raw_cell("\\clearpage", metadata={"format": "text/latex"}), "clearpage", "a raw cell of text/latex"),
    "remove-input": (shown(stream("kept"), source="gone()", tags=["remove-input"]), ["kept", "-gone"], ""),
    "Hide_Input": (shown(stream("kept"), source="gone()", tags=["Hide_Input"]), ["kept", "-gone"], ""),
    "remove-output": (shown(stream("gone"), source="kept()", tags=["remove_output"]), ["kept", "-gone"], ""),
    "hide-output": (shown(stream("gone"), source="kept()", tags=["hide-output"]), ["kept", "-gone"], ""),
    "remove-cell": (shown(stream("gone"), tags=["remove-cell"]), "-gone", ""),
    "collapsed": (shown(stream("kept"), source="gone()", jupyter={"source_hidden": True}), ["kept", "-gone"], ""),
    # styles of HTML: drawn, or named
    "text that a style makes": (shown(data(text_html="<style>.q::before{content:'BEFORE '} .q:after{content: ' of ' attr(data-x)}</style><p class='q' data-x='X'>text</p>")), "BEFORE text of X", ""),
    "a number that a style makes": (shown(data(text_html="<style>.q2::before{content: counter(x)}</style><p class='q2'>text</p>")), "text", "content: counter(x), is not shown"),
    "a mark that a style makes": (shown(data(text_html="<style>.q3::marker{content: 'Z'}</style><ol><li class='q3'>one</ol>")), "one", "puts before <li>, 'Z', is not shown"),
    "a style that is not known": (shown(data(text_html="<p style='transform: rotate(90deg); margin: 3px; quux: 7'>text</p>")), "text", "a style of the output is not drawn: transform: rotate(90deg), quux: 7"),
    "values that are not known": (shown(data(text_html="<p style='font-size: calc(1em * 2)'>a</p><p style='color: color-mix(in srgb, red, blue)'>b</p><p style='background: radial-gradient(red, blue)'>c</p>")), "a b c", "font-size: calc(1em * 2), color: color-mix(in srgb, red, blue), background-image: radial-gradient(red, blue)"),
    "mere layout": (shown(data(text_html="<div style='display: flex; padding: 3px; border-radius: 3px; cursor: pointer; -webkit-box-flex: 1; vertical-align: middle; overflow: auto; width: 9px; line-height: 2; font-family: x; position: relative; float: left'>text</div>")), "text", ""),
    "a style sheet elsewhere": (shown(data(text_html="<link rel='stylesheet' href='x.css'><p>text</p>")), "text", "a style sheet that stands elsewhere is not read"),
    "nothing but a style sheet": (shown(data(text_html="<style>.container {width: 100%}</style>")), "-container", ""),
    "what cannot be seen through": (shown(data(text_html="<p>seen<b style='opacity: 0'>gone</b> <b style='opacity: 30%'>faint</b></p>")), ["seen faint", "-gone"], ""),
    "letters made large": (shown(data(text_html="<p style='text-transform: uppercase'>large <b style='text-transform: none'>b</b></p><p style='text-transform: capitalize'>first letters</p>")), "LARGE b First Letters", ""),
    "blanks that are kept": (shown(data(text_html="<div style='white-space: pre'>a   b\n  c</div>")), ["a\\s+b\\s+c"], ""),
    "rows without an end": (shown(data(text_html="<table><tr><th>head<th>acc<tr><td>ArcFace<td>99</table>")), ["head acc ArcFace 99", "-<"], ""),
    "rows without an end in markdown": ("<table><tr><td>one<td>two<tr><td>three</table>", ["one two three", "-<"], ""),
    "elements of one kind of page": (shown(data(text_html="<noscript>gone</noscript><datalist><option>gone</datalist><dialog>gone</dialog><dialog open>open</dialog><ruby>A<rp>(</rp><rt>b</rt></ruby>")), ["open ?A \\(b\\)", "-gone"], ""),
    "elements of html in markdown": ("<picture><source srcset='b.png'><b>pic</b></picture> <ruby>A<rt>b</rt></ruby> <time>now</time> <label>l</label>", ["pic A \\(b\\) now l", "-<"], ""),
    "an svg in markdown": ("<svg width='40' height='20'><text x='2' y='15'>drawn</text></svg>", ["drawn", "-<text"], ""),
    "an svg with its view": (shown(data(text_html="<svg viewBox='0 0 200 40' width='200' height='40'><text x='2' y='15'>in view</text></svg>")), "in view", ""),
    "an svg that uses another": (shown(data(text_html="<svg width='0' height='0'><symbol id='sy'><text x='2' y='15'>symbol</text></symbol></svg><p>a <svg width='60' height='20'><use xlink:href='#sy'/></svg></p>")), "symbol", ""),
    "xarray": (shown(data(text_html="<pre class='xr-text-repr-fallback'>x</pre><div class='xr-wrap'><input type='checkbox'>boxes</div>", text_plain="<xarray.Dataset> Size: 64B")), ["Size: 64B", "-boxes"], ""),
    "a text of latex": (shown(data(text_latex="where $x^2$ < 1 and \\begin{align}a&=b\\end{align}", text_plain="<IPython.core.display.Latex object>")), ["where x ?2 < 1 and a ?= ?b", "-Latex"], ""),
    "a link to nowhere": ("[](https://x.org) [here]() [there](#)", "here there", ""),
    "a tag within a sentence": ("a $x \\tag*{B}$ b", "a x ?B b", ""),
    "a diagram in words": ("```mermaid\ngraph TD\n```", "graph TD", "a mermaid diagram is drawn by a browser alone"),
    "a bar of blocks": (shown(data(text_html="<div style='width:300px;background:#eee'><div style='width:40%;height:14px;background:green'></div></div>")), "", ""),
    "a sign with a mark": ("1\ufe0f\u20e3", "combining enclosing keycap", "(combining enclosing keycap)"),
    "too wide a fraction": ("$\\frac{" + "x+" * 90 + "x}{b}$", "x", "holds something wider than its text: break or shorten it"),
    "a formula of commands unknown and long": ("$\\nosuch" + "\\beta{}" * 40 + "$", "nosuch", "\\nosuch converts wrongly"),
    "signs in a formula's text": ("$\\text{50\\% of a\\& b}$", "50% of a& b", ""),
    # the page
    "code of c++": ("```c++17\nint x;\n```", ["int x;", "-\\+"], ""),
    "code of a language of two words": ("```Wolfram Language\nf[x]\n```", ["f\\[x\\]", "-Language"], ""),
    "an emoji of several signs": ("good 👍🏽 and", ["thumbs up sign", "fitzpatrick"], "(emoji modifier fitzpatrick type-4), '👍' (thumbs up sign)"),
    "many signs": ("".join(chr(0x4E00 + i) for i in range(100)), "U\\+4E63", "and 97 more signs: install Noto"),
    "signs of control": ("a\0b\x01c\x1bd\ufffee", "abcde", ""),
    "half a sign": ("a\ud83d b", "a� b", ""),
    "a symbol": ("ArcFace ✅ converges", "✅|white heavy check mark", "no font here shows '✅'"),
    "a long word": ("w" * 300, "(w\\s?){300}", ""),
    "a long address": ("https://x.org/" + "a" * 200, "", ""),
    "long code in a line": ("`" + "c" * 250 + "`", "(c\\s?){250}", ""),
    "a wide table": (wide(14), "column_13", ""),
    "control signs": ("a\x0cb", "a ?b", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "my: notes ü"
    path.mkdir()
    for name in ("a.png", "b.png", "a b.png"):
        (path / name).write_bytes(encoded())
    (path / "cut.png").write_bytes(encoded(size=(200, 200))[:200])
    (path / "empty.png").write_bytes(b"")
    (path / "page.png").write_bytes(b"<!DOCTYPE html><p>404</p>")
    (path / "jpeg.png").write_bytes(encoded("JPEG"))
    (path / "x.bmp").write_bytes(encoded("BMP"))
    (path / "x.tiff").write_bytes(encoded("TIFF"))
    (path / "x.svg").write_text(SVG)
    (path / "latin.svg").write_bytes(
        f'<?xml version="1.0" encoding="latin-1"?>{SVG.replace("in the", "für")}'.encode("latin-1")
    )
    (path / "utf16.svg").write_bytes(f'<?xml version="1.0" encoding="utf-16"?>{SVG}'.encode("utf-16"))
    (path / "x.svgz").write_bytes(gzip.compress(SVG.encode()))
    (path / "none.svg").write_text(SVG.replace('"90"', '"0"'))
    (path / "signs.svg").write_text(SVG.replace("in", "✅"))
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save(path / "moves.gif", save_all=True, append_images=frames[1:])
    Image.new("P", (30, 20), 3).save(path / "palette.png", transparency=3)
    Image.new("I;16", (30, 20), 30000).save(path / "deep.png")
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(path / "cmyk.jpg")
    (path / "foreign.svg").write_text(SVG.replace("<text", "<foreignObject/><text"))
    (path / "page.typ").write_text("#set page(width: 80pt, height: 40pt)\nA page")
    (path / "x.pdf").write_bytes(typst.Compiler(str(path / "page.typ")).compile(format="pdf"))
    (path / "page.typ").write_text("#set page(width: 80pt, height: 40pt)\nA page\n#pagebreak()\nand another")
    (path / "two.pdf").write_bytes(typst.Compiler(str(path / "page.typ")).compile(format="pdf"))
    (path / "cut.pdf").write_bytes((path / "x.pdf").read_bytes()[:300])
    return path


class Said(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def exported(cells, home, metadata=None, **options):
    """The PDF of cells: its text, its reader, and what was said of them."""
    cells = [new_markdown_cell(one) if isinstance(one, str) else one for one in cells]
    notebook = new_notebook(cells=cells, metadata=metadata or {})
    said, exporter = Said(), pdf.ReportExporter(**options)
    exporter.log = logging.Logger("export")
    exporter.log.addHandler(said)
    content = exporter.from_notebook_node(notebook, {"metadata": {"path": str(home), "name": "any"}})[0]
    reader = PdfReader(io.BytesIO(content))
    text = " ".join(unicodedata.normalize("NFKC", " ".join(page.extract_text() for page in reader.pages)).split())
    return SimpleNamespace(text=text.replace("\u200b", ""), reader=reader, said=said.lines, content=content)


@pytest.fixture(scope="module")
def table(home):
    """All inputs in one PDF, each between two headings."""
    cells, places = ["# Inputs"], {}
    for name, (given, _, _) in INPUTS.items():
        cells.append(f"## BEGIN {name} HERE")
        given = given if isinstance(given, list) else [given]
        for one in given:
            cells.append(one)
            places[len(cells)] = name
    cells.append("## BEGIN the end")
    made = exported(cells, home)
    said = {}
    for message in made.said:
        cell = re.match(r"any: cell (\d+), section .BEGIN .*? HERE.: (.*)", message)
        said.setdefault(places[int(cell[1])] if cell else "", []).append(cell[2] if cell else message)
    return made, said


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_shown_or_named(table, name):
    made, said = table
    _, patterns, cause = INPUTS[name]
    body = re.sub(r"\d+ / \d+ Inputs ", "", made.text.split(f"BEGIN {name} HERE")[-1].split("BEGIN ")[0])
    if "open fence" not in name:
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            wanted, pattern = not pattern.startswith("-"), pattern.removeprefix("-")
            assert bool(re.search(pattern, body)) == wanted, (pattern, body)
    messages = said.get(name, [])
    assert len(messages) == bool(cause), messages
    assert not cause or re.search(cause if "+" in cause else re.escape(cause), messages[0])
    assert not any("\n" in message for message in messages)


def test_nothing_is_said_of_the_whole(table):
    assert "" not in table[1]
    assert len(INPUTS) >= 80


def test_chapters_of_level_one_are_kept(home):
    made = exported(["# Introduction\n\nText A.", "# Method\n\nText B."], home)
    assert made.text.count("Introduction") >= 2 and made.text.count("Method") >= 2  # in the contents and above its text
    assert [str(entry.title) for entry in made.reader.outline] == ["Introduction", "Method"]


def test_title_author_and_date_are_the_notebooks(home):
    raw = new_raw_cell('---\ntitle: "My report"\nauthor: Ada\ndate: 2026-01-31\n---')
    made = exported([raw, "# Heading\n\ntext"], home)
    assert made.text.startswith("My report Ada 31 January 2026") and "title:" not in made.text
    assert made.reader.metadata.author == "Ada" and "Heading" in made.text
    made = exported(["# Heading $x$\n\ntext"], home, {"authors": [{"name": "Ada"}, {"name": "Bob"}]})
    assert made.text.startswith("Heading") and "Ada, Bob" in made.text
    assert (
        made.content
        == exported(["# Heading $x$\n\ntext"], home, {"authors": [{"name": "Ada"}, {"name": "Bob"}]}).content
    )
    assert exported([], home).text.startswith("any")


NOTEBOOK = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": []}
PIXEL = base64.b64encode(encoded()).decode()
FILES = {  # what other programs than Jupyter write, and what is on the page
    "nothing": (NOTEBOOK, "any"),
    "no outputs": ({**NOTEBOOK, "cells": [{"cell_type": "code", "metadata": {}, "source": "code()"}]}, "code\\(\\)"),
    "outputs without metadata": (
        {**NOTEBOOK, "cells": [{"cell_type": "code", "metadata": {}, "source": "x", "outputs": [
            {"output_type": "display_data", "data": {"text/plain": ["pla", "in"]}},
            {"output_type": "stream", "text": ["prin", "ted"]},
        ]}]}, "plain printed"),
    "tags as one word": (
        {**NOTEBOOK, "cells": [{"cell_type": "code", "metadata": {"tags": "hide-input"}, "source": "gone()", "outputs": []}]}, "-gone"),
    "tags that are no words": (
        {**NOTEBOOK, "cells": [{"cell_type": "code", "metadata": {"tags": [1, None], "jupyter": None}, "source": "code()"}]}, "code\\(\\)"),
    "no source": ({**NOTEBOOK, "cells": [{"cell_type": "markdown", "metadata": {}, "source": None}]}, "any"),
    "version 3": (
        {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [
            {"cell_type": "heading", "level": 2, "metadata": {}, "source": "A heading"},
            {"cell_type": "code", "input": "1+1", "language": "python", "metadata": {}, "outputs": [
                {"output_type": "pyout", "prompt_number": 1, "text": "2", "metadata": {}},
                {"output_type": "display_data", "png": PIXEL, "metadata": {}}]},
        ]}]}, "A heading 1\\+1 2"),
    "a mark of UTF-8 at its head": ("\ufeff" + json.dumps(NOTEBOOK), "any"),
    "a title of two lines": ({**NOTEBOOK, "metadata": {"title": "A #1 $x$\n*b*", "authors": "C & D", "date": "2026-02-31"}}, "A #1 \\$x\\$ \\*b\\* C & D"),
    "a title and authors in a list": ({**NOTEBOOK, "metadata": {"title": ["A", "B"], "authors": ["C", {"name": "D"}]}}, "A: B C, D"),
    "no metadata": ({"nbformat": 4, "nbformat_minor": 4, "metadata": None, "cells": [{"cell_type": "markdown", "source": "text"}]}, "any text"),
    "outputs of no text": (
        {**NOTEBOOK, "cells": [{"cell_type": "code", "metadata": {}, "source": "x", "outputs": [
            {"output_type": "display_data", "metadata": {}, "data": {"text/plain": None}},
            {"output_type": "display_data", "metadata": {}, "data": {"text/html": {"a": 1}}}]}]}, 'x {"a": 1}'),
    "a language of no name": ({**NOTEBOOK, "metadata": {"language_info": {"name": "c++17 \"x\"`#"}}, "cells": [
        {"cell_type": "code", "metadata": {}, "source": "int x;", "outputs": []}]}, "any int x; 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_program_is_read(tmp_path, name):
    content, pattern = FILES[name]
    content = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "any.ipynb").write_text(content, encoding="utf-8")
    made = pdf.ReportExporter().from_filename(str(tmp_path / "any.ipynb"))[0]
    text = " ".join(PdfReader(io.BytesIO(made)).pages[0].extract_text().split())
    assert bool(re.search(pattern.removeprefix("-"), text)) != pattern.startswith("-"), text


@pytest.mark.parametrize(
    "content",
    ["", "<html>", "[]", json.dumps(NOTEBOOK)[:40], "ü", json.dumps({**NOTEBOOK, "metadata": {"language_info": {"name": None}}}),
     json.dumps({**NOTEBOOK, "cells": [{"cell_type": "strange", "metadata": {}, "source": ""}]})],
)  # fmt: skip
def test_a_file_that_is_no_notebook_is_named(tmp_path, content):
    (tmp_path / "any.ipynb").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r": save it anew in Jupyter$") as error:
        pdf.ReportExporter().from_filename(str(tmp_path / "any.ipynb"))
    assert "\n" not in str(error.value)


def test_a_raw_first_cell_that_is_no_yaml_is_named(home):
    made = exported([new_raw_cell("---\ntitle: a: b\n---"), "text"], home)
    assert len(made.said) == 1 and "is no YAML" in made.said[0] and "title: a: b" in made.text


def test_nbconverts_switches_are_honoured(home):
    code = shown(stream("printed"), source="code()")
    assert "code()" not in exported([code], home, exclude_input=True).text
    assert "printed" not in exported([code], home, exclude_output=True).text
    assert "prose" not in exported([code, "prose"], home, exclude_markdown=True).text
    assert "code()" in exported([code], home).text


@pytest.mark.parametrize(
    "name", ["plotly", "error", "png output", "a picture that is cut", "no colour", "html", "a wide table"]
)
def test_the_report_fails_where_the_page_would_have_a_hole(home, name):
    given = INPUTS[name][0]
    with pytest.raises(ValueError, match=r"^report: ") as error:
        shutil.copy(ROOT / "report" / "metadata.yml", home)
        shutil.copy(ROOT / "report" / "references.bib", home)
        try:
            exported(["# T\n\n## Section", *(given if isinstance(given, list) else [given])], home, strict=True)
        finally:
            (home / "metadata.yml").unlink()
            (home / "references.bib").unlink()
    assert "\n" not in str(error.value)
    assert "cell 2, section 'Section'" in str(error.value) or "the page" in str(error.value)


def test_symbols_are_seen_as_what_they_mean(tmp_path):
    """Each symbol taken for known, set by pandoc and typst, comes out as the sign that matplotlib has for it."""
    names = sorted(formulas.SYMBOLS)
    source = pypandoc.convert_text("\n\n".join(f"$\\{name}$" for name in names), "typst", "markdown").split("\n\n")
    (tmp_path / "s.typ").write_text(
        "#set page(width: 99pt, height: 40pt)\n" + "#pagebreak()\n".join(f"{s.strip()}\n" for s in source if s.strip())
    )
    made = typst.Compiler(str(tmp_path / "s.typ"), ignore_system_fonts=True).compile(format="pdf")
    pages = PdfReader(io.BytesIO(made)).pages
    assert len(pages) == len(names) > 400

    def plain(text):
        return unicodedata.normalize("NFKC", text).strip()

    wrong = [
        name for name, page in zip(names, pages, strict=True) if plain(page.extract_text()) != plain(chr(tex2uni[name]))
    ]
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "$\\left.x$",
        "$a \\\\ b$",
        "$\\begin{array}{p{2cm}}a\\end{array}$",
        "$\\sideset{}{'}\\sum$",
        "$\\color{nocolour} x$",
        "$\\limits$",
        "$\\underset{a}$",
        "$\\def\\a{\\a}\\a$",
    ],
)
def test_a_formula_not_known_to_convert_is_refused(source):
    with pytest.raises(ValueError, match="the formula"):
        formulas.formula(source, {})


CARRIED = {  # TeX, and what is drawn of it by typst and layout/report.typ
    "\\underset{x, y}{\\max} f": "underset(x \\, y, max) f",
    "\\overset{!}{=}": "overset(!, =)",
    "\\stackrel{a}{b}": "overset(a, b)",
    "\\underset{a}{\\overset{}{c}}": 'underset(a, overset("", c))',
    "\\xrightarrow[g]{f}": 'arrowed(option: #"8594", g, f)',
    "\\xLeftarrow{}": 'arrowed(option: #"8656", "", "")',
    "\\int\\limits_a^b": "above(integral)_a^b",
    "\\sum\\nolimits_i": "beside(sum)_i",
    "\\mathop{X}\\limits_i": "above(operator(X))_i",
    "\\operatorname*{argmin}_x": 'operator("argmin")_x',
    "{\\color{red} x} y": 'coloured(option: #"ff0000", x) y',
    "\\textcolor{#12f}{x} y": 'coloured(option: #"1122ff", x) y',
    "\\definecolor{my}{gray}{0.5}\\colorbox{my}{a b}": 'lighted(option: #"808080", upright("a b"))',
    "\\left.\\frac{a}{b}\\right|_0": 'half(option: #"r124", a / b)_0',
    "\\left\\{a\\right.": 'half(option: #"l123", a)',
    "\\left(a\\middle|b\\right)": "(a mid(bar.v) b)",
    "\\begin{array}{|l|r|}\\hline a & b\\\\ \\hline c\\\\ \\hline\\end{array}": 'ruled(option: #"lrh0h1h2v0v1v2", a, b; c)',
    "\\left(\\begin{array}{*{2}{c}|r} a & b & c\\end{array}\\right)": '(ruled(option: #"ccrv2", a, b, c))',
    "\\begin{array}{l} a\\\\ b\\end{array}": 'ruled(option: #"l", column: #true, a, b)',
    "\\begin{bmatrix} 1\\\\ \\hline 2\\end{bmatrix}": '[ruled(option: #"ch1", column: #true, 1, 2)]',
    "\\begin{array}{c} \\begin{array}{c|c} 1 & 2\\end{array}\\\\ \\begin{array}{c} 3\\end{array}\\end{array}": 'ruled(option: #"c", column: #true, ruled(option: #"ccv1", 1, 2), ruled(option: #"c", column: #true, 3))',
    "a + \\substack{b\\\\c}": 'a + ruled(option: #"c", column: #true, b, c)',
    "\\begin{cases} 1 & x > 0\\\\ 0 & \\text{if } y\\end{cases}": 'cases(delim: "{", 1 & quad x > 0, 0 & quad upright("if ") y)',
    "\\begin{rcases} a & b\\end{rcases}": 'closed(cases(reverse: #true, delim: "{", a & quad b))',
    "\\begin{cases} a\\\\ b\\end{cases}": 'half(option: #"l123", ruled(option: #"l", column: #true, a, b))',
    "f = \\begin{aligned} a &= b\\\\ &= c\\end{aligned}": 'f = lined(option: #"rl", a, = b; #none, = c)',
    "\\begin{pmatrix*}[r] 1 & 2\\end{pmatrix*}\\begin{Vmatrix} a & b\\end{Vmatrix}": 'mat(delim: "(", 1, 2) mat(delim: "‖", a, b)',
    "\\begin{smallmatrix} a & b\\end{smallmatrix}": "small(a, b)",
    "\\begin{aligned} a &= b & c &= d\\end{aligned}": "a & = b & #h(2em) c & = d",
    "\\phantom{x}\\hphantom{y}": 'unseen(option: #"all", x) unseen(option: #"wide", y)',
    "a \\mathrel{R} b": 'a classed(option: #"relation", R) b',
    "{a \\over b + c} d": "frac(a, b + c) d",
    "{\\bf x_{1}} y": "upright(bold(x_1)) y",
    "\\bra{x}\\ket{y}": "chevron.l x \\| \\| y chevron.r",
    "a\\hspace{3cm}b": 'a spaced(option: #"p8505", "") b',
    "a\\kern-.1em b\\mspace{18mu}c": 'a spaced(option: #"n100", "") b spaced(option: #"p1000", "") c',
    "{\\displaystyle \\sum_i} x": "display(sum_i) x",
    "\\frac{\\displaystyle a}{b}": "display(a) / b",
    "x {\\scriptstyle y} \\scriptscriptstyle z": "x script(y) sscript(z)",
    "\\large x": 'sized(option: #"120", x)',
    "\\smash[b]{x} \\matrix{a & b\\cr c & d}": "x mat(delim: #none, a, b; c, d)",
    "\\boxed{x}\\xcancel{y}": "#box(stroke: black, inset: 3pt, [$ x $]) cancel(y, cross: #true)",
}  # fmt: skip


def test_what_pandoc_lacks_is_carried_through_it(home, monkeypatch):
    sources, empty = [], typst.Compiler(str(home / "page.typ")).compile(format="pdf")
    monkeypatch.setattr(pdf, "_typst", lambda source, *_: sources.append(source) or empty)
    exported(["\n\n".join(f"${tex}$" for tex in CARRIED)], home)
    found = re.findall(r"^\$(.*)\$$", sources[0].split("pagebreak(weak: true) }")[-1], re.M)
    assert found == list(CARRIED.values())


RED, GREEN = ansi.INK[1:3]
SHOWN = {  # what is printed, and its styled letters
    "a colour": ("\x1b[31mred\x1b[0m text", [("red", {"ink": RED})]),
    "bright": ("\x1b[91mred", [("red", {"ink": RED})]),
    "bold within": ("\x1b[31ma\x1b[1mb\x1b[22mc\x1b[39md", [("a", {"ink": RED}), ("b", {"ink": RED, "bold": True}), ("c", {"ink": RED})]),
    "several at once": ("\x1b[1;4;32mx\x1b[m", [("x", {"ink": GREEN, "bold": True, "underline": True})]),
    "of 256": ("\x1b[38;5;196mx\x1b[48;5;244my", [("x", {"ink": "#ff0000"}), ("y", {"ink": "#ff0000", "paper": "#808080"})]),
    "of all": ("\x1b[38;2;1;2;300mx", [("x", {"ink": "#0102ff"})]),
    "with colons": ("\x1b[38:2::1:2:3mx\x1b[0;38:5:9my", [("x", {"ink": "#010203"}), ("y", {"ink": RED})]),
    "over lines": ("\x1b[31ma\nb\x1b[0m", [("a", {"ink": RED}), ("b", {"ink": RED})]),
    "written again": ("\x1b[31m10%\r\x1b[32m99", [("99", {"ink": GREEN}), ("%", {"ink": RED})]),
    "an unknown code": ("\x1b[38;7mx\x1b[999my\x1b[2Kz", []),
    "a link": ("\x1b]8;;https://x.org\x1b\\\x1b[31mlink\x1b[0m\x1b]8;;\x1b\\", [("link", {"ink": RED, "link": "https://x.org"})]),
    "a line that waves": ("\x1b[4:3mx\x1b[58:2::1:2:3my\x1b[4:0mz", [("xy", {"underline": True})]),
    "blinking": ("\x1b[5mx\x1b[25m", [("x", {"bold": True})]),
    "of one kind of terminal": ("\x1b[>4;2mx\x1b[?25l", []),
    "above": ("\x1b[31ma\nb\x1b[A\x1b[32mc", [("a", {"ink": RED}), ("c", {"ink": GREEN}), ("b", {"ink": RED})]),
    "cut": ("x\x1b[3", []),
}  # fmt: skip


@pytest.mark.parametrize("case", SHOWN)
def test_the_colours_of_a_terminal(case):
    text, expected = SHOWN[case]
    shown, spans = ansi.terminal(text)
    assert "\x1b" not in shown and shown == cells.terminal(text)
    lines = shown.split("\n")
    found = [(lines[number - 1][start:end], style) for number, start, end, style in spans]
    assert found == [(letters, ansi.Style(**style)) for letters, style in expected]


def test_colours_for_black_terminals_are_dark_enough_for_paper():
    for code in ("38;5;226", "38;2;255;255;255", "38;5;255", *map(str, range(30, 38)), *map(str, range(90, 98))):
        (colour,) = re.findall(r'rgb\("#(\w+)"\)', ansi.typst(ansi.terminal(f"\x1b[{code}mx")[1]))
        light = [(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (0, 2, 4)]
        assert 1.05 / (0.05 + 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]) > 3.9, code


COLOURED = {  # what is shown, and colours that are drawn then
    "a table with a style sheet": (shown(data(text_html="<style>#T_1 td {color: #010203} #T_1 .x, #T_1 th {background-color: #040506} #T_1 #a {color: #070809; font-weight: bold}</style><table id='T_1'><caption>The caption</caption><tr><th>h</th><td class='x'>c</td><td id='a'>d</td></tr></table>")), "010203 040506 070809"),
    "the more special rule": (shown(data(text_html="<style>.own td.a {color: #110101} .own td {color: #110102} .own b {color: #110103 !important}</style><table class='own'><tr><td class='a'>c</td><td>d <b style='color: #110104'>e</b></td></tr></table>")), "110101 110102 110103 -110104"),
    "bars of a Styler": (shown(data(text_html="<table><tr><td style='background: linear-gradient(90deg, transparent 20%, #0a0b0c 20%, #0a0b0c 60%, transparent 60%)'>0.5</td></tr></table>")), "0a0b0c"),
    "rows and borders": (shown(data(text_html="<table><tr style='background:#0d0e0f'><td style='border: 2px solid #101112'>x</td></tr></table>")), "0d0e0f 101112"),
    "words": (shown(data(text_html="<p style='color:#131415'>a <b style='color:rgb(22,23,24)'>b</b></p><div style='background:#191a1b'><i>c</i></div><font color='#1c1d1e'>d</font>")), "131415 161718 191a1b 1c1d1e"),
    "a list and a heading": (shown(data(text_html="<ul style='color:#1f2021'><li>a</ul><h4 style='color:#222324'>b</h4><code style='color:#252627'>c</code>")), "1f2021 222324 252627"),
    "preformatted": (shown(data(text_html="<pre>a <span style='color:#28292a'>b\nc</span> <b class='k'>d</b> <b>e</b></pre><style>.k {color: #2b2c2d}</style>")), "28292a 2b2c2d"),
    "markdown": ("<span style='color:#2e2f30'>a</span> <font color='#313233'>b</font> <b style='background-color:#343536'>$c$</b>\n\n<div style='background:#373839'>\n\n**d**\n\n</div>\n\n<table><tr><td bgcolor='#3a3b3c'>e</td></tr></table>", "2e2f30 313233 343536 373839 3a3b3c"),
    "formulas": ("$\\textcolor{#3d3e3f}{a}\\color[RGB]{64,65,66}b$", "3d3e3f 404142"),
    "printed": (shown(stream("\x1b[38;2;67;68;69ma\x1b[48;5;90mb\x1b[0m\x1b[7;38;2;70;71;72mc")), "434445 870087 464748"),
    "bars": ("<progress value='0.5'></progress>", "1f3a5f e1e1e1"),
    "another output's style sheet": ([shown(data(text_html="<style>.later {color: #490101}</style>")), shown(data(text_html="<p class='later'>a</p>"))], "490101"),
    "a style sheet of its own": (shown(data(text_html="<style>@media screen {.s1 {color: #490102}} @media (prefers-color-scheme: dark) {.s1 {color: #490103}} .s2 {& b {color: #490104}} :is(i, u).s3 {color: #490105}</style><p class='s1'>a</p><p class='s2'>b <b>c</b></p><i class='s3'>d</i>")), "490102 -490103 490104 490105"),
    "variables": (shown(data(text_html="<style>:root {--ink: #490106}</style><p style='color: var(--ink)'>a</p><p style='color: var(--none, #490107)'>b</p>")), "490106 490107"),
    "a cell over its row": (shown(data(text_html="<style>#Tz th {background-color: #490108} #Tz tr {background: #490109}</style><table id='Tz'><tr><th>a</th></tr></table><p style='background-color: #49010a; background: #49010b'>b</p>")), "490108 -490109 -49010a 49010b"),
    "borders by sides": (shown(data(text_html="<div style='border-color: #49010c; border-style: solid; border-width: 2px'>a</div><p style='border-left: 4px dashed #49010d'>b</p><span style='border: 1px solid #49010e'>c</span>")), "49010c 49010d 49010e"),
    "swatches": (shown(data(text_html="<div style='display:inline-block;width:30px;height:20px;background:#49010f'></div><span style='display:inline-block;width:30px;height:20px;background:#490110'></span><div style='width:40%;height:9px;background:#490111'></div>")), "49010f 490110 490111"),
    "an svg's gradient": (shown(data(text_html="<svg viewBox='0 0 100 50' width='100' height='50'><defs><linearGradient id='g'><stop offset='0' stop-color='#490113'/><stop offset='1' stop-color='#490114'/></linearGradient></defs><rect width='100' height='50' fill='url(#g)'/></svg>")), "490113 490114"),
    "an svg by its classes": (shown(data(text_html="<style>.r {fill: #490112}</style><svg width='40' height='20'><rect class='r' width='40' height='20'/></svg>")), "490112"),
}  # fmt: skip


def drawn(page):
    """The colours of a page, with those of its gradients, as #rrggbb."""

    def code(rgb):
        return "".join(f"{round(255 * float(one)):02x}" for one in rgb)

    content = page.get_contents().get_data().decode("latin-1")
    found = {code(rgb) for rgb in re.findall(r"([\d.]+) ([\d.]+) ([\d.]+) (?:sc|scn|SC|SCN|rg|RG)\b", content)}
    found |= {code(grey * 3) for grey in re.findall(r"([\d.]+)() (?:sc|scn|g)\b", content) for grey in [grey[:1]]}
    stack = [page["/Resources"].get("/Pattern", {}), page["/Resources"].get("/Shading", {})]
    while stack:
        one = stack.pop()
        one = one.get_object() if hasattr(one, "get_object") else one
        if isinstance(one, dict):
            found |= {code(one[key]) for key in ("/C0", "/C1") if len(one.get(key, [])) == 3}
            stack += [value for key, value in one.items() if key not in ("/Parent", "/P")]
        elif isinstance(one, list):
            stack += one
    return found


@pytest.fixture(scope="module")
def coloured(home):
    given = [one for cells, _ in COLOURED.values() for one in (cells if isinstance(cells, list) else [cells])]
    made = exported(["# T", *given], home)
    assert not made.said
    return set().union(*map(drawn, made.reader.pages))


@pytest.mark.parametrize("name", COLOURED)
def test_an_input_keeps_its_colours(coloured, name):
    for colour in COLOURED[name][1].split():
        assert (colour.removeprefix("-") in coloured) != colour.startswith("-"), (colour, sorted(coloured))


def test_what_cannot_be_drawn_stops_no_other_cell(home, monkeypatch):
    placed = pdf._place_pictures

    def spoilt(document, *arguments):
        placed(document, *arguments)
        document["blocks"][1]["c"][1] = [{"t": "RawBlock", "c": ["typst", "#nosuchfunction"]}]

    monkeypatch.setattr(pdf, "_place_pictures", spoilt)
    made = exported(["# T\n\nbefore", "## Spoilt\n\nof $x^2$", "after"], home)
    assert all(words in made.text for words in ("before", "of $x^2$", "after"))
    assert made.said == [
        "any: cell 2, section 'Spoilt': it cannot be drawn (unknown variable: nosuchfunction) and is shown as its source"
    ]


def test_blanks_and_lines_that_a_style_keeps(home):
    text = "<div style='white-space: pre-wrap'>a   b\n  c <b>d</b></div>"
    page = exported([shown(data(text_html=text))], home).reader.pages[0].extract_text()
    assert "a\xa0\xa0\xa0b\n" in page.replace(" ", "\xa0") and not re.search("b.*c", page)


def test_rows_need_no_end(home):
    table = "<table><tr><th>head<th>acc<tr><td>ArcFace<td>99</table>"
    for given in (table, shown(data(text_html=table))):
        root = exported([given], home).reader.trailer["/Root"]
        found, stack = [], [root["/StructTreeRoot"]]
        while stack:
            node = stack.pop()
            node = node.get_object() if hasattr(node, "get_object") else node
            if isinstance(node, list):
                stack += node
            elif isinstance(node, dict):
                found.append(node.get("/S"))
                stack.append(node.get("/K"))
        assert found.count("/Table") == 1 and found.count("/TR") == 2


def test_a_bar_is_as_long_as_it_says(home):
    bar = "<div style='width:400px;background:#eee'><div style='width:25%;height:14px;background:#4a0101'></div></div>"
    page = exported([shown(data(text_html=bar))], home).reader.pages[0]
    strokes = re.findall(
        r"([\d.-]+) ([\d.-]+) m\s+([\d.-]+) [\d.-]+ l", page.get_contents().get_data().decode("latin-1")
    )
    widths = {round(abs(float(b) - float(a))) for a, _, b in strokes}
    assert {300, 75} <= widths, widths


def test_notes_are_below_the_text(home):
    made = exported(["a[^1]\n\n[^1]: first note", "b[^1]\n\n[^1]: of $x^2$ and `code`"], home)
    assert re.search(r"1 ?first note 2 ?of x ?2 and code", made.text) and "[^" not in made.text and not made.said


def test_colours_are_on_the_page():
    trace = ["\x1b[31mZeroDivisionError\x1b[39m  Traceback", "\x1b[32m----> 1\x1b[39m \x1b[32;43m1\x1b[39;49m/0"]
    error = new_output("error", ename="E", evalue="v", traceback=trace)
    printed = [stream("\x1b[1;34mblue  bold\x1b[0m [x] #h $m$ *s*\n"), error]
    notebook = new_notebook(cells=[new_markdown_cell("# T"), new_code_cell("1", outputs=printed)])
    content = pdf.ReportExporter().from_notebook_node(notebook)[0]
    page = PdfReader(io.BytesIO(content)).pages[0]
    text = page.extract_text()
    for words in ("blue  bold [x] #h $m$ *s*", "ZeroDivisionError  Traceback", "----> 1 1/0"):
        assert words in text
    drawn = page.get_contents().get_data().decode("latin-1")
    for colour in (RED, GREEN, ansi.INK[4], ansi.PAPER[3]):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        found = re.findall(r"([\d.]+) ([\d.]+) ([\d.]+) (?:sc|scn|rg)\b", drawn)
        assert any(np.allclose([float(one) for one in rgb], parts, atol=0.003) for rgb in found), colour


SCREENS = {  # what is printed, and what a terminal shows in the end
    "outer 0%\n inner 0%\r inner 9%\x1b[A\r": "outer 0%\n inner 9%",
    "outer: 0%\n\rinner: 9%\x1b[A\router: 9%\n\r         \x1b[A\rdone.\x1b[K": "done.\n",
    "a\nb\nc\x1b[2A\x1b[1GX\n": "X\nb\nc",
    "a\x1b[3Cb\x1b[2Dc": "a  cb",
    "a\nb\x1b[1Ec\x1b[2Fd": "d\nb\nc",
    "one\ntwo\x1b[1;1Hfirst\x1b[2;4Hxx": "first\ntwoxx",
    "gone\ngone\x1b[2J\x1b[Hnew": "new\n",
    "old\x1bcnew\nold\x1b[J": "new\nold",
    "a\nb\nc\x1b[2A\x1b[J": "a\n\n",
    "abc\x1b[1G\x1b[2Pd\x1b[1Xe": "de",
    "abc\x1b[2G\x1b[@x": "axbc",
    "a\nb\x1b[Lc\nd\x1b[Me": "a\n c\n e",
    "\x1b7ab\x1b8c\x1b[sd\x1b[ue": "ce",
    "\x1b(0lqk\x1b(B end\x1b(B\x1b[m": "┌─┐ end",
    "a\r\nb\r\r\nc\tx": "a\nb\nc\tx",
    "\x1b[99999999Ax\x1b[0Ky": "xy",
}


def test_no_cursor_leaves_the_page():
    shown = cells.terminal("\x1b[999999999Bx\x1b[999999999Cy\x1b[999999999;999999999Hz")
    assert len(shown) < 5000


def test_terminal():
    assert cells.terminal("100%\r 9%\nab\bc\x1b]0;t\x07!\r\n") == " 9%%\nac!\n"
    assert cells.terminal("\x1b[1;31mred\x1b[0m") == "red"
    for printed, screen in SCREENS.items():
        assert cells.terminal(printed) == screen, printed
    assert cells.terminal("long word\r\x1b[Kdone\nab\x1b[2K\rc\nab\x1b[1Kc\n") == "done\nc\n  c\n"


def test_a_picture_within_html_is_a_picture():
    image = Image.new("RGB", (40, 20), "red")
    file = io.BytesIO()
    image.save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    output = new_output("display_data", {"text/html": f'<img alt="red" src="data:image/png;base64,{png}" style="">'})
    nb = new_notebook(cells=[new_code_cell("show()", outputs=[output])])
    found, pictures = cells.parts(nb, False, pytest.fail)
    assert [part["kind"] for part in found][-1] == "picture" and list(pictures.values()) == [file.getvalue()]
