"""Formulas as JupyterLab finds them in Markdown, in the TeX that pandoc and typst are known to draw right."""

import re
from pathlib import Path

from report import tex

# JupyterLab's own: the delimiters of mathematics, braces, ends of paragraphs, and what looks like a stored formula
SPLIT = re.compile(r"(\$\$?|\\(?:begin|end)\{[a-z]*\*?\}|\\[{}$]|[{}]|(?:\n\s*)+|@@\d+@@|\\\\[()\[\]])", re.I)
FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})[^`\n]*\n.*?(?:^ {0,3}\2[`~]*[ ]*$|\Z)", re.M | re.S)
CODE = re.compile(r"(?<![\\`])(`+)(?!`)(?:(?!\n\s*\n).)*?(?<!`)\1(?!`)", re.S)
REFERENCE = re.compile(r"\\(eq)?ref\s*\{\s*([^{}]*?)\s*\}")  # of a formula's label, also outside of formulas
CLOSE = {"$": "$", "$$": "$$", r"\\(": r"\\)", r"\\[": r"\\]"}


def _names(file: str) -> set[str]:
    return set((Path(__file__).parent / "layout" / file).read_text(encoding="utf-8").split())


# each was seen in a PDF as the sign that matplotlib's table has for it, and a test looks again
SYMBOLS = _names("symbols.txt")
COLOURS = ""  # what no macro is called: where the colours are that formulas define
SEEN = _names("commands.txt")  # what these do was looked at on a page
SIGNS = {"\\" + sign for sign in "{},:%#_$\\& "}  # & within \text, as tex.rewritten puts it
ENVIRONMENTS = {"Vmatrix", "cases", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "aligned", "gathered", "split"}
DISPLAYS = {
    "equation": "", "align": "aligned", "flalign": "aligned", "alignat": "alignedat", "gather": "gathered",
    "eqnarray": "split", "multline": "gathered", "subequations": "",
}  # fmt: skip


def remove(text: str) -> tuple[str, list[str]]:
    """Markdown whose formulas are replaced by @@0@@, @@1@@ ..., and these formulas: JupyterLab's removeMath, so that
    no Markdown is read within a formula, and no formula within code."""

    def hide(match):
        return match[0].replace("$", "\ue000").replace("\\", "\ue001")

    def show(part):
        return part.replace("\ue000", "$").replace("\ue001", "\\")

    text = CODE.sub(hide, FENCE.sub(hide, re.sub("\r\n?", "\n", text)))
    blocks, math = SPLIT.split(text), []
    start, end, last, braces, i = None, "", None, 0, 1

    def store(first, final):
        math.append(show("".join(blocks[first : final + 1])))
        blocks[first : final + 1] = [f"@@{len(math) - 1}@@", *[""] * (final - first)]

    while i < len(blocks):
        block = blocks[i]
        if re.fullmatch(r"@@\d+@@", block):
            store(i, i)
        elif start is not None and block == end and not braces:
            store(start, i)
            start = last = None
        elif start is not None and block == end:
            last = i
        elif start is not None and block.count("\n") > 1:  # a formula ends with its paragraph
            if last is not None:
                store(start, i := last)
            start, last, braces = None, None, 0
        elif start is not None and block in "{}":
            braces = max(0, braces + (1 if block == "{" else -1))
        elif start is None and block in CLOSE:
            start, end, braces = i, CLOSE[block], 0
        elif start is None and block.startswith(r"\begin"):
            start, end, braces = i, r"\end" + block[6:], 0
        i += 2
    if start is not None and last is not None:
        store(start, last)

    def placed(found):
        math.append(found[0])
        return f"@@{len(math) - 1}@@"

    return show(REFERENCE.sub(placed, "".join(blocks))), math


def formula(source: str, macros: dict) -> dict:
    """A formula with its delimiters as {text, display, tag, source, labels}; display for a line of its own, text "" for
    mere definitions, which go into macros (name: number of arguments, the first one's value if it may be left out,
    body); labels with the tags of their lines. Raises ValueError for what is not known to be drawn right."""
    display = source.startswith(("$$", r"\\[", r"\begin"))
    text = source
    for opening, closing in CLOSE.items():
        if source.startswith(opening) and source.endswith(closing) and opening != r"\begin":
            text = source[len(opening) : -len(closing)]
    if source.startswith("$$"):
        text = source[2:-2]
    text = _expand(_define(re.sub(r"(?<!\\)%.*", "", text), macros), tex.MACROS | macros).strip()
    labels = _labels(text)
    tags = re.findall(r"\\tag\b", text)
    if (
        len(tags) > 1 or not display or re.search(r"\\tag\*?\s*\{[^}]*[$\\{]", text)
    ):  # typst numbers a formula, with plain text
        text = tex.replaced(text, "tag", 1, lambda _, tag: rf"\qquad\text{{({tag})}}")
        text = tex.replaced(text, "tag*", 1, lambda _, tag: rf"\qquad\text{{{tag}}}")
    tag = re.search(r"\\tag(\*?)\s*\{(.*?)\}", text)
    text = re.sub(r"\\tag\*?\s*\{.*?\}|\\label\s*\{.*?\}|\\no(?:number|tag)\b", "", text).strip()
    outer = re.fullmatch(r"\\begin\{(\w+)(\*?)\}(.*)\\end\{\1\2\}", text, re.S)
    if outer and outer[1] in DISPLAYS and display:
        inner = DISPLAYS[outer[1]]
        text = f"\\begin{{{inner}}}{outer[3]}\\end{{{inner}}}" if inner else outer[3].strip()
    text = _matrices(tex.rewritten(_bracketed(text), macros.setdefault(COLOURS, {})))
    text = re.sub(r"\\(?:big|Big|bigg|Bigg)[lrm]?(?=\s*(?:[(\[|/)\].]|\\[{}|]|\\[lr]))\s*", "", text)
    text = re.sub(r"\\;", r"\\ ", re.sub(r"\\!", "", text))
    text = re.sub(r"\\\|(.+?)\\\|", r"\\lVert \1\\rVert ", text)
    if len(re.findall(r"(?<!\\)(?<!left)(?<!right)\|", text)) == 2:  # with one bar or three its sides are not known
        text = re.sub(r"(?<!\\)(?<!left)(?<!right)\|([^|]+)\|", r"\\lvert \1\\rvert ", text)
    _check(text, display, source)
    number = (tag[2] if tag[1] else f"({tag[2]})") if tag else ""
    return {"text": text, "display": display, "tag": number, "source": source, "labels": labels}


