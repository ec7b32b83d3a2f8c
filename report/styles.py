"""CSS as typst draws it: what the style of an element of HTML says of its letters, its ground and its borders."""

import re

import tinycss2
from tinycss2.color4 import parse_color

TEXT = 448  # points, the width of the text
SIDES = ("top", "right", "bottom", "left")
BORDERS = {f"border-{side}-{part}" for side in SIDES for part in ("color", "style", "width")}
# of all that a style may say: what is drawn of it
DRAWN = BORDERS | {
    "color", "font-weight", "font-style", "font-size", "text-decoration-line", "background-color", "background-image",
    "display", "visibility", "text-align", "width", "height", "opacity", "direction", "list-style-type",
    "text-transform", "white-space",
}  # fmt: skip
# and what is passed over: where something stands and how much room it has, how it moves or answers, mere decoration
PASSED = re.compile(
    r"-.*|(margin|padding|inset|flex|grid|align|justify|place|gap|row-gap|column|border-(radius|spacing|collapse|image|"
    r"(top|bottom)-(left|right)-radius)|outline|box-(shadow|sizing|decoration)|text-(shadow|overflow|indent|rendering|"
    r"underline|decoration|wrap|size|justify|orientation|emphasis)|font-(family|variant|feature|stretch|display|kerning|"
    r"optical|variation|smooth|synthesis)|overflow|transition|animation|min|max|object|scroll|word|break|page|orphans|"
    r"widows|hyphens|line|letter-spacing|vertical-align|table-layout|caption-side|empty-cells|cursor|pointer-events|"
    r"user-select|float|clear|top|right|bottom|left|z-index|order|content|quotes|counter|tab-size|will-change|contain|"
    r"appearance|resize|list-style-(position|image)|background-(position|repeat|size|attachment|origin|clip|blend-mode)|"
    r"src|unicode|color-scheme|forced|print-color-adjust|accent-color|caret|isolation|touch|image-rendering|fill|stroke|"
    r"stop|zoom|backface|perspective|all|mso|aspect-ratio|position-|white-space-collapse|overscroll|interpolation|"
    r"dominant-baseline|text-anchor|shape-rendering|paint-order)(-.*)?"
)
USUAL = {
    "none", "normal", "auto", "initial", "inherit", "unset", "revert", "static", "relative", "sticky", "visible", "0",
    "0px", "1", "transparent", "currentcolor", "medium", "",
}  # fmt: skip
SIZES = {"xx-small": 0.6, "x-small": 0.75, "small": 0.89, "smaller": 0.83, "large": 1.2, "larger": 1.2,
         "x-large": 1.5, "xx-large": 2, "xxx-large": 3}  # fmt: skip
UNITS = {"px": 0.75, "pt": 1, "pc": 12, "in": 72, "cm": 28.35, "mm": 2.835, "q": 0.709}  # in points
MARKERS = {"square": "▪", "circle": "◦", "disc": "•", "none": ""}


def parsed(style: str) -> list[tuple[str, str, bool]]:
    """The declarations of a style, each of one property: its name, its value and whether it is important."""
    found = []
    for one in tinycss2.parse_blocks_contents(style, skip_comments=True, skip_whitespace=True):
        if one.type == "declaration":
            name = one.name if one.name.startswith("--") else one.lower_name
            found.append((name, tinycss2.serialize(one.value).strip(), one.important))
    return found


def declared(style: str) -> dict[str, str]:
    """The properties of a style with their values, what is written for several of them as each of them."""
    found: dict[str, str] = {}
    for name, value, _ in parsed(style):
        for one, given in _longhands(name, value):
            found.pop(one, None)
            found[one] = given
    return found


def _words(value: str) -> list[str]:
    tokens = [token for token in tinycss2.parse_component_value_list(value) if token.type != "whitespace"]
    return [tinycss2.serialize([token]).strip() for token in tokens]


