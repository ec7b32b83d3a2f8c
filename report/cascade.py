"""What the style sheets of an output say of its elements (CSS), written into the elements themselves."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tinycss2
from bs4 import BeautifulSoup, Tag
from soupsieve import SelectorSyntaxError

from report import styles

# of an element, what stands in a pseudo-element of it on paper
GENERATED = re.compile(r"::?(before|after|marker)$", re.I)
WITHOUT_CONTENT = {"img", "input", "br", "hr", "col", "table", "thead", "tbody", "tfoot", "tr", "ul", "ol", "svg"}
HINTS = {"big": ("font-size", "larger"), "small": ("font-size", "smaller"), "center": ("text-align", "center")}
ALIGNED = {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6"}


class Rule(NamedTuple):
    """selector without its pseudo-element (before, after, marker or ""); declarations: name, value, important."""

    selector: str
    pseudo: str
    declarations: tuple[tuple[str, str, bool], ...]


def sheets(html: str) -> list[str]:
    """The style sheets of an output that act on all of the page: a DataFrame's scoped ones say of all the same."""
    found = re.findall(r"<style\b([^>]*)>(.*?)</style>", html, re.S | re.I)
    return [text for attributes, text in found if "scoped" not in attributes]


@functools.lru_cache(maxsize=512)
def rules(sheet: str) -> tuple[Rule, ...]:
    sheet = re.sub(r"^\s*<!--|-->\s*$", "", sheet)
    return tuple(_rules(tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True), ""))


def _rules(nodes: list, outer: str) -> Iterator[Rule]:
    for node in nodes:
        if node.type == "at-rule" and node.content and _holds(node):
            inside = tinycss2.parse_blocks_contents(node.content, skip_comments=True, skip_whitespace=True)
            yield from _rules(inside, outer)
        elif node.type == "qualified-rule":
            inside = tinycss2.parse_blocks_contents(node.content, skip_comments=True, skip_whitespace=True)
            said = tuple(
                (one.name if one.name.startswith("--") else one.lower_name, tinycss2.serialize(one.value).strip(),
                 one.important) for one in inside if one.type == "declaration"
            )  # fmt: skip
            for selector in _separate(node.prelude):
                if outer:
                    selector = selector.replace("&", outer) if "&" in selector else f"{outer} {selector}"
                pseudo = GENERATED.search(selector)
                if said:
                    name = pseudo[1].lower() if pseudo else ""
                    yield Rule(GENERATED.sub("", selector).strip() or "*", name, said)
                yield from _rules([one for one in inside if one.type != "declaration"], selector)


def _holds(node) -> bool:
    """Does JupyterLab in its light colours, on a screen, take what stands in this at-rule?"""
    if node.lower_at_keyword in ("supports", "layer"):
        return True
    said = tinycss2.serialize(node.prelude).lower()
    if node.lower_at_keyword != "media" or re.search(r"dark|print|max-width|reduced-motion|height|pointer|hover", said):
        return "not print" in said
    return all(float(width) <= 800 for width in re.findall(r"min-width\s*:\s*([\d.]+)px", said))


def _separate(prelude: list) -> list[str]:
    """The selectors of a rule: between commas, but not those within brackets."""
    parts: list[list] = [[]]
    for token in prelude:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return [tinycss2.serialize(part).strip() for part in parts]


def _weight(selector: str) -> tuple[int, int, int]:
    """How special a selector is: by its names, its classes, its elements."""
    bare = re.sub(r"\[.*?\]", ".x", selector)
    return (
        len(re.findall("#", bare)),
        len(re.findall(r"\.|(?<!:):(?!:)", bare)),
        len(re.findall(r"(?<![.#:\w-])[a-z]\w*", bare)),
    )


