"""Pictures with sliders that need no kernel.

Whatever moves is a function of slider values, by the names of its arguments. It is called here once for every
position, so what is shown comes from the same Python as the figures; the page only swaps it in (interactive.js).

    picture = Picture([Slider("m", "margin m", margins, start=0.3)], alt="The target cosine falls with the margin.")
    panel = picture.panel((0, 180, [0, 90, 180]), (-2, 1, [-2, -1, 0, 1]), "θ (degrees)", "target cosine")
    panel.line(lambda m: (degrees, target(m)), colour="#0173b2")
    picture.readout(lambda m: f"at 60°: {target(m)[60]:.2f}")
    picture

Without JavaScript (on paper, in a notebook that is not trusted) the picture at the start position is left.
"""

import hashlib
import html
import inspect
import itertools
import json
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex

LEFT, RIGHT, TOP, BOTTOM, LINE = 54, 14, 24, 44, 22  # room around a panel, and of a line of text, in pixels
ID = "picture-name"  # until the name is known
Scale = tuple[float, float, Sequence[float]]  # first, last, ticks


@dataclass
class Slider:
    """A slider over values, which the functions of a picture take under its name. play: milliseconds per position of
    a play button, or 0 for none. Raises ValueError if start is none of the values."""

    name: str
    label: str
    values: Sequence
    start: object
    form: str = "{:g}"
    play: int = 0

    def __post_init__(self):
        if self.start not in list(self.values):
            raise ValueError(f"slider {self.name!r}: start {self.start!r} is none of its values")


@dataclass
class Panel:
    """One pair of axes of a picture; its methods add what is drawn, in the units of the axes."""

    picture: "Picture"
    x: Scale
    y: Scale
    xlabel: str = ""
    ylabel: str = ""
    title: str = ""
    box: tuple[float, float, float, float] = (0, 0, 1, 1)
    parts: list = field(default_factory=list)
    held: Callable | None = None

    def line(self, f, colour="black", width=2.0, dash="", fill="none", opacity=1.0) -> None:
        """A curve: f gives its coordinates (x, y), arrays of one length or numbers; NaN leaves a gap."""
        look = f'fill="{_hex(fill)}" stroke="{_hex(colour)}" stroke-width="{width}" opacity="{opacity}"'
        self.parts.append((f, self._path, f'{look} stroke-dasharray="{dash}" stroke-linejoin="round"'))

    def dots(self, f, colour="black", size=8.0, opacity=1.0) -> None:
        """Points of one colour: f gives (x, y)."""
        look = f'fill="none" stroke="{_hex(colour)}" stroke-width="{size}" opacity="{opacity}" stroke-linecap="round"'
        self.parts.append((f, self._dots, look))

    def text(self, f, colour="black", anchor="start", size=13) -> None:
        """Words: f gives (x, y, text)."""
        self.parts.append((f, self._text, f'fill="{_hex(colour)}" text-anchor="{anchor}" font-size="{size}"'))

    def handle(self, f, colour="black", size=14.0) -> None:
        """A point that can be dragged, or led by clicking: f gives (x, y)."""
        self.dots(f, colour, size)
        self.held = f

    def _pixels(self, x, y) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.broadcast_arrays(np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float)))
        (x0, x1, _), (y0, y1, _), (left, top, right, bottom) = self.x, self.y, self.box
        return left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top)

    def _path(self, x, y) -> str:
        """The d of a path through the points that begins anew behind each NaN."""
        words, pen = [], "M"
        for u, v in zip(*self._pixels(x, y), strict=True):
            if not np.isfinite([u, v]).all():
                pen = "M"
                continue
            words.append(f"{pen}{u:.1f},{np.clip(v, -999, 9999):.1f}")
            pen = "L"
        return "".join(words) or "M-9,-9"

    def _dots(self, x, y) -> str:
        pixels = zip(*self._pixels(x, y), strict=True)
        return "".join(f"M{u:.1f},{v:.1f}h0" for u, v in pixels if np.isfinite([u, v]).all()) or "M-9,-9"

    def _text(self, x, y, words) -> list:
        (u,), (v,) = self._pixels(x, y)
        return [f"{u:.1f}", f"{v:.1f}", str(words)]

    def axes(self) -> str:
        """The frame, the ticks and the names of the axes, as SVG."""
        left, top, right, bottom = self.box
        out = [f'<path d="M{left},{top}V{bottom}H{right}" fill="none" stroke="#555"/>']
        for tick in self.x[2]:
            (u,), _ = self._pixels(tick, self.y[0])
            out.append(f'<path d="M{u:.1f},{top}V{bottom}" stroke="#e6e6e6"/>')
            out.append(_words(u, bottom + 16, f"{tick:g}", "middle"))
        for tick in self.y[2]:
            _, (v,) = self._pixels(self.x[0], tick)
            out.append(f'<path d="M{left},{v:.1f}H{right}" stroke="#e6e6e6"/>')
            out.append(_words(left - 6, v + 4, f"{tick:g}", "end"))
        out.append(_words((left + right) / 2, bottom + 36, self.xlabel, "middle"))
        at = left - 38, (top + bottom) / 2
        out.append(_words(*at, self.ylabel, "middle", f' transform="rotate(-90 {at[0]} {at[1]})"'))
        out.append(_words(left, top - 8, self.title, "start", ' font-weight="bold"'))
        return "".join(out)