def _longhands(name: str, value: str) -> list[tuple[str, str]]:
    words = _words(value)
    if name == "background":
        picture = next((word for word in words if "gradient(" in word or word.startswith("url(")), "none")
        return [("background-image", picture), ("background-color", next(filter(colour, words), "transparent"))]
    if name in ("border", *(f"border-{side}" for side in SIDES)):
        sides = SIDES if name == "border" else (name[7:],)
        width = next((word for word in words if _length(word) is not None or word in THICK), "medium")
        line = next((word for word in words if word in LINES), "none")
        shown = next(filter(colour, words), "currentcolor")
        parts = (("width", width), ("style", line), ("color", shown))
        return [(f"border-{side}-{part}", given) for side in sides for part, given in parts]
    if name in ("border-color", "border-style", "border-width") and words:
        given = [words[i if i < len(words) else max(0, i - 2) if i - 2 < len(words) else 0] for i in range(4)]
        return [(f"border-{side}-{name[7:]}", one) for side, one in zip(SIDES, given, strict=True)]
    if name == "font":
        size = next((word for word in words if _size(word)), "")
        weight = next((w for w in words if w in ("bold", "bolder", "lighter") or re.fullmatch("[1-9]00", w)), "normal")
        slope = next((word for word in words if word in ("italic", "oblique")), "normal")
        return [("font-size", size), ("font-weight", weight), ("font-style", slope)]
    if name == "text-decoration":
        return [("text-decoration-line", value)]
    if name == "list-style":
        return [("list-style-type", next((word for word in words if word not in ("inside", "outside")), ""))]
    return [(name, value)]


def undrawn(style: str) -> list[str]:
    """Of the declarations of a style, those that change what is seen and are not drawn here."""
    found = []
    for name, value in declared(style).items():
        low = value.lower()
        if low in USUAL or (PASSED.fullmatch(name) and name not in DRAWN):
            continue
        known = name in DRAWN
        if name == "color" or name.endswith("-color"):
            known = parse_color(value) is not None
        elif name == "background-image":
            known = low.startswith(("linear-gradient(", "url(", "-webkit"))  # of a picture more is said
        elif name == "font-size":
            known = bool(_size(low))
        elif name == "opacity":
            known = _part(value) is not None
        if not known:
            found.append(f"{name}: {' '.join(value.split())[:40]}")
    return found


LINES = {"solid", "dashed", "dotted", "double", "groove", "ridge", "inset", "outset", "none", "hidden"}
THICK = {"thin": 0.75, "medium": 2.25, "thick": 3.75}


def _length(value: str) -> float | None:
    """A length in points; None for what is none, as a percentage."""
    found = re.fullmatch(r"(-?[\d.]+)([a-z]*)", value.strip().lower())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        return None
    if not found or found[2] not in {*UNITS, "em", "rem", "ex", "ch", ""} or (not found[2] and number):
        return None
    return number * (UNITS.get(found[2]) or {"ex": 5, "ch": 5}.get(found[2], 10))


def _part(value: str) -> float | None:
    """A number, or a percentage, as a part of one."""
    found = re.fullmatch(r"([\d.]+)(%?)", value.strip())
    return min(1.0, float(found[1]) / (100 if found[2] else 1)) if found else None


def colour(css: str) -> str:
    """A colour of CSS as #rrggbb, or #rrggbbaa where something shines through; "" for none."""
    found = parse_color(css)
    if found is None or isinstance(found, str) or not found.alpha:
        return ""
    try:
        rgb = [min(255, max(0, round(255 * one))) for one in found.to("srgb")[:3]]
    except NotImplementedError:
        return ""
    rgb += [round(255 * found.alpha)] * (found.alpha < 1)
    return "#" + "".join(f"{one:02x}" for one in rgb)


def undisplayed(style: dict[str, str]) -> bool:
    gone = style.get("visibility") in ("hidden", "collapse") or (_part(style.get("opacity", "")) or 1) < 0.02
    return style.get("display") == "none" or gone or bool(re.fullmatch(r"0*\.?0+%?", style.get("opacity", "")))


def letters(style: dict[str, str]) -> dict[str, str]:
    """The arguments of ``styled`` in layout/report.typ for a style's letters, as code of typst."""
    found = {}
    if ink := colour(style.get("color", "")):
        found["fill"] = f'rgb("{ink}")'
    weight = style.get("font-weight", "")
    if weight in ("bold", "bolder", "normal", "lighter") or weight.isdigit():
        found["weight"] = '"bold"' if weight[:4] == "bold" or (weight.isdigit() and int(weight) >= 600) else '"regular"'
    if style.get("font-style") in ("italic", "oblique", "normal"):
        found["style"] = f'"{style["font-style"]}"'
    if size := _size(style.get("font-size", "").lower()):
        found["size"] = size
    if style.get("direction") in ("rtl", "ltr"):
        found["dir"] = style["direction"]
    return found


def _size(value: str) -> str:
    """A size of letters, none too small or too large for a page."""
    if value in SIZES:
        return f"{SIZES[value]}em"
    if percent := re.fullmatch(r"(\d*\.?\d+)%", value):
        number: float | None = float(percent[1]) / 100
    else:
        number = _length(value)
        number = number / (9.75 if value.endswith("px") else 10) if number else None  # 13 px in JupyterLab
    return f"{min(4, max(0.4, number)):.2f}em" if number and number > 0 else ""


