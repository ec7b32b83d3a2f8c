"""HTML as JupyterLab shows it, in the HTML that pandoc reads: its style sheets as styles of elements, its formulas."""

import base64
import re
from collections.abc import Callable

from bs4 import BeautifulSoup, NavigableString, Tag

from report import ansi, cascade, styles

# pandoc keeps the style of a span, a block and the parts of a table; of others it has to be around or within
KEPT = {"span", "div", "table", "thead", "tbody", "tfoot", "tr", "td", "th", "img", "svg", "col", "colgroup"}
WITHIN = {
    "a", "li", "dt", "dd", "summary", "caption", "figcaption", "h1", "h2", "h3", "h4", "h5", "h6", "html", "body",
}  # fmt: skip
BLOCKS = {"ul", "ol", "dl", "blockquote", "pre", "section", "article", "header", "footer", "main", "nav", "aside",
          "center", "details", "figure", "address"}  # fmt: skip
ROWS = {"table", "thead", "tbody", "tfoot", "tr", "ul", "ol", "dl", "colgroup"}  # in which no text stands
NO_MATH = {"script", "noscript", "style", "textarea", "pre", "code", "svg", "math", "annotation"}
# the names in SVG that are not written small, as a parser of HTML leaves them
CAMEL = """
    viewBox preserveAspectRatio gradientUnits gradientTransform spreadMethod patternUnits patternContentUnits
    patternTransform clipPathUnits maskUnits maskContentUnits markerUnits markerWidth markerHeight refX refY textLength
    lengthAdjust startOffset pathLength stdDeviation filterUnits primitiveUnits baseFrequency numOctaves tableValues
    kernelMatrix linearGradient radialGradient clipPath textPath foreignObject feGaussianBlur feColorMatrix feOffset
    feBlend feFlood feMerge feMergeNode feComposite feDropShadow feMorphology feTurbulence feImage feTile
"""
START = re.compile(r"\$\$?|\\[(\[]|\\begin\s*\{([^}]*)\}|\\([\\$])|\\(?:eq)?ref\s*\{[^}]*\}")
END = {"$": r"\$", "$$": r"\$\$", r"\(": r"\\\)", r"\[": r"\\\]"}


def prepared(html: str, page: list[str], complain: Callable[[str], None]) -> tuple[str, list[str]]:
    """HTML as in styled, whose formulas are replaced by @@0@@, @@1@@ ..., and the formulas, written as in Markdown."""
    math: list[str] = []
    soup = _read(html)
    _style(soup, page, complain)
    for text in soup.find_all(string=re.compile(r"\$|\\|@@")):
        if type(text) is NavigableString and not any(_without_math(parent) for parent in text.parents):
            found = _without_formulas(str(text), math)
            if found != text:
                text.replace_with(found)
    return _written(soup), math


def has_styles(text: str) -> bool:
    """Does Markdown hold HTML that has to be styled, drawn or put in order?"""
    said = r"<style|style\s*=|<(font|big|small|progress|meter|input|title|template|pre|ruby|svg|center|dialog|table)\b"
    return bool(re.search(said + r"|</br|bgcolor|\b(hidden|align|dir)\b", text, re.I))


def styled(html: str, page: list[str], complain: Callable[[str], None]) -> str:
    """HTML whose styles, its own and those of the page's style sheets, stand at elements where pandoc keeps them, and
    whose bars and boxes are drawn. What of them is not drawn goes to complain."""
    soup = _read(html)
    _style(soup, page, complain)
    return _written(soup)


def _read(html: str) -> BeautifulSoup:
    # within an element no paragraph is put around what stands at the beginning; </br> is to browsers what <br> is
    return BeautifulSoup(f"<div>{re.sub('</br *>', '<br>', html, flags=re.I)}</div>", "lxml")


def _written(soup: BeautifulSoup) -> str:
    if not soup.body:
        return ""
    if soup.body.div:
        soup.body.div.unwrap()
    return soup.body.decode_contents()


def _style(soup: BeautifulSoup, page: list[str], complain: Callable[[str], None]) -> None:
    if soup.find("link", rel="stylesheet") or re.search("@import", "".join(s.string or "" for s in soup("style"))):
        complain("a style sheet that stands elsewhere is not read: write its styles into the output")
    _drawn(soup)
    cascade.inline(soup, page, complain)
    _vectors(soup)
    _hide(soup)
    _fade(soup)
    _texts(soup)
    _name(soup, complain)
    _enclose(soup)


def _drawn(soup: BeautifulSoup) -> None:
    """Bars of progress as what crossref.lua draws, boxes to tick as signs; without what no page shows."""
    for element in soup.find_all(["title", "template", "noscript", "datalist", "rp"]):
        element.decompose()
    for element in soup.find_all("dialog", open=False):
        element.decompose()
    for bar in soup.find_all(["progress", "meter"]):
        low, high = _number(bar.get("min"), 0), _number(bar.get("max"), 1)
        value = _number(bar.get("value"), 0 if bar.name == "meter" else None)
        part = "" if value is None or high <= low else f"{min(1, max(0, (value - low) / (high - low))):.4f}"
        bar.replace_with(soup.new_tag("span", attrs={"class": "drawn-bar", "data-part": part}))
    for box in soup.find_all("input", type=("checkbox", "radio")):
        box.name = "span"
        on, off = "☒☐" if box["type"] == "checkbox" else "◉○"
        box.string = on if box.has_attr("checked") else off
    for reading in soup.find_all("rt"):
        reading.insert(0, " (")
        reading.append(")")