def _labels(text: str) -> dict[str, str]:
    """The labels of a formula and the tags of their lines."""
    found = {}
    for row in text.split(r"\\"):
        tag = re.search(r"\\tag\*?\s*\{(.*?)\}", row)
        found |= {label: tag[1] if tag else "" for label in re.findall(r"\\label\s*\{(.*?)\}", row)}
    return found


# pandoc knows a matrix within its brackets; one of none is a pmatrix whose first cell begins with a mark, as
# crossref.lua draws it
BRACKETS = {"()": "pmatrix", "[]": "bmatrix", "||": "vmatrix", r"\{\}": "Bmatrix", r"\{.": "cases"}
MATRIX = r"\\begin\{(?:matrix|array\}\s*\{[lcr\s]*)\}((?:(?!\\begin|\\end).)*)\\end\{(?:matrix|array)\}"


def _bracketed(text: str) -> str:
    """text with SymPy's and LaTeX's matrices and arrays within brackets as those of amsmath."""

    def named(found):
        name = BRACKETS.get(found[1] + found[3])
        return f"\\begin{{{name}}}{found[2]}\\end{{{name}}}" if name else found[0]

    return re.sub(rf"\\left\s*(\\?.)\s*{MATRIX}\s*\\right\s*(\\?.)", named, text, flags=re.S)


def _matrices(text: str) -> str:
    """text with matrices without brackets as those of one kind of amsmath's."""
    return re.sub(
        MATRIX, lambda m: rf"\begin{{pmatrix}}\operatorname{{{chr(0xE010)}}}{m[1]}\end{{pmatrix}}", text, flags=re.S
    )


def _define(text: str, macros: dict) -> str:
    """text without its \\newcommand and the like, which are added to macros."""
    form = (
        r"\\(newcommand|renewcommand|providecommand|DeclareMathOperator|DeclarePairedDelimiter|def|let)(\*?)"
        r"\s*\{?\s*\\([A-Za-z]+)\s*\}?\s*(?:\[(\d)\])?\s*(?:\[([^\]]*)\])?((?:#\d)*)\s*=?\s*"
    )
    while found := re.search(form, text):
        kind, star, name, count, default, numbers = found.groups()
        body, end = tex.group(text, found.end()) or ("", 0)
        if not end or (kind == "def" and text[found.end()] != "{"):  # parameters with signs between them, or no body
            raise ValueError(
                f"a definition of \\{name} that is not known to be read right: {' '.join(text.split())[:80]}"
            )
        if kind == "DeclareMathOperator":
            body = rf"\operatorname{star}{{{body}}}"
        elif kind == "DeclarePairedDelimiter":
            other, end = tex.group(text, end) or ("", len(text))
            body, count = rf"\left{body} #1 \right{other}", 1
        macros[name] = int(count or len(numbers) // 2), default, body
        text = text[: found.start()] + text[end:]
    return text


def _expand(text: str, macros: dict) -> str:
    for _ in range(500):  # a macro may use others, and must not use itself for ever
        found = next((m for m in re.finditer(r"\\([A-Za-z]+)", text) if m[1] in macros), None)
        if not found:
            break
        count, default, body = macros[found[1]]
        given, at = [], found.end()
        if default is not None:
            option = re.match(r"\s*\[([^\]]*)\]", text[at:])
            given, at = [option[1] if option else default], at + (option.end() if option else 0)
        while len(given) < count and (one := tex.group(text, at)):
            given.append(one[0])
            at = one[1]
        if len(given) < count:
            break
        body = re.sub(r"#(\d)", lambda m, given=given: (given[int(m[1]) - 1 :] or [""])[0], body)
        if not re.fullmatch(r"\\[A-Za-z]+\*?", body) and r"\color" not in body:  # which take what follows them
            body = f"{{{body}}}"
        text = text[: found.start()] + body + text[at:]
    return text


def _check(text: str, display: bool, source: str) -> None:
    where = f"the formula {' '.join(source.split())[:80]}"
    for command in re.findall(r"\\(?:[A-Za-z]+\*?|.)", text, re.S):
        name = command[1:].rstrip("*")
        known = command in SIGNS or (name in SYMBOLS | SEEN and not command.endswith("*"))
        if not known and name not in ("eqref", "ref"):
            raise ValueError(f"{command} converts wrongly, or is not known to convert right, in {where}")
    for name in re.findall(r"\\begin\{(.*?)\}", text):
        if name not in ENVIRONMENTS:
            raise ValueError(f"the environment {name} is not known to convert right in {where}")
    if "{vmatrix}" in text and "{Vmatrix}" in text:
        raise ValueError(f"vmatrix and Vmatrix are not told apart in {where}")
    if re.search(r"\\(left|right)\s*\.", text):
        raise ValueError(f"\\left. and \\right. convert wrongly in {where}")
    if r"\\" in text and r"\begin" not in text and r"\substack" not in text:
        raise ValueError(f"a line break converts only within an environment such as aligned, in {where}")