def lines(style: dict[str, str]) -> list[str]:
    """Of underline and strike, those that a style draws."""
    said = style.get("text-decoration-line", "")
    return [name for name, word in (("underlined", "underline"), ("struck", "line-through")) if word in said]


def faded(css: str, part: float) -> str:
    """A colour of which a part is left, as opacity makes it."""
    full = colour(css)
    return f"{full[:7]}{round(part * int(full[7:] or 'ff', 16)):02x}" if full else css


def on_white(hexadecimal: str) -> str:
    """A colour #rrggbb, or #rrggbbaa as it looks on white."""
    if len(hexadecimal) < 9:
        return hexadecimal
    part = int(hexadecimal[7:], 16) / 255
    rgb = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - part * (255 - one)):02x}" for one in rgb)


def width(style: dict[str, str]) -> str:
    """The width of a box as code of typst, "" for that of the text."""
    value = style.get("width", "")
    if re.fullmatch(r"\d*\.?\d+%", value):
        return f"{min(100, float(value[:-1])):.4g}%"
    points = _length(value)
    return f"{points:.4g}pt" if points and 0 < points < TEXT else ""


def height(style: dict[str, str]) -> str:
    points = _length(style.get("height", ""))
    return f"{min(600, points):.4g}pt" if points and points > 0 else ""


def ground(style: dict[str, str]) -> str:
    """What is drawn behind the letters, as code of typst: a colour or the bars of a gradient; "" for nothing."""
    for token in tinycss2.parse_component_value_list(style.get("background-image", "")):
        if token.type == "function" and token.lower_name == "linear-gradient":
            return _gradient(token.arguments)
    paper = colour(style.get("background-color", ""))
    return f'rgb("{paper}")' if paper else ""


def _gradient(tokens: list) -> str:
    parts, angle, stops = [[]], 180.0, []
    for token in tokens:
        if token == ",":
            parts.append([])
        elif token.type != "whitespace":
            parts[-1].append(token)
    for part in parts:
        if not part:
            continue
        if part[0].type == "dimension":
            angle = part[0].value
        elif part[0] == "to" or getattr(part[0], "lower_value", "") == "to":
            sides = {"top": 0.0, "right": 90.0, "bottom": 180.0, "left": 270.0}
            angle = sides.get(getattr(part[-1], "lower_value", ""), 180.0)
        else:
            shown = colour(tinycss2.serialize(part[:1])) or "#ffffff00"
            places = [token.value for token in part[1:] if token.type in ("percentage", "number")]
            stops += [(shown, place) for place in places or [None]]
    if not stops:
        return ""
    count, reached, code = len(stops) - 1, 0.0, []
    for number, (shown, place) in enumerate(stops):
        reached = min(100, max(reached, 100 * number / max(1, count) if place is None else place))
        if not number and reached:
            code.append(f'(rgb("{shown}"), 0%)')
        code.append(f'(rgb("{shown}"), {reached:.6g}%)')
    if reached < 100 or len(code) < 2:
        code.append(f'(rgb("{shown}"), 100%)')
    return f"gradient.linear({', '.join(code)}, angle: {angle - 90:.6g}deg, space: rgb)"


def borders(style: dict[str, str]) -> str:
    """The lines around, as a dictionary of typst; "" for none."""
    found = {}
    for side in SIDES:
        line, wide, shown = (style.get(f"border-{side}-{part}", "") for part in ("style", "width", "color"))
        points = THICK.get(wide, _length(wide) if wide else 2.25)
        if line in LINES - {"none", "hidden"} and points:
            dash = f', dash: "{line}"' if line in ("dashed", "dotted") else ""
            colours = colour(shown) or colour(style.get("color", "")) or "#000000"
            found[side] = f'(thickness: {min(points, 4):.3g}pt, paint: rgb("{colours}"){dash})'
    return f"({', '.join(f'{side}: {line}' for side, line in found.items())})" if found else ""


def set_rules(style: dict[str, str]) -> list[str]:
    """What holds for all of a block, as rules of typst."""
    found = []
    if drawn := letters(style):
        found.append(f"text({', '.join(f'{name}: {code}' for name, code in drawn.items())})")
    if (place := style.get("text-align", "")) in ("left", "right", "center", "start", "end"):
        found.append(f"align({place})")
    if (marker := style.get("list-style-type", "")) in MARKERS:
        found.append(f"list(marker: [{MARKERS[marker]}])")
        found += ["enum(numbering: _ => [])"] if marker == "none" else []
    return found