def _number(text, usual: float | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return usual


# ---------------------------------------------------------------- styles


def _vectors(soup: BeautifulSoup) -> None:
    """Each SVG as a picture of its own: with what it uses of others, its names as they are written there."""
    camel = {name.lower(): name for name in CAMEL.split()}
    for svg in soup.find_all("svg"):
        if svg.find_parent("svg"):
            continue
        for user in svg.find_all("use"):
            name = (user.get("href") or user.get("xlink:href") or "").removeprefix("#")
            there = soup.find(id=name) if name and not svg.find(id=name) else None
            if there is not None:
                svg.insert(0, BeautifulSoup(str(there), "lxml").find(id=name))
        for element in [svg, *svg.find_all(True)]:
            element.name = camel.get(element.name, element.name)
            element.attrs = {camel.get(name, name): value for name, value in element.attrs.items()}
        svg["xmlns:xlink"], svg["xmlns"] = "http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"
    for svg in soup.find_all("svg"):
        if svg.find_parent("svg"):
            continue
        if "0" in (svg.get("width"), svg.get("height")):  # which holds what others use
            svg.decompose()
        else:  # as a picture, for pandoc writes all its names small
            kept = {name: svg[name] for name in ("width", "height", "style", "id", "class") if svg.get(name)}
            content = base64.b64encode(str(svg).encode()).decode()
            svg.replace_with(soup.new_tag("img", attrs={**kept, "src": f"data:image/svg+xml;base64,{content}"}))


def _of(element: Tag) -> dict[str, str]:
    return styles.declared(element.get("style") or "")


def _elements(soup: BeautifulSoup) -> list[Tag]:
    """Those with a style, but those within an SVG, which typst styles."""
    return [element for element in soup.find_all(style=True) if not element.find_parent("svg")]


def _hide(soup: BeautifulSoup) -> None:
    for element in _elements(soup):
        if not element.decomposed and styles.undisplayed(_of(element)):
            element.decompose()


def _fade(soup: BeautifulSoup) -> None:
    """Opacity, of an element and all within it, as that of its colours."""
    for element in _elements(soup):
        part = styles._part(_of(element).get("opacity", ""))
        if part is None or part == 1 or element.name in ("img", "svg"):
            continue
        ink = next((_of(one)["color"] for one in (element, *element.parents) if "color" in _of(one)), "black")
        element["style"] = f"color: {ink}; {element['style']}"
        for one in [element, *element.find_all(style=True)]:
            shades = {n: styles.faded(v, part) for n, v in _of(one).items() if "color" in n}
            one["style"] = "; ".join([one["style"], *(f"{name}: {value}" for name, value in shades.items())])


def _texts(soup: BeautifulSoup) -> None:
    """Letters that a style makes large, and blanks that it keeps."""
    if not soup.find(style=re.compile("text-transform|white-space")):
        return
    for text in list(soup.find_all(string=True)):
        if (
            type(text) is not NavigableString
            or text.parent.name in ROWS
            or text.find_parent(["svg", "style", "script"])
        ):
            continue
        said: dict[str, str] = {}
        for one in text.parents:
            said = _of(one) | said
        shown, change = str(text), said.get("text-transform", "")
        change = {"uppercase": str.upper, "lowercase": str.lower, "capitalize": _capitalised}.get(change, str)
        shown = change(shown)
        blanks = said.get("white-space", "")
        if text.find_parent("pre") or blanks not in ("pre", "pre-wrap", "pre-line", "break-spaces"):
            if shown != text:
                text.replace_with(shown)
            continue
        if blanks != "pre-line":
            shown = re.sub("(?<= ) |^ | $", "\xa0", shown, flags=re.M)
        lines = shown.split("\n")
        for number, one in enumerate(lines):
            if number:
                text.insert_before(soup.new_tag("br"))
            text.insert_before(one)
        text.extract()


def _capitalised(text: str) -> str:
    return re.sub(r"(?<!\w)\w", lambda m: m[0].upper(), text)


def _name(soup: BeautifulSoup, complain: Callable[[str], None]) -> None:
    """What styles say that is not drawn, in one line."""
    found = [one for element in _elements(soup) for one in styles.undrawn(element["style"])]
    found += [f"opacity of <{one.name}>" for one in soup(["img", "svg"]) if "opacity" in _of(one)]
    found += [f"direction of <{one.name}>" for one in soup("bdo")]
    found = list(dict.fromkeys(found))
    if found:
        more = f" and {len(found) - 3} more" * (len(found) > 3)
        complain(f"a style of the output is not drawn: {', '.join(found[:3])}{more}")


def _enclose(soup: BeautifulSoup) -> None:
    """Styles where pandoc keeps them."""
    for element in _elements(soup):
        found = _of(element)
        if element.name == "pre":
            continue  # as is done with all of them, below
        drawn = bool(styles.ground(found) or styles.borders(found))
        if "width" in found and not drawn and not element.find(style=re.compile("background|border")):
            found.pop("width")  # else a page would be no wider than a screen's column
            element["style"] = "; ".join(f"{name}: {value}" for name, value in found.items())
        if found.get("vertical-align") in ("super", "sub") and element.name in ("span", "font", "small"):
            element.wrap(soup.new_tag(found["vertical-align"].replace("super", "sup")))
        boxed = drawn and "inline-" in found.get("display", "")
        if element.name == "div" and boxed and not element.find(BLOCKS | {"p", "div", "table"}):
            element.name = "span"
        if element.name in ("td", "th", "div") and styles.lines(found):
            _within(soup, element, "text-decoration-line: " + found["text-decoration-line"])
        elif element.name not in KEPT and (styles.arguments(found) or styles.borders(found) or styles.set_rules(found)):
            if element.name in WITHIN or (element.name == "p" and not (drawn or "text-align" in found)):
                _within(soup, element, element["style"])
            else:
                kind = "div" if element.name in BLOCKS | {"p"} else "span"
                element.wrap(soup.new_tag(kind, attrs={"style": element["style"]}))
            del element["style"]
    for element in soup.find_all("pre"):
        _printed(element)


def _within(soup: BeautifulSoup, element, style: str) -> None:
    inner = soup.new_tag("div" if element.find(BLOCKS | {"p", "div", "table"}) else "span", attrs={"style": style})
    for child in list(element.children):
        inner.append(child.extract())
    element.append(inner)


def _printed(element) -> None:
    """A preformatted text in colours, as crossref.lua draws it."""
    spans, row, column, shown = [], 1, 0, ""
    for text in element.find_all(string=True):
        style = ansi.Style()
        for parent in reversed([parent for parent in text.parents if parent is element or element in parent.parents]):
            style = _terminal(parent, style)
        for number, piece in enumerate(str(text).split("\n")):
            row, column = (row + 1, 0) if number else (row, column)
            if piece and style != ansi.Style():
                spans.append((row, column, column + len(piece), style))
            column += len(piece)
        shown += str(text)
    if spans:
        element["data-terminal-colours"] = ansi.typst(spans)
        element.string = shown


def _terminal(element, style: ansi.Style) -> ansi.Style:
    said = _of(element)
    drawn = styles.letters(said)
    ink = styles.on_white(styles.colour(said.get("color", "")))
    paper = re.search("#[0-9a-f]{6,8}", styles.ground(said))
    style = style._replace(ink=ink or style.ink, paper=styles.on_white(paper[0]) if paper else style.paper)
    style = style._replace(
        bold=style.bold or element.name in ("b", "strong"), italic=style.italic or element.name in ("i", "em")
    )
    if "weight" in drawn:
        style = style._replace(bold="bold" in drawn["weight"])
    if "style" in drawn:
        style = style._replace(italic="normal" not in drawn["style"])
    if str(element.get("href")).startswith("http"):
        style = style._replace(link=element["href"])
    lines = styles.lines(said)
    underline = style.underline or element.name == "u" or "underlined" in lines
    return style._replace(underline=underline, strike=style.strike or "struck" in lines)


# ---------------------------------------------------------------- formulas


def _without_math(element) -> bool:
    return element.name in NO_MATH or bool({"tex2jax_ignore", "mathjax_ignore"} & set(element.get("class", [])))


def _without_formulas(text: str, math: list[str]) -> str:
    """text whose formulas, as MathJax finds them, are added to math and replaced by their place there."""
    at, shown = 0, ""
    text = re.sub(r"@@\d+@@", lambda m: _placed(m[0], math), text) if not START.search(text) else text
    while found := START.search(text, at):
        shown += text[at : found.start()]
        at = found.end()
        if found[2]:
            shown += found[2]
        elif "ref" in found[0]:
            shown += _placed(found[0], math)
        elif end := _end(text, found):
            source = text[found.start() : end]
            if found[0] in (r"\(", r"\["):
                sign = "$" if found[0] == r"\(" else "$$"
                source = sign + source[2:-2] + sign
            shown += _placed(source, math)
            at = end
        else:
            shown += found[0]
    return shown + text[at:]


def _placed(source: str, math: list[str]) -> str:
    math.append(source)
    return f"@@{len(math) - 1}@@"


def _end(text: str, start: re.Match) -> int:
    """The place behind the end of a formula, outside braces; 0 for none."""
    closing = END.get(start[0]) or rf"\\end\s*\{{{re.escape(start[1])}\}}"
    depth = 0
    for found in re.finditer(rf"({closing})|\\(?:[a-zA-Z]+|.)|[{{}}]", text[start.end() :], re.S):
        if found[1] and not depth:
            return start.end() + found.end()
        depth = max(0, depth + {"{": 1, "}": -1}.get(found[0], 0))
    return 0
