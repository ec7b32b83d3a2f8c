"""A terminal's screen and its colours (ECMA-48), as they are in the end of what a cell prints."""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

SEQUENCE = re.compile(
    r"\x1b\[([0-?]*)[ -/]*([@-~])"  # parameters and a letter that says what is done
    r"|\x1b\]([^\x07\x1b]*)(?:\x07|\x1b\\)"  # a command of the window: title, link, picture
    r"|\x1b[PX^_].*?(?:\x07|\x1b\\)|\x1b[ -/]+([0-~])|\x1b([0-~])",
    re.S,
)
PICTURE = re.compile(r"\x1b\]1337;File=|\x1bP[\d;]*q|\x1b_G")  # of iTerm2, as sixels, of kitty
LINES = str.maketrans("jklmnqtuvwxa`f", "┘┐┌└┼─├┤┴┬│▒◆°")  # the letters of DEC's set of lines
# black, red, green, yellow, blue, magenta, cyan, white, dark enough to be read on paper; behind text they are light
INK = ("#24292f", "#b3261e", "#1a7431", "#7d5800", "#0a58b8", "#8e2c90", "#0b6b78", "#5f6670")
PAPER = ("#57606a", "#f9d6d3", "#cdeed5", "#f7e7b0", "#d3e5fb", "#f0d8f1", "#cdebef", "#e6e8eb")
ATTRIBUTES = {1: "bold", 5: "bold", 3: "italic", 4: "underline", 7: "reverse", 9: "strike"}
OFF = {21: "bold", 22: "bold", 23: "italic", 24: "underline", 27: "reverse", 29: "strike"}


class Style(NamedTuple):
    """ink, paper: colours #rrggbb of a letter and behind it, "" for the usual; link: an address."""

    ink: str = ""
    paper: str = ""
    bold: bool = False
    italic: bool = False
    underline: bool = False
    reverse: bool = False
    strike: bool = False
    link: str = ""


BLANK = " ", Style()


class Screen:
    """A terminal as wide and as high as what is printed on it, whose top is the first line of the output."""

    def __init__(self):
        self.rows: list[list[tuple[str, Style]]] = [[]]
        self.row = self.column = 0
        self.saved, self.style, self.lines = (0, 0), Style(), False
        self.trimmed: set[int] = set()  # rows that were begun again: blanks at their end were to hide what stood there

    def print(self, text: str) -> None:
        """Text with its sequences."""
        at = 0
        for found in SEQUENCE.finditer(text):
            self._write(text[at : found.start()])
            at = found.end()
            codes, done, window, charset, single = found.groups()
            if codes and not re.fullmatch(r"[\d;:]*", codes):
                continue  # of one kind of terminal, as ?25l, which hides the cursor
            if done == "m":
                self.style = _changed(self.style, codes)
            elif done:
                self._move(done, [int(code or 0) for code in re.split("[;:]", codes)])
            elif window and window.startswith("8;"):
                self.style = self.style._replace(link=window.split(";", 2)[-1])
            elif charset and found[0][1] == "(":
                self.lines = charset == "0"
            elif single:
                self._move(
                    {"7": "s", "8": "u", "M": "A", "D": "B", "E": "E", "c": "J"}.get(single, ""), [2 * (single == "c")]
                )
        self._write(text[at:])

    def _write(self, text: str) -> None:
        for letter in text.translate(LINES) if self.lines else text:
            row = self.rows[self.row]
            if letter in "\n\v":
                self._to(self.row + 1, 0)
            elif letter == "\r":
                self.column = 0
                self.trimmed.add(self.row)
            elif letter == "\b":  # as in Jupyter, it takes the letter back
                self.column = max(0, self.column - 1)
                del row[self.column : self.column + 1]
            elif letter == "\t" or (letter >= " " and letter != "\x7f"):
                row += [BLANK] * (self.column - len(row))
                row[self.column : self.column + 1] = [(letter, self.style)]
                self.column += 1

    def _to(self, row: int, column: int) -> None:
        """The cursor there, at most a screen below the last line, and in no column that no screen has."""
        self.row, self.column = min(max(0, row), len(self.rows) + 99), min(max(0, column), max(self.column, 999))
        self.rows += [[] for _ in range(self.row + 1 - len(self.rows))]

    def _move(self, done: str, codes: list[int]) -> None:
        """What a sequence does that is no colour; what does nothing to letters is passed over."""
        first, n, row, column = codes[0], max(1, codes[0]), self.row, self.column
        places = {
            "A": (row - n, column), "B": (row + n, column), "C": (row, column + n), "D": (row, column - n),
            "E": (row + n, 0), "F": (row - n, 0), "G": (row, n - 1), "d": (n - 1, column), "u": self.saved,
            "H": (n - 1, max(1, *codes[1:2], 1) - 1), "M": (row, column),
        }  # fmt: skip
        places |= {same: places[one] for same, one in zip("aef`", "CBHG", strict=True)}
        if done == "s":
            self.saved = row, column
        elif done == "J":
            gone = {0: range(row + 1, len(self.rows)), 1: range(row)}.get(first, range(len(self.rows)))
            for other in gone:
                self.rows[other] = []
            self._erase(first)
            if first > 1:  # what is printed next is the first of the page
                self._to(0, 0)
        elif done == "K":
            self._erase(first)
        elif done == "P":
            del self.rows[row][column : column + n]
        elif done in ("X", "@"):
            self.rows[row] += [BLANK] * (column - len(self.rows[row]))
            self.rows[row][column : column + n * (done == "X")] = [BLANK] * n
        elif done == "L":
            self.rows[row:row] = [[] for _ in range(n)]
        elif done == "M":
            del self.rows[row : row + n]
        if done in places:
            self._to(*places[done])

    def _erase(self, part: int) -> None:
        """The cursor's line to its end, to its beginning, or all of it."""
        row = self.rows[self.row]
        if part != 1:
            del row[self.column :]
        if part:
            row[: self.column] = [BLANK] * min(self.column, len(row))


