"""TeX that pandoc does not know or draws otherwise, carried through it by what it does know: a function of
layout/report.typ stands as a mark in the first argument of a binomial, a root or a matrix, where crossref.lua finds it.
"""

import re
from collections.abc import Callable

from report import styles

NAME, OPTION = "\ue011", "\ue012"
NOTHING = r"\operatorname{}"  # an argument that is empty, for a function has to have it
COMMAND = re.compile(r"\\(?:[A-Za-z]+\*?|.)", re.S)
ARROWS = {
    "xrightarrow": "→", "xleftarrow": "←", "xleftrightarrow": "↔", "xRightarrow": "⇒", "xLeftarrow": "⇐",
    "xLeftrightarrow": "⇔", "xmapsto": "↦", "xhookrightarrow": "↪", "xhookleftarrow": "↩", "xlongequal": "=",
}  # fmt: skip
MATRICES = {"pmatrix": "()", "bmatrix": "[]", "vmatrix": "||", "Bmatrix": (r"\{", r"\}"), "matrix": ".."}
CLASSES = {"mathrel": "relation", "mathbin": "binary", "mathord": "normal", "mathpunct": "punctuation"}
BOXES = {"phantom": "all", "hphantom": "wide", "vphantom": "high"}
# what holds to the end of its group: sizes of sums and fractions, of letters in percent
STYLES = {"displaystyle": "display", "textstyle": "inline", "scriptstyle": "script", "scriptscriptstyle": "sscript"}
SIZES = {"tiny": 50, "Tiny": 60, "scriptsize": 70, "small": 85, "normalsize": 100, "large": 120, "Large": 144,
         "LARGE": 173, "huge": 207, "Huge": 249}  # fmt: skip
SPACE = re.compile(
    r"\\(?:hspace\*?|mspace)\s*\{\s*(-?[\d.]+)\s*([a-z]+)\s*\}"
    r"|\\(?:kern|mkern|hskip|mskip)\s*(-?[\d.]+)\s*(mu|em|ex|pt|px|pc|in|cm|mm) ?"
)
# the same in other words, or a mere matter of space
SAME = {
    "hfill": r"\quad ", "dotsi": r"\cdots ", "dotsm": r"\cdots ", "dotso": r"\ldots ",
    "cfrac": r"\dfrac", "tbinom": r"\binom", "dbinom": r"\binom", "enspace": r"\ ", "thinspace": r"\,", "lbrack": "[",
    "rbrack": "]", "nonumber": "", "mathstrut": "", "strut": "", "allowbreak": "", "nobreak": "",
    "negthinspace": "", "displaylimits": "", "operatornamewithlimits": r"\operatorname*", "space": r"\ ",
    "medspace": r"\:", "thickspace": r"\ ", "stackrel": r"\overset",
    "cr": r"\\ ", "mathnormal": r"\mathit", "hbox": r"\text", "textup": r"\text", "textnormal": r"\text", 
    "leadsto": "⇝",     "square": "□", "omicron": "{o}", "varGamma": r"\mathit{\Gamma}", "varDelta": r"\mathit{\Delta}",
    "varTheta": r"\mathit{\Theta}", "varLambda": r"\mathit{\Lambda}", "varSigma": r"\mathit{\Sigma}",
    "varPhi": r"\mathit{\Phi}", "varPsi": r"\mathit{\Psi}", "varOmega": r"\mathit{\Omega}",
}  # fmt: skip
# which MathJax has in JupyterLab: number of arguments, the value of the first if it may be left out, body
MACROS: dict[str, tuple[int, str | None, str]] = {
    "bra": (1, None, r"\langle #1 \rvert"), "ket": (1, None, r"\lvert #1 \rangle"),
    "Bra": (1, None, r"\left\langle #1 \right|"), "Ket": (1, None, r"\left| #1 \right\rangle"),
    "braket": (1, None, r"\langle #1 \rangle"), "fbox": (1, None, r"\boxed{\text{#1}}"),
    "mod": (1, None, r"\quad\operatorname{mod}\ #1"), "pod": (1, None, r"\quad(#1)"), "ensuremath": (1, None, "#1"),
    "class": (2, None, "#2"), "cssId": (2, None, "#2"), "smash": (2, "", "#2"),
    "matrix": (1, None, r"\begin{matrix}#1\end{matrix}"), "pmatrix": (1, None, r"\begin{pmatrix}#1\end{pmatrix}"),
}  # fmt: skip


