"""HTML as JupyterLab shows it, in the HTML that pandoc reads: its style sheets as styles of elements, its formulas."""

import re

import tinycss2
from bs4 import BeautifulSoup, NavigableString
from soupsieve import SelectorSyntaxError

from report import ansi, styles

# pandoc keeps the style of a span, a block and the parts of a table; of others it has to be around or within
KEPT = {"span", "div", "table", "thead", "tbody", "tfoot", "tr", "td", "th", "img", "svg", "col", "colgroup"}
WITHIN = {
    "a", "p", "li", "dt", "dd", "summary", "caption", "figcaption", "h1", "h2", "h3", "h4", "h5", "h6", "html", "body",
}  # fmt: skip
BLOCKS = {"ul", "ol", "dl", "blockquote", "pre", "section", "article", "header", "footer", "main", "nav", "aside",
          "center", "details", "figure", "address"}  # fmt: skip
NO_MATH = {"script", "noscript", "style", "textarea", "pre", "code", "svg", "math", "annotation"}
START = re.compile(r"\$\$?|\\[(\[]|\\begin\s*\{([^}]*)\}|\\([\\$])|\\(?:eq)?ref\s*\{[^}]*\}")
END = {"$": r"\$", "$$": r"\$\$", r"\(": r"\\\)", r"\[": r"\\\]"}


def prepared(html: str) -> tuple[str, list[str]]:
    """HTML as in styled, whose formulas are replaced by @@0@@, @@1@@ ..., and the formulas, written as in Markdown."""
    math: list[str] = []
    if not re.search(r"\$|\\|@@", html):
        return (styled(html) if has_styles(html) else html), math
    soup = _read(html)
    _style(soup)
    for text in soup.find_all(string=True):
        if type(text) is NavigableString and not any(_without_math(parent) for parent in text.parents):
            found = _without_formulas(str(text), math)
            if found != text:
                text.replace_with(found)
    return _written(soup), math


def has_styles(text: str) -> bool:
    said = r"<style|style\s*=|<(font|big|small|progress|meter|input|title|template|pre)\b|</br|bgcolor|\bhidden\b"
    return bool(re.search(said, text, re.I))


def styled(html: str) -> str:
    """HTML whose styles stand at elements where pandoc keeps them, and whose bars and boxes are drawn."""
    soup = _read(html)
    _style(soup)
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


def _style(soup: BeautifulSoup) -> None:
    _drawn(soup)
    _inline(soup)
    _enclose(soup)


def _drawn(soup: BeautifulSoup) -> None:
    """Bars of progress as what crossref.lua draws, boxes to tick as signs; without what no page shows."""
    for element in soup.find_all(["title", "template"]):
        element.decompose()
    for bar in soup.find_all(["progress", "meter"]):
        low, high = _number(bar.get("min"), 0), _number(bar.get("max"), 1)
        value = _number(bar.get("value"), 0 if bar.name == "meter" else None)
        part = "" if value is None or high <= low else f"{min(1, max(0, (value - low) / (high - low))):.4f}"
        bar.replace_with(soup.new_tag("span", attrs={"class": "drawn-bar", "data-part": part}))
    for box in soup.find_all("input", type=("checkbox", "radio")):
        on, off = "☒☐" if box["type"] == "checkbox" else "◉○"
        box.replace_with(on if box.has_attr("checked") else off)


def _number(text, usual: float | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return usual


# ---------------------------------------------------------------- styles


def _inline(soup: BeautifulSoup) -> None:
    """Each element's style with what the style sheets say of it, by the order of CSS."""
    said: dict[int, list] = {}
    elements = {id(element): element for element in soup.find_all(True)}
    by_id: dict[str, list] = {}
    for element in elements.values():
        by_id.setdefault(element.get("id"), []).append(element)
    for order, (selector, declarations, frame) in enumerate(_rules(soup)):
        if named := re.fullmatch(r"#([\w-]+)", selector):
            matched = by_id.get(named[1], [])
        else:
            try:
                matched = soup.select(selector)
            except (SelectorSyntaxError, NotImplementedError):  # of what a PDF has not, as ::before
                continue
        for element in matched:
            for name, (value, important) in declarations.items():
                if frame and name == "text-align":  # pandas' own, of the head alone
                    continue
                said.setdefault(id(element), []).append((important, False, _weight(selector), order, name, value))
    for number, element in elements.items():
        rules = said.get(number, [])
        hints = {
            "color": element.get("color") if element.name == "font" else None,
            "font-size": {"big": "larger", "small": "smaller"}.get(element.name),
            "background": element.get("bgcolor"),
        }
        rules += [(False, False, (-1,), 0, name, value) for name, value in hints.items() if value]
        if element.has_attr("hidden"):
            rules.append((False, False, (-1,), 0, "display", "none"))
        own = styles.declared(element.get("style", ""))
        rules += [(important, True, (), 0, name, value) for name, (value, important) in own.items()]
        if rules:
            _state(element, {name: value for *_, name, value in sorted(rules)})


def _state(element, style: dict[str, str]) -> None:
    """What is not drawn here, as a width, stays as it is."""
    rest = [one for one in element.get("style", "").split(";") if one.split(":")[0].strip().lower() not in style]
    element["style"] = "; ".join([one.strip() for one in rest if one.strip()] + [f"{k}: {v}" for k, v in style.items()])


def _rules(soup: BeautifulSoup):
    """Each selector of the style sheets, its declarations, and whether it is of a plain DataFrame's frame."""
    for sheet in soup.find_all("style"):
        for rule in tinycss2.parse_stylesheet(sheet.string or "", skip_comments=True, skip_whitespace=True):
            if rule.type == "qualified-rule":
                declarations = styles.declared(tinycss2.serialize(rule.content))
                for selector in tinycss2.serialize(rule.prelude).split(",") if declarations else ():
                    yield selector.strip(), declarations, sheet.has_attr("scoped")


def _weight(selector: str) -> tuple[int, int, int]:
    """How special a selector is: by its names, its classes, its elements."""
    bare = re.sub(r"\[.*?\]", ".x", selector)
    return (
        len(re.findall("#", bare)),
        len(re.findall(r"\.|(?<!:):(?!:)", bare)),
        len(re.findall(r"(?<![.#:\w-])[a-z]\w*", bare)),
    )


def _enclose(soup: BeautifulSoup) -> None:
    """Styles where pandoc keeps them; without what is not shown."""
    for element in soup.find_all(True):
        if element.decomposed or not (style := element.get("style")):
            continue
        found = {name: value for name, (value, _) in styles.declared(style).items()}
        if styles.undisplayed(found):
            element.decompose()
        elif element.name == "pre":
            continue  # as is done with all of them, below
        elif element.name in ("td", "th", "div") and styles.lines(found):
            _within(
                soup, element, "text-decoration: " + found.get("text-decoration", found.get("text-decoration-line", ""))
            )
        elif element.name not in KEPT and (styles.arguments(found) or styles.borders(found)):
            if element.name in WITHIN:
                _within(soup, element, style)
            else:
                element.wrap(soup.new_tag("div" if element.name in BLOCKS else "span", attrs={"style": style}))
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
    said = {name: value for name, (value, _) in styles.declared(element.get("style", "")).items()}
    drawn = styles.letters(said)
    ink, paper = styles.colour(said.get("color", ""))[:7], re.search("#[0-9a-f]{6}", styles.ground(said))
    style = style._replace(ink=ink or style.ink, paper=paper[0] if paper else style.paper)
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
