"""CSS as typst draws it: what the style of an element of HTML says of its letters, its ground and its borders."""

import re

import tinycss2
from tinycss2.color4 import parse_color

# of all that a style may say: what changes the letters, and what changes the place where they stand
LETTERS = {"color", "font-weight", "font-style", "font-size", "text-decoration", "text-decoration-line"}
GROUND = {"background", "background-color", "background-image", "display", "visibility", "border", "text-align"} | {
    f"border-{side}" for side in ("top", "right", "bottom", "left")
}
SIZES = {"xx-small": 0.6, "x-small": 0.75, "small": 0.89, "smaller": 0.83, "large": 1.2, "larger": 1.2, "x-large": 1.5}


def declared(style: str) -> dict[str, tuple[str, bool]]:
    """The properties of a style with their values, of those that are drawn here, and whether they are important."""
    found = {}
    for one in tinycss2.parse_blocks_contents(style, skip_comments=True, skip_whitespace=True):
        if one.type == "declaration" and one.lower_name in LETTERS | GROUND:
            found[one.lower_name] = tinycss2.serialize(one.value).strip(), one.important
    return found


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
    return style.get("display") == "none" or style.get("visibility") in ("hidden", "collapse")


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
    if size := _size(style.get("font-size", "")):
        found["size"] = size
    return found


def _size(value: str) -> str:
    """A size of letters, none too small or too large for a page."""
    found = re.fullmatch(r"([\d.]+)(px|pt|em|rem|%)", value)
    if value in SIZES:
        return f"{SIZES[value]}em"
    if not found:
        return ""
    number = float(found[1]) / {"px": 13, "pt": 10, "em": 1, "rem": 1, "%": 100}[found[2]]  # 13 px in JupyterLab
    return f"{min(4, max(0.4, number)):.2f}em"


def lines(style: dict[str, str]) -> list[str]:
    """Of underline and strike, those that a style draws."""
    said = f"{style.get('text-decoration', '')} {style.get('text-decoration-line', '')}"
    return [name for name, word in (("underlined", "underline"), ("struck", "line-through")) if word in said]


def ground(style: dict[str, str]) -> str:
    """What is drawn behind the letters, as code of typst: a colour or the bars of a gradient; "" for nothing."""
    for name in ("background-image", "background", "background-color"):
        for token in tinycss2.parse_component_value_list(style.get(name, "")):
            if token.type == "function" and token.lower_name == "linear-gradient":
                return _gradient(token.arguments)
            if token.type in ("ident", "hash", "function") and (paper := colour(tinycss2.serialize([token]))):
                return f'rgb("{paper}")'
    return ""


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
    for side in ("top", "right", "bottom", "left"):
        words = style.get(f"border-{side}", style.get("border", "")).split(maxsplit=2)
        width = next((float(one[:-2]) * 0.75 for one in words if re.fullmatch(r"[\d.]+px", one)), 0.75)
        shown = next((shown for one in reversed(words) if (shown := colour(one))), "#000000")
        if words and not {"none", "hidden", "0", "0px"} & set(words):
            found[side] = f'{min(width, 4):.3g}pt + rgb("{shown}")'
    return f"({', '.join(f'{side}: {line}' for side, line in found.items())})" if found else ""


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
    return {name: value for name, (value, _) in declared(style).items()}


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
    elif code := arguments(style):
        node["c"] = [attributes, [_raw(f"#styled({code})["), *content, _raw("];")]]


def _block(node: dict) -> None:
    attributes, content = node["c"]
    style = _taken(attributes)
    if undisplayed(style):
        node["c"] = [attributes, []]
        return
    drawn, paper, around = letters(style), ground(style), borders(style)
    box = "#[" if not paper and not around else "#block(width: 100%, inset: 6pt"
    box += (f", fill: {paper}" * bool(paper) + f", stroke: {around}" * bool(around) + ")[") * (box != "#[")
    if drawn or box != "#[":
        rule = f"\n#set text({', '.join(f'{name}: {code}' for name, code in drawn.items())})" * bool(drawn)
        raw = [{"t": "RawBlock", "c": ["typst", code]} for code in (box + rule, "]")]
        node["c"] = [attributes, [raw[0], *content, raw[1]]]


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