# ---------------------------------------------------------------- reading it


def group(text: str, at: int) -> tuple[str, int] | None:
    """The argument that begins at a place, without its braces, and the place behind it; None where there is none."""
    at += len(text[at:]) - len(text[at:].lstrip())
    if at >= len(text) or text[at] == "}":
        return None
    if text[at] != "{":
        found = COMMAND.match(text, at)
        return (found[0], found.end()) if found else (text[at], at + 1)
    end = closing(text, at)
    return (text[at + 1 : end - 1], end) if end else None


def closing(text: str, at: int) -> int:
    """The place behind the brace that closes the one at a place, 0 if none does."""
    depth = 0
    for found in re.finditer(r"\\.|[{}]", text[at:], re.S):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if not depth:
            return at + found.end()
    return 0


def replaced(text: str, name: str, count: int, build: Callable[..., str], optional: bool = False) -> str:
    """text with each ``\\name[option]{...}{...}`` as build(option, ...) has it; what lacks an argument stays."""
    for found in reversed([*re.finditer(rf"\\{re.escape(name)}(?![A-Za-z*])", text)]):
        option, at, given = None, found.end(), []
        if optional and (inside := re.match(r"\s*\[((?:[^][{}]|\{[^{}]*\})*)\]", text[at:])):
            option, at = inside[1], at + inside.end()
        while len(given) < count and (one := group(text, at)):
            given.append(one[0])
            at = one[1]
        if len(given) == count:
            text = text[: found.start()] + build(option, *given) + text[at:]
    return text


def parted(text: str, signs: str) -> list[str]:
    """text between the signs (a regular expression) that stand in no braces, environment or pair of delimiters."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(rf"({signs})|\\(begin|left)\b|\\(end|right)\b|\\.|[{{}}]", text, re.S):
        if found[1] and not depth:
            parts.append(text[start : found.start()])
            start = found.end()
        depth += bool(found[2] or found[0] == "{") - bool(found[3] or found[0] == "}")
        if depth < 0:
            break
    return [*parts, text[start:]]


def _inner(text: str, at: int) -> int:
    """The place where what holds the one at a place ends: its braces, cell, row, environment or delimiters."""
    depth = 0
    for found in re.finditer(r"\\(begin|left)\b|\\(end|right|middle)\b|\\\\|\\.|[{}&]", text[at:], re.S):
        if not depth and (found[2] or found[0] in ("}", "&", r"\\")):
            return at + found.start()
        depth += bool(found[1] or found[0] == "{") - bool((found[2] and found[2] != "middle") or found[0] == "}")
    return len(text)


# ---------------------------------------------------------------- carrying it


def _mark(name: str, option: str = "") -> str:
    return rf"\operatorname{{{NAME}{name}{OPTION * bool(option)}{option}}}"


def one(name: str, argument: str, option: str = "") -> str:
    """The typst function name of one argument."""
    return rf"\sqrt{{{_mark(name, option)} {argument if argument.strip() else NOTHING}}}"


def two(name: str, first: str, second: str, option: str = "") -> str:
    """The typst function name of two arguments."""
    first, second = (argument if argument.strip() else NOTHING for argument in (first, second))
    return rf"\binom{{{_mark(name, option)} {first}}}{{{second}}}"


def rewritten(text: str, colours: dict[str, str]) -> str:
    """text in what pandoc knows. colours: those that \\definecolor names, which are added to."""
    text = re.sub(r"\\require\s*\{.*?\}", "", text)
    text = SPACE.sub(lambda m: _space(m[1] or m[3], m[2] or m[4], m[0]), text)
    # pandoc knows no ampersand outside of text, and there it takes the blank behind an escaped sign for its end
    text = re.sub(
        r"(\\\\)|(\\(?:text\w*|mbox)\s*\{[^{}]*\})|\\&",
        lambda m: m[1] or re.sub(r"(\\[%&_#$])(?= )", r"\1{}", m[2] or r"\text{\&}"), text,
    )  # fmt: skip
    text = re.sub(r"\\begin\{subarray\}\{[lcr]\}(.*?)\\end\{subarray\}", r"\\substack{\1}", text, flags=re.S)
    for name, same in SAME.items():
        text = re.sub(rf"\\{name}(?![A-Za-z])", lambda _, same=same: same, text)
    text = _fractions(_switches(_fonts(text)))
    text = _environments(text)
    text = _halves(text)
    text = _coloured(text, colours)
    for name in ("underset", "overset"):
        text = replaced(text, name, 2, lambda _, a, b, name=name: two(name, a, b))
    for name, sign in ARROWS.items():
        text = replaced(
            text, name, 1, lambda a, b, sign=sign: two("arrowed", a or "", b, str(ord(sign))), optional=True
        )
    for name, kind in CLASSES.items():
        text = replaced(text, name, 1, lambda _, a, kind=kind: one("classed", a, kind))
    for name, kind in BOXES.items():
        text = replaced(text, name, 1, lambda _, a, kind=kind: one("unseen", a, kind))
    text = replaced(text, "operatorname*", 1, lambda _, a: one("operator", rf"\operatorname{{{a}}}"))
    text = replaced(text, "mathop", 1, lambda _, a: one("operator", a))
    return _limits(text)


def _fonts(text: str) -> str:
    """text with LaTeX's old fonts, which hold to the end of their group, as those of one argument."""
    for found in reversed([*re.finditer(r"\\(rm|bf|it|cal|sf|tt)(?![A-Za-z])\s*", text)]):
        end = _inner(text, found.end())
        text = rf"{text[: found.start()]}\math{found[1]}{{{text[found.end() : end]}}}{text[end:]}"
    return text