# ---------------------------------------------------------------- pandoc's document


def draw(node) -> None:
    """In pandoc's JSON, every style of a span, a block, a table and its cells as what pandoc or the layout draws."""
    if isinstance(node, list):
        for one in node:
            draw(one)
    elif isinstance(node, dict):
        if node.get("t") == "Span":
            _span(node)
        elif node.get("t") == "Div":
            _block(node)
        elif node.get("t") == "Table":
            _table(node["c"])
        draw(list(node.values()))


def _taken(attributes: list) -> dict[str, str]:
    """The style of pandoc's attributes, which is taken out of them."""
    pairs = dict(attributes[2])
    style = pairs.pop("style", "")
    attributes[2] = [list(pair) for pair in pairs.items()]
    return declared(style)


def _raw(code: str) -> dict:
    return {"t": "RawInline", "c": ["typst", code]}


def arguments(style: dict[str, str], behind: bool = True) -> str:
    """The arguments of ``styled``; behind: with what is drawn behind the letters."""
    found = letters(style) | dict.fromkeys(lines(style), "true")
    if behind and (paper := ground(style)):
        found["paper"] = paper
    return ", ".join(f"{name}: {code}" for name, code in found.items())


def _span(node: dict) -> None:
    attributes, content = node["c"]
    style = _taken(attributes)
    if undisplayed(style):
        node["c"] = [attributes, []]
        return
    paper, around = ground(style), borders(style)
    boxed = bool(around) or bool(paper and (not content or "inline-block" in style.get("display", "")))
    code = arguments(style, behind=not boxed)
    before, after = [f"#styled({code})["] * bool(code), ["];"] * bool(code)
    if boxed:
        before.insert(0, f"#box({_box(style, paper, around, content)})[")
        after.append("];")
    if before:
        node["c"] = [attributes, [*map(_raw, before), *content, *map(_raw, after)]]


def _box(style: dict[str, str], paper: str, around: str, content: list) -> str:
    """The arguments of a box or a block of typst."""
    high = height(style) or ("0.8em" if paper and not content else "")
    parts = {"width": width(style), "height": "" if content else high, "fill": paper, "stroke": around}
    return ", ".join(f"{name}: {code}" for name, code in parts.items() if code) or "inset: 0pt"


def _block(node: dict) -> None:
    attributes, content = node["c"]
    style = _taken(attributes)
    if undisplayed(style):
        node["c"] = [attributes, []]
        return
    paper, around, rules = ground(style), borders(style), set_rules(style)
    box = ""
    if paper or around or width(style) or "text-align" in style:
        full = "" if width(style) else "width: 100%, "
        inset = ", inset: 6pt" * bool((paper or around) and _has_text(content))
        box = f"#block({full}{_box(style, paper, around, content)}{inset})["
    if box or rules:
        rule = "".join(f"\n#set {one}" for one in rules)
        raw = [{"t": "RawBlock", "c": ["typst", code]} for code in ((box or "#[") + rule, "]")]
        node["c"] = [attributes, [raw[0], *content, raw[1]]]


def _has_text(node) -> bool:
    if isinstance(node, list):
        return any(map(_has_text, node))
    return isinstance(node, dict) and (node.get("t") in ("Str", "Math", "Image", "Code") or _has_text(node.get("c")))


def _table(table: list) -> None:
    """The style of a row is that of its cells, of a table's letters that of all."""
    whole = _taken(table[0])
    head, bodies, foot = table[3:6]
    groups = [(head[0], head[1]), (foot[0], foot[1])]
    groups += [(body[0], rows) for body in bodies for rows in (body[2], body[3])]
    styles = {id(attributes): _taken(attributes) for attributes, _ in groups}
    for attributes, rows in groups:
        for row in rows:
            outer = whole | styles[id(attributes)] | _taken(row[0])
            outer = {name: value for name, value in outer.items() if not name.startswith("border")}
            for cell in row[1]:
                _cell(cell, outer | _taken(cell[0]))


def _cell(cell: list, style: dict[str, str]) -> None:
    if undisplayed(style):
        cell[4] = []
        return
    if code := arguments(style, behind=False):
        for block in cell[4]:
            if block["t"] in ("Plain", "Para"):
                block["c"] = [_raw(f"#styled({code})["), *block["c"], _raw("];")]
    drawn = {"fill": ground(style), "stroke": borders(style)}
    cell[0][2] += [[f"typst:{name}", code] for name, code in drawn.items() if code]