def terminal(text: str) -> tuple[str, list[tuple[int, int, int, Style]]]:
    """What a terminal shows in the end, wherever the cursor was moved; and what of it is styled: (line from 1, first
    letter from 0, behind the last, style)."""
    screen, spans = Screen(), []
    screen.print(text.replace("\r\n", "\n"))
    for number, row in enumerate(screen.rows):
        while row and row[-1][0] == " " and (number in screen.trimmed or row[-1] is BLANK):
            row.pop()
        start = 0
        for end in range(1, len(row) + 1):
            if end == len(row) or row[end][1] != row[start][1]:
                if row[start][1] != Style():
                    spans.append((number + 1, start, end, row[start][1]))
                start = end
    return "\n".join("".join(letter for letter, _ in row) for row in screen.rows), spans


def typst(spans: list[tuple[int, int, int, Style]]) -> str:
    """The spans as a dictionary of typst, by line: the argument of ``ansi`` in layout/report.typ."""
    by_line: dict[int, list[str]] = {}
    for number, start, end, style in spans:
        ink, paper = (style.paper or "#ffffff", style.ink or INK[0]) if style.reverse else (style.ink, style.paper)
        colours = (f'rgb("{colour}")' if colour else "none" for colour in (_legible(ink, paper), paper))
        flags = (str(flag).lower() for flag in (style.bold, style.italic, style.underline, style.strike))
        link = json.dumps(style.link, ensure_ascii=False) if re.match("https?:|mailto:", style.link) else "none"
        by_line.setdefault(number, []).append(f"({', '.join([str(start), str(end), *colours, *flags, link])})")
    return "(" + ", ".join(f'"{number}": ({", ".join(spans)},)' for number, spans in by_line.items()) + ")"


def _changed(style: Style, codes: str) -> Style:
    # 38:2::r:g:b is 38;2;r;g;b with an empty place for a colour space
    codes = re.sub(r"([345]8):2:\d*:(?=\d+:\d+:\d+)", r"\1;2;", codes)
    codes = re.sub(r"\b4:0\b", "24", re.sub(r"\b4:[1-9]", "4", codes)).replace(":", ";")  # double or wavy lines
    rest = iter([int(code or 0) for code in codes.split(";")])
    for code in rest:
        if code == 0:
            style = Style(link=style.link)
        elif code in ATTRIBUTES:
            style = style._replace(**{ATTRIBUTES[code]: True})
        elif code in OFF:
            style = style._replace(**{OFF[code]: False})
        elif code == 58:  # of the line below the letters
            _given(rest)
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