def _switches(text: str) -> str:
    """text with the commands of a size, which hold to the end of their group, as functions."""
    names = "|".join([*STYLES, *SIZES])
    for found in reversed([*re.finditer(rf"\\({names})(?![A-Za-z])\s*", text)]):
        end = _inner(text, found.end())
        name, size = STYLES.get(found[1], "sized"), str(SIZES.get(found[1], ""))
        body = text[found.end() : end]
        text = text[: found.start()] + (one(name, body, size) if body.strip() else "") + text[end:]
    return text


def _space(number: str, unit: str, source: str) -> str:
    """A space of so much, in thousands of the size of a letter; of another unit it stays what it is."""
    points = {"em": 10, "ex": 4.3, "mu": 10 / 18, **styles.UNITS}.get(unit)
    try:
        wide = round(float(number) * (points or 0) * 100)
    except ValueError:
        return source
    return one("spaced", NOTHING, f"{'n' if wide < 0 else 'p'}{abs(wide)}") if points else source


def _fractions(text: str) -> str:
    """text with ``{a \\over b}`` as a fraction."""
    while found := re.search(r"\\over(?![A-Za-z])", text):
        end = _inner(text, found.end())
        start = next(
            (at for at in range(found.start(), -1, -1) if text[at] == "{" and closing(text, at) > found.end()),
            -1,
        )
        above, below = text[start + 1 : found.start()], text[found.end() : end]
        text = rf"{text[: start + 1]}\frac{{{above}}}{{{below}}}{text[end:]}"
    return text


def _renamed(text: str) -> str:
    """text with environments that are others with a switch as those."""
    text = re.sub(r"\\(begin|end)\{d(r?cases)\}", r"\\\1{\2}", text)
    text = re.sub(r"\\(begin|end)\{(\w?matrix|smallmatrix)\*\}(?:\s*\[\w\])?", r"\\\1{\2}", text)
    text = re.sub(r"\\begin\{alignedat\}\s*\{\d+\}", r"\\begin{split}", text)
    return text.replace(r"\end{alignedat}", r"\end{split}")


def _ruled(text: str) -> str:
    """text with the matrices that have rules as arrays."""

    def array(found, left, right):
        columns = "c" * max(len(parted(row, "&")) for row in parted(found[1], r"\\\\"))
        return rf"\left{left}\begin{{array}}{{{columns}}}{found[1]}\end{{array}}\right{right}"

    inside = r"(?:(?!\\begin|\\end).)*"
    for name, sides in MATRICES.items():
        form = rf"\\begin\{{{name}\}}({inside}\\hline{inside})\\end\{{{name}\}}"
        text = re.sub(form, lambda found, sides=sides: array(found, *sides), text, flags=re.S)
    return text


