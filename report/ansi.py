"""The colours of a terminal (ECMA-48's SGR sequences), as Jupyter shows them in what a cell prints."""

import re
from collections.abc import Iterator
from typing import NamedTuple

SEQUENCE = re.compile(r"\x1b\[([0-9;:]*)m|\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\^_]")
ERASE = "\ue013\ue014\ue015"  # to the end of the line, to its beginning, all of it
# black, red, green, yellow, blue, magenta, cyan, white, dark enough to be read on paper; behind text they are light
INK = ("#24292f", "#b3261e", "#1a7431", "#7d5800", "#0a58b8", "#8e2c90", "#0b6b78", "#5f6670")
PAPER = ("#57606a", "#f9d6d3", "#cdeed5", "#f7e7b0", "#d3e5fb", "#f0d8f1", "#cdebef", "#e6e8eb")
ATTRIBUTES = {1: "bold", 3: "italic", 4: "underline", 7: "reverse", 9: "strike"}
OFF = {21: "bold", 22: "bold", 23: "italic", 24: "underline", 27: "reverse", 29: "strike"}


class Style(NamedTuple):
    """ink, paper: colours #rrggbb of a letter and behind it, "" for the usual."""

    ink: str = ""
    paper: str = ""
    bold: bool = False
    italic: bool = False
    underline: bool = False
    reverse: bool = False
    strike: bool = False


def styled(text: str) -> list[tuple[str, Style]]:
    """The letters of text without its sequences, each with its style."""
    letters, style, at = [], Style(), 0
    for found in SEQUENCE.finditer(text):
        letters += [(letter, style) for letter in text[at : found.start()]]
        at = found.end()
        if erased := re.fullmatch(r"\x1b\[([0-2]?)K", found[0]):
            letters.append((ERASE["012".index(erased[1] or "0")], style))
        if found[1] is not None:
            style = _changed(style, found[1])
    return letters + [(letter, style) for letter in text[at:]]


def terminal(text: str) -> tuple[str, list[tuple[int, int, int, Style]]]:
    """What a terminal shows in the end, where a carriage return begins the line again and a backspace takes a letter
    back; and what of it is styled: (line from 1, first letter from 0, behind the last, style)."""
    rows, spans = [[]], []
    now: list[tuple[str, Style]] = []
    column, again = 0, False
    for letter, style in [*styled(text.replace("\r\n", "\n")), ("\n", Style())]:
        if letter == "\n":
            while again and now and now[-1][0] == " ":
                now.pop()
            rows[-1] = now
            rows.append([])
            now, column, again = [], 0, False
        elif letter == "\r":
            column, again = 0, True
        elif letter in ERASE:
            now[:column] = [(" ", Style())] * column if letter != ERASE[0] else now[:column]
            now[column:] = [] if letter != ERASE[1] else now[column:]
        elif letter == "\b":
            if column:
                column -= 1
                del now[column]
        elif letter == "\t" or (letter >= " " and letter != "\x7f"):
            now[column : column + 1] = [(letter, style)]
            column += 1
    for number, row in enumerate(rows, 1):
        start = 0
        for end in range(1, len(row) + 1):
            if end == len(row) or row[end][1] != row[start][1]:
                if row[start][1] != Style():
                    spans.append((number, start, end, row[start][1]))
                start = end
    return "\n".join("".join(letter for letter, _ in row) for row in rows[:-1]), spans


def typst(spans: list[tuple[int, int, int, Style]]) -> str:
    """The spans as a dictionary of typst, by line: the argument of ``ansi`` in layout/report.typ."""
    by_line: dict[int, list[str]] = {}
    for number, start, end, style in spans:
        ink, paper = (style.paper or "#ffffff", style.ink or INK[0]) if style.reverse else (style.ink, style.paper)
        colours = (f'rgb("{colour}")' if colour else "none" for colour in (_legible(ink, paper), paper))
        flags = (str(flag).lower() for flag in (style.bold, style.italic, style.underline, style.strike))
        by_line.setdefault(number, []).append(f"({', '.join([str(start), str(end), *colours, *flags])})")
    return "(" + ", ".join(f'"{number}": ({", ".join(spans)},)' for number, spans in by_line.items()) + ")"


def _changed(style: Style, codes: str) -> Style:
    # 38:2::r:g:b is 38;2;r;g;b with an empty place for a colour space
    codes = re.sub(r"([34]8):2:\d*:(?=\d+:\d+:\d+)", r"\1;2;", codes).replace(":", ";")
    rest = iter([int(code or 0) for code in codes.split(";")])
    for code in rest:
        if code == 0:
            style = Style()
        elif code in ATTRIBUTES:
            style = style._replace(**{ATTRIBUTES[code]: True})
        elif code in OFF:
            style = style._replace(**{OFF[code]: False})
        elif code in (38, 48):
            style = style._replace(**{"ink" if code == 38 else "paper": _given(rest)})
        elif code in (39, 49):
            style = style._replace(**{"ink" if code == 39 else "paper": ""})
        elif 30 <= code <= 37 or 90 <= code <= 97:
            style = style._replace(ink=INK[code % 10])
        elif 40 <= code <= 47 or 100 <= code <= 107:
            style = style._replace(paper=PAPER[code % 10])
    return style


def _given(codes: Iterator[int]) -> str:
    """The colour that 5;n or 2;r;g;b names; "" for what names none."""
    kind = next(codes, 0)
    if kind == 2:
        rgb = [min(next(codes, 0), 255) for _ in range(3)]
        return "#" + "".join(f"{one:02x}" for one in rgb)
    n = next(codes, 256) if kind == 5 else 256
    if n < 16:
        return INK[n % 8]
    if n < 232:  # a cube of six steps
        levels = (0, 95, 135, 175, 215, 255)
        return "#" + "".join(f"{levels[(n - 16) // step % 6]:02x}" for step in (36, 6, 1))
    return "#" + 3 * f"{8 + 10 * (n - 232):02x}" if n < 256 else ""  # greys


def _legible(ink: str, paper: str) -> str:
    """The ink, darker where it could not be read on white: terminals are often black."""
    if not ink or paper:
        return ink
    rgb = [int(ink[i : i + 2], 16) for i in (1, 3, 5)]
    while 0.2126 * rgb[0] ** 2.2 + 0.7152 * rgb[1] ** 2.2 + 0.0722 * rgb[2] ** 2.2 > 0.2 * 255**2.2:
        rgb = [int(0.9 * one) for one in rgb]
    return "#" + "".join(f"{one:02x}" for one in rgb)