class Picture:
    """Panels side by side over sliders; the last expression of a cell shows it. alt says what is to be seen.

    It keeps every position of the sliders: two of 20 make 400, and 60 points a curve then 0.3 MB.
    """

    def __init__(self, sliders: Sequence[Slider], alt: str, size: tuple[int, int] = (680, 320)):
        self.sliders, self.alt, self.size = sliders, alt, size
        self.panels: list[Panel] = []
        self.lines: list[Callable] = []

    def panel(self, x: Scale, y: Scale, xlabel: str = "", ylabel: str = "", title: str = "") -> Panel:
        self.panels.append(Panel(self, x, y, xlabel, ylabel, title))
        return self.panels[-1]

    def readout(self, f: Callable[..., str]) -> None:
        """A line of text under the panels."""
        self.lines.append(f)

    def _follows(self, f) -> list[int]:
        """The sliders, by place, whose names are arguments of f. Raises ValueError for another argument."""
        names = [slider.name for slider in self.sliders]
        unknown = [name for name in inspect.signature(f).parameters if name not in names]
        if unknown:
            raise ValueError(f"no slider is called {unknown[0]!r}, only {', '.join(names)}")
        return [names.index(name) for name in inspect.signature(f).parameters]

    def _frames(self, f, draw) -> dict:
        """What f draws at every position of the sliders that it follows, the last one running fastest."""
        follows = self._follows(f)
        shown = [f(*values) for values in itertools.product(*(self.sliders[k].values for k in follows))]
        return {"follows": follows, "frames": [draw(*s) if isinstance(s, tuple) else draw(s) for s in shown]}

    def _start(self, part: dict):
        index = 0
        for k in part["follows"]:
            values = list(self.sliders[k].values)
            index = index * len(values) + values.index(self.sliders[k].start)
        return part["frames"][index]

    def _drawn(self) -> tuple[str, dict]:
        """The SVG at the start, and what the page needs to change it."""
        width, height = self.size
        each, bottom = width / len(self.panels), height - BOTTOM - LINE * len(self.lines)
        body, parts, handles = [], [], []
        for n, panel in enumerate(self.panels):
            panel.box = n * each + LEFT, TOP, (n + 1) * each - RIGHT, bottom
            left, top, right, low = panel.box
            body.append(panel.axes())
            clip = f'<clipPath id="{ID}-{n}"><path d="M{left},{top}H{right}V{low}H{left}Z"/></clipPath>'
            body.append(f'{clip}<g clip-path="url(#{ID}-{n})">')
            for f, draw, look in panel.parts:
                parts.append(self._frames(f, draw))
                body.append(_element(len(parts) - 1, self._start(parts[-1]), look))
            body.append("</g>")
            if panel.held:
                places = self._frames(panel.held, lambda x, y, to=panel._pixels: [float(v[0]) for v in to(x, y)])
                handles.append({"follows": places["follows"], "places": np.round(places["frames"], 1).tolist()})
                handles[-1]["panel"] = panel.box
        for n, f in enumerate(self.lines):
            y = height - LINE * (len(self.lines) - n) + 14
            parts.append(self._frames(f, lambda words, y=y: [str(LEFT), str(y), words]))
            body.append(_element(len(parts) - 1, self._start(parts[-1]), 'font-size="14" fill="#222"'))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{html.escape(self.alt)}" font-family="sans-serif" font-size="13" '
            f'style="width:100%;height:auto;background:#fff">{"".join(body)}</svg>'
        )
        sliders = [
            {
                "label": s.label, "labels": [s.form.format(v) for v in s.values],
                "start": list(s.values).index(s.start), "play": s.play,
            }
            for s in self.sliders
        ]  # fmt: skip
        return svg, {"sliders": sliders, "parts": parts, "handles": handles}

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        svg, data = self._drawn()
        # the same picture has the same name, so that running a notebook again changes nothing in it
        name = data["id"] = "picture-" + hashlib.sha256(json.dumps([svg, data]).encode()).hexdigest()[:12]
        svg = svg.replace(ID, name)
        still = f'<img alt="{html.escape(self.alt)}" src="data:image/svg+xml,{urllib.parse.quote(svg)}">'
        script = Path(__file__).with_name("interactive.js").read_text(encoding="utf-8")
        call = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", r"\u003c")
        page = (
            f'<figure class="{name}" style="max-width:{self.size[0]}px;margin:0 auto">{still}</figure>'
            f"<script>{script.rstrip()}({call})</script>"
        )
        return {"text/html": page, "image/svg+xml": svg, "text/plain": self.alt}


def _hex(colour) -> str:
    return colour if isinstance(colour, str) and colour == "none" else to_hex(colour)


def _words(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222"{more}>{html.escape(text)}</text>'


def _element(number: int, frame, look: str) -> str:
    if isinstance(frame, str):
        return f'<path data-part="{number}" d="{frame}" {look}/>'
    x, y, text = frame
    return f'<text data-part="{number}" x="{x}" y="{y}" {look}>{html.escape(text)}</text>'