def _environments(text: str) -> str:
    """text with what pandoc takes for lines of a text as matrices, and the gap behind the first column of cases."""
    text = _ruled(_renamed(text))
    for found in reversed([*re.finditer(r"(?<!_\{)\\substack(?=\s*\{)", text)]):
        lines, end = group(text, found.end()) or ("", 0)
        if end:
            text = text[: found.start()] + _matrix("ruled", "c", lines) + text[end:]
    for name in ("array", "smallmatrix", "aligned", "split", "gathered", "cases", "rcases"):
        for found in reversed([*re.finditer(rf"\\begin\{{{name}\}}", text)]):
            end = text.find(rf"\end{{{name}}}", found.end())
            if end < 0:
                continue
            before, after = text[: found.start()], text[end + len(name) + 6 :]
            alone = not (before + after).strip()
            text = before + _environment(name, text[found.end() : end], alone) + after
    return text


def _environment(name: str, body: str, alone: bool) -> str:
    if name == "smallmatrix":
        return _matrix("small", "", body)
    if name == "array":
        return _array(body)
    rows = [parted(row, "&") for row in parted(body, r"\\\\")]
    return _cases(name, body, rows) if name.endswith("cases") else _lines(name, body, rows, alone)


def _lines(name: str, body: str, rows: list[list[str]], alone: bool) -> str:
    """An environment of lines; within a formula they must not be those of all of it."""
    if name == "aligned":  # its pairs of columns stand apart
        body = r"\\".join(r"&\qquad ".join("&".join(row[i : i + 2]) for i in range(0, len(row), 2)) for row in rows)
    count = max(map(len, rows))
    columns = "c" * count if name == "gathered" else "rl" * (count // 2) + "r" * (count % 2)
    return rf"\begin{{{name}}}{body}\end{{{name}}}" if alone else _matrix("lined", columns, body)


def _cases(name: str, body: str, rows: list[list[str]]) -> str:
    if max(map(len, rows)) < 2:
        return one("half", _matrix("ruled", "l", body), "r125" if name == "rcases" else "l123")
    spaced = r"\\".join(r"&\quad ".join(row) if len(row) < 3 else "&".join(row) for row in rows)
    whole = rf"\begin{{cases}}{spaced}\end{{cases}}"
    return one("closed", whole) if name == "rcases" else whole


def _array(body: str) -> str:
    """An array with its rules; of columns that are not drawn here it stays what it is."""
    found = re.match(r"\s*(?:\[[tbc]\])?\s*\{((?:[^{}]|\{[^{}]*\})*)\}", body)
    columns = re.sub(r"\*\s*\{(\d)\}\s*\{([lcr|]+)\}", lambda m: m[2] * int(m[1]), found[1] if found else "")
    columns = re.sub(r"\s|@\{\s*\}", "", columns)
    if not found or not re.fullmatch(r"[lcr|]*[lcr][lcr|]*", columns):
        return rf"\begin{{array}}{body}\end{{array}}"
    lines, rules = [], ""
    for row in parted(body[found.end() :], r"\\\\"):
        if lines:  # the room below a line
            row = re.sub(r"^\s*\[\s*-?[\d.]+\s*\w\w\s*\]", "", row)
        while rule := re.match(r"\s*\\hline(?![A-Za-z])", row):
            rules += f"h{len(lines)}"
            row = row[rule.end() :]
        lines.append(row)
    if not lines[-1].strip():
        lines.pop()
    rules += "".join(f"v{len(columns[:at].replace('|', ''))}" for at, sign in enumerate(columns) if sign == "|")
    return _matrix("ruled", columns.replace("|", "") + rules, r"\\".join(lines))


def _matrix(name: str, option: str, body: str) -> str:
    return rf"\begin{{pmatrix}}{_mark(name, option)} {body}\end{{pmatrix}}"


def _halves(text: str) -> str:
    """text with the delimiters of one side, ``\\left. ... \\right|``."""
    for found in reversed([*re.finditer(r"\\left\s*(\.|\\[A-Za-z]+|\\.|\S)", text, re.S)]):
        end = next((m for m in _rights(text, found.end())), None)
        if not end or (found[1] == ".") == (end[1] == "."):
            if end and found[1] == ".":
                text = text[: found.start()] + text[found.end() : end.start()] + text[end.end() :]
            continue
        inside = text[found.end() : end.start()]
        sign = end[1] if found[1] == "." else found[1]
        if r"\middle" in inside or not (code := DELIMITERS.get(sign)):
            continue
        side = "r" if found[1] == "." else "l"
        text = text[: found.start()] + one("half", inside, f"{side}{ord(code)}") + text[end.end() :]
    return text


DELIMITERS = {sign: sign for sign in "()[]|/"} | {
    r"\{": "{", r"\}": "}", r"\lbrace": "{", r"\rbrace": "}", r"\vert": "|", r"\lvert": "|", r"\rvert": "|", r"\|": "‖",
    r"\Vert": "‖", r"\lVert": "‖", r"\rVert": "‖", r"\langle": "⟨", r"\rangle": "⟩", r"\lfloor": "⌊", r"\rfloor": "⌋",
    r"\lceil": "⌈", r"\rceil": "⌉", r"\lbrack": "[", r"\rbrack": "]",
}  # fmt: skip


def _rights(text: str, at: int):
    """The \\right that belongs to a \\left that ends at a place."""
    depth = 0
    for found in re.finditer(r"\\left\b|\\right\s*(\.|\\[A-Za-z]+|\\.|\S)", text[at:], re.S):
        if found[0] == r"\left":
            depth += 1
        elif depth:
            depth -= 1
        else:
            yield re.compile(re.escape(found[0][: -len(found[1])]) + f"({re.escape(found[1])})").match(
                text, at + found.start()
            )
            return


def _coloured(text: str, colours: dict[str, str]) -> str:
    """text with \\color, which holds to the end of its group, and its kind; of no known colour they stay."""

    def define(model, name, given, kind):
        colours[name] = _colour(kind, given, colours) or ""
        return ""

    def paint(model, name, body, function="coloured"):
        colour = _colour(model or "", name, colours)
        return one(function, body, colour) if colour else rf"\textcolor{{{name}}}{{{body}}}"

    text = replaced(text, "definecolor", 3, lambda _, name, model, given: define(None, name, given, model))
    for found in reversed([*re.finditer(r"\\color(?![A-Za-z])\s*(?:\[(\w+)\])?", text)]):
        if named := group(text, found.end()):
            end = _inner(text, named[1])
            text = text[: found.start()] + paint(found[1], named[0], text[named[1] : end]) + text[end:]
    text = replaced(text, "textcolor", 2, paint, optional=True)
    return replaced(text, "colorbox", 2, lambda m, c, b: paint(m, c, rf"\text{{{b}}}", "lighted"), optional=True)


def _colour(model: str, given: str, colours: dict[str, str]) -> str | None:
    """A colour of TeX as six hexadecimal digits."""
    given = given.strip()
    if given in colours:
        return colours[given]
    try:
        numbers = [float(one) for one in given.split(",")] if model in ("rgb", "RGB", "gray") else []
    except ValueError:
        return None
    if numbers:
        scale = 1 if model == "RGB" else 255
        rgb = [min(255, max(0, round(one * scale))) for one in numbers] * (3 if model == "gray" else 1)
        return "".join(f"{one:02x}" for one in rgb) if len(rgb) == 3 else None
    found = styles.colour(f"#{given}" if model == "HTML" else given)
    return found[1:7] if found else None


def _limits(text: str) -> str:
    """text whose \\limits and \\nolimits are functions of the sign before them."""
    while found := re.search(r"\s*\\(no)?limits(?![A-Za-z])\s*", text):
        start = _before(text, found.start())
        if start < 0:
            break
        name = "beside" if found[1] else "above"
        text = text[:start] + one(name, text[start : found.start()]) + text[found.end() :]
    return text


def _before(text: str, end: int) -> int:
    """Where the sign begins that ends at a place: a command with its arguments, a group or a letter; -1 for none."""
    if text[end - 1 : end] != "}":
        found = re.search(r"\\[A-Za-z]+$|\S$", text[:end])
        return found.start() if found else -1
    for at in range(end - 1, -1, -1):
        if text[at] == "{" and closing(text, at) == end:
            before = re.search(r"\\[A-Za-z]+\*?\s*$", text[:at])
            return before.start() if before else _before(text, at) if text[at - 1 : at] == "}" else at
    return -1
