"""A reader of the pages that sanrobust writes, for tests that need no browser."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "input", "img", "br"}
# All that a page may consist of.
TAGS = VOID | {
    "html", "head", "title", "style", "body", "a", "header", "h1", "h2", "h3", "p", "nav", "ul",
    "li", "main", "section", "div", "label", "span", "output", "table", "caption", "thead", "tbody",
    "tr", "th", "td", "strong", "small", "button", "details", "summary", "figure", "figcaption",
    "code", "pre", "script", "svg", "g", "path", "use", "defs", "clippath", "rect", "text", "tspan",
    "image", "circle", "line", "polyline", "polygon", "ellipse"}


@dataclass
class Element:
    """An element with its attributes, what it holds, and its text."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        """Every element inside, of a tag and with attributes, in order."""
        found = []
        for child in self.children:
            if (not tag or child.tag == tag) and all(
                    child.attributes.get(name.rstrip("_").replace("_", "-")) == value
                    for name, value in attributes.items()):
                found.append(child)
            found += child.all(tag, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"{tag} ends where {self._open[-1].tag} is open"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.parts.append(data)


def read(path: Path) -> Element:
    """Return a page whose elements all end."""
    reader = _Reader()
    reader.feed(path.read_text("utf-8"))
    reader.close()
    assert reader._open == [reader.root]
    return reader.root


def require_harmless(page: Element) -> None:
    """Fail unless a page has one script and one style, its own, and asks nobody for anything."""
    elements = page.all()
    assert {element.tag for element in elements} <= TAGS
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0].attributes["content"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        (own,) = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(own.text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for element in elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on") and name not in ("style", "srcset", "action"), name
            if name in ("href", "src", "xlink:href"):
                assert re.match(r"#|data:image/(png|jpeg);base64,|[\w.-]+$", value), value[:80]


def require_labelled(page: Element) -> None:
    """Fail unless who hears the page, or types, finds the same as who sees it."""
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    for element in page.all():
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert element.attributes.get(name, ids[0]) in ids, element.attributes
    assert page.all("html")[0].attributes["lang"] == "en" and len(page.all("h1")) == 1
    assert page.all("meta", name_="viewport")
    for table in page.all("table"):
        assert table.all("caption")[0].text
        assert all(each.attributes.get("scope") for each in table.all("th"))
        heads = [each for each in table.all("thead")[0].all("th")
                 if each.attributes["scope"] == "col"]
        assert all(each.all("button")[0].attributes["type"] == "button" for each in heads)
        width = len(heads)
        assert {len(row.children) for row in table.all("tbody")[0].all("tr")} == {width}
    for image in page.all("img"):
        assert image.attributes["alt"]
    for figure in page.all("figure"):
        assert figure.all("figcaption")[0].text
        assert figure.all("img") or figure.all("svg", role="img")[0].attributes["aria-label"]
