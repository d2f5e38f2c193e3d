"""HTML from templates: escaped, with no style or script but our own, and no address but data."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.errors import SanrobustError
from sanrobust.files import printable

if TYPE_CHECKING:
    from jinja2 import Environment

_POLICY = ("default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; "
           "base-uri 'none'; form-action 'none'")
PAGE = "index.html"


@dataclass(frozen=True)
class Page:
    """A page that was written, and its files.

    Attributes:
        page: the file.
        files: all files written.
        remarks: what is not in it, a sentence each.
        problem: what says that runs do not read back; None where all do.
    """

    page: Path
    files: tuple[Path, ...]
    remarks: tuple[str, ...]
    problem: SanrobustError | None = None


def render(template: str, **values: object) -> str:
    """Return the page of a template of this package; a value that it lacks is an error."""
    from markupsafe import Markup
    style, script = (_text(name) for name in ("page.css", "page.js"))
    policy = _POLICY.format(style=_hash(style), script=_hash(script))
    page: str = _environment().get_template(template).render(
        style=Markup(style), script=Markup(script), policy=policy, **values)
    return page


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    return Environment(loader=PackageLoader("sanrobust.reporting"), autoescape=True,
                       undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                       finalize=_finalized)


def _finalized(value: object) -> object:
    """Return what a template puts in without characters that no page should have."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable(value)
    return value


def _text(name: str) -> str:
    return (resources.files("sanrobust.reporting") / "templates" / name).read_text("utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