def inline(soup: BeautifulSoup, page: list[str], complain: Callable[[str], None]) -> None:
    """Each element's style with what the style sheets of the page and its own scoped ones say of it, by the order of
    CSS. What they say that is not drawn goes to complain, in one line."""
    said: dict[tuple[int, str], list] = {}
    elements = {id(element): element for element in soup.find_all(True)}
    by_id: dict[str, list] = {}
    for element in elements.values():
        by_id.setdefault(element.get("id"), []).append(element)
    order = 0
    for sheet, scoped in [*((sheet, False) for sheet in page), *((s.string or "", True) for s in _scoped(soup))]:
        for rule in rules(sheet):
            order += max(1, len(rule.declarations))
            for element in _matched(soup, by_id, rule.selector):
                for number, (name, value, important) in enumerate(rule.declarations, order):
                    if not (scoped and name == "text-align"):  # pandas' own, of the head alone
                        entry = (important, False, _weight(rule.selector), number, name, value)
                        said.setdefault((id(element), rule.pseudo), []).append(entry)
    for number, element in elements.items():
        entries = said.get((number, ""), [])
        entries += [(False, False, (-1,), 0, name, value) for name, value in _hints(element)]
        own = styles.parsed(element.get("style", ""))
        entries += [(important, True, (), i, name, value) for i, (name, value, important) in enumerate(own)]
        if entries:
            chosen: dict[str, str] = {}
            for *_, name, value in sorted(entries):
                chosen.pop(name, None)
                chosen[name] = value
            element["style"] = "; ".join(f"{name}: {value}" for name, value in chosen.items())
    _variables(elements.values())
    for (number, pseudo), entries in said.items():
        if pseudo:
            style = {name: value for *_, name, value in sorted(entries)}
            _generate(soup, elements[number], pseudo, style, complain)


def _scoped(soup: BeautifulSoup) -> list[Tag]:
    return [sheet for sheet in soup.find_all("style") if sheet.has_attr("scoped")]


def _matched(soup: BeautifulSoup, by_id: dict[str, list], selector: str) -> list[Tag]:
    if named := re.search(r"#([\w-]+)", selector):
        found = by_id.get(named[1], [])
        if not found or named[0] == selector:
            return found
    try:
        return soup.select(selector)
    except (SelectorSyntaxError, NotImplementedError, ValueError):  # of what a page has not, as ::selection
        return []


def _hints(element: Tag) -> Iterator[tuple[str, str]]:
    """What an element of HTML, or an attribute of it, says in place of a style."""
    if element.name in HINTS:
        yield HINTS[element.name]
    if element.name == "font" and element.get("color"):
        yield "color", element["color"]
    if element.get("bgcolor"):
        yield "background-color", element["bgcolor"]
    if element.get("align") and element.name in ALIGNED:
        yield "text-align", element["align"].lower()
    if element.get("dir") in ("rtl", "ltr"):
        yield "direction", element["dir"]
    if element.has_attr("hidden"):
        yield "display", "none"


def _variables(elements) -> None:
    """Custom properties, --x, in the place of var(--x): those of the element, or of what it stands in."""
    for element in elements:
        if "var(" not in element.get("style", ""):
            continue
        for _ in range(9):  # one may be defined by others
            style = element["style"]
            shown = re.sub(
                r"var\(\s*(--[\w-]+)\s*(?:,((?:[^()]|\([^()]*\))*))?\)",
                lambda m, element=element: _variable(m[1], element) or (m[2] or "").strip() or "unset",
                style,
            )
            if shown == style:
                break
            element["style"] = shown


def _variable(name: str, element: Tag) -> str:
    for one in (element, *element.parents):
        if found := re.search(rf"(?:^|;)\s*{name}\s*:\s*([^;]+)", one.get("style") or ""):
            return found[1].strip()
    return ""


def _generate(soup: BeautifulSoup, element: Tag, pseudo: str, style: dict[str, str], complain) -> None:
    """The text that ::before and ::after put into an element."""
    content = style.pop("content", "")
    if not content or content in ("none", "normal") or styles.undisplayed(style):
        return
    text = ""
    for token in tinycss2.parse_component_value_list(content):
        if token.type == "string":
            text += token.value
        elif token.type == "function" and token.lower_name == "attr":
            text += element.get(tinycss2.serialize(token.arguments).strip()) or ""
        elif token.type != "whitespace":
            complain(f"the text that a style makes, content: {content[:60]}, is not shown: write it into the output")
            return
    if not text:  # a figure that is drawn of borders
        return
    if pseudo == "marker" or element.name in WITHOUT_CONTENT:
        complain(f"the text that a style puts before <{element.name}>, {text[:60]!r}, is not shown: write it there")
        return
    span = soup.new_tag("span", attrs={"style": "; ".join(f"{name}: {value}" for name, value in style.items())})
    span.string = text
    if pseudo == "before":
        element.insert(0, span)
    else:
        element.append(span)
