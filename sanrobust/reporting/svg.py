"""Figures of matplotlib as SVG that stands in a page: no styles, no links, colours of the page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"
"""What is drawn in it takes the colour of the page's text."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "sanrobust",
    "legend.frameon": False, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.titlecolor": INK}
"""Settings of matplotlib with which a figure must be drawn; a name is no formula."""

_ELEMENTS = {"svg", "g", "path", "use", "defs", "clipPath", "rect", "text", "tspan", "image",
             "circle", "line", "polyline", "polygon", "ellipse"}
_ATTRIBUTES = {
    "viewBox", "d", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "rx", "ry", "width",
    "height", "transform", "points", "clip-path", "fill", "fill-opacity", "fill-rule", "stroke",
    "stroke-width", "stroke-opacity", "stroke-linecap", "stroke-linejoin", "stroke-dasharray",
    "stroke-dashoffset", "stroke-miterlimit", "opacity", "text-anchor", "font-size", "font-style",
    "font-weight"}
_NUMBER = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"(?:(?:normal|italic|oblique)\s+)?(?:(?P<weight>bold|\d{3})\s+)?"
                   r"(?P<size>[\d.]+)px\b.*")
_PIXELS_PER_POINT = 1.5
_PICTURE = "data:image/png;base64,"


def to_inline(figure: Figure, prefix: str, label: str) -> str:
    """Return a figure drawn in `STYLE` as an ``svg`` element with nothing but shapes and text.

    Args:
        figure: what is drawn.
        prefix: what the names of its parts begin with, unique on the page.
        label: what it shows, for who does not see it.
    """
    from matplotlib import rc_context
    drawn = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())
    _clean(root, prefix, _used(root))
    root.attrib.pop("height", None)
    width = float(root.attrib["viewBox"].split()[2]) * _PIXELS_PER_POINT
    root.attrib.update({"width": f"{width:.0f}", "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _used(root: ElementTree.Element) -> set[str]:
    """Return the names of the parts that others refer to."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    return {name for value in values for name in
            (*_REFERENCE.findall(value), *([value[1:]] if value.startswith("#") else []))}


def _clean(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Leave shapes and texts with their attributes, and nothing else."""
    element.tag = _local(element.tag)
    element.attrib = _attributes(element, prefix, used)
    for child in list(element):
        if not isinstance(child.tag, str) or _local(child.tag) not in _ELEMENTS:
            element.remove(child)
        else:
            _clean(child, prefix, used)
    element.tail = None
    if element.tag not in ("text", "tspan"):
        element.text = None


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _attributes(element: ElementTree.Element, prefix: str, used: set[str]) -> dict[str, str]:
    found = {_local(name): value for name, value in element.attrib.items()}
    for declaration in found.pop("style", "").split(";"):
        name, colon, value = declaration.partition(":")
        if colon:
            found.update(_declared(name.strip(), value.strip()))
    kept = {name: _rounded(name, value) for name, value in found.items() if name in _ATTRIBUTES}
    if "clip-path" in kept:
        kept["clip-path"] = _REFERENCE.sub(rf"url(#{prefix}\1)", kept["clip-path"])
    for name in ("fill", "stroke"):
        if kept.get(name) == INK:
            kept[name] = "currentColor"
    if found.get("id") in used:
        kept["id"] = prefix + found["id"]
    link = found.get("href", "")
    if link.startswith("#"):
        kept["href"] = f"#{prefix}{link[1:]}"
    elif link.startswith(_PICTURE):
        kept["href"] = link
    return kept


def _declared(name: str, value: str) -> dict[str, Any]:
    """Return a declaration of a style as attributes."""
    if name != "font":
        return {name: value}
    match = _FONT.fullmatch(value)
    if match is None:
        return {}
    weight = {"font-weight": match["weight"]} if match["weight"] else {}
    return {"font-size": match["size"], **weight}


def _rounded(name: str, value: str) -> str:
    """Return a length or a path to a hundredth of a point."""
    if name in ("d", "x", "y", "points", "transform", "width", "height", "stroke-width"):
        return _NUMBER.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."),
                           value.strip().replace(" \n", " ").replace("\n", " "))
    return value
