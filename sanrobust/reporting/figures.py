"""The figures of a page: drawn once, in the page and as files for papers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sanrobust.harmless import plain_names
from sanrobust.reporting.svg import STYLE, to_inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Nothing of a file may depend on when it was drawn.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "png": {"dpi": 150, "metadata": {"Software": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
"""Files of a figure by their suffix, and how matplotlib writes them."""


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Attributes:
        stem: name of its files without suffix.
        title: what it shows.
        svg: an element for the page.
        files: contents by name.
    """

    stem: str
    title: str
    svg: Markup
    files: Mapping[str, bytes]


def pictures(stem: str, title: str, draw: Callable[[], Figure | None]) -> Iterator[Picture]:
    """Yield the figure that ``draw`` makes, if it makes one."""
    from matplotlib import rc_context
    with rc_context(STYLE):
        figure = draw()
        if figure is None:
            return
        plain_names(figure).draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out, which takes longest
        files = {f"{stem}.{kind}": _file(figure, kind) for kind in KINDS}
    yield Picture(stem, title, Markup(to_inline(figure, f"{stem}-", title)), files)


def _file(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=kind, **KINDS[kind])
    return content.getvalue()
