"""Names from outside in files that other programs interpret: no formula in a CSV or in a figure.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, which may
start programs or send what other cells hold. Such a cell gets an apostrophe in front, which says
that it is text; ``unguarded`` takes it away again. Numbers stay as they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Some programs also look behind a tab or line end, or take the wide forms of the signs.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_GUARDED = re.compile("'+[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def guarded(value: Any) -> Any:
    """Return a value as a cell of a CSV may have it: text that is a formula with an apostrophe."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def unguarded(text: str) -> str:
    """Return the text of a cell that `guarded` has written."""
    return text[1:] if _GUARDED.match(text) else text


def bare(text: str) -> str:
    """Return what a name and all that `guarded` may have made of it have in common."""
    return text.lstrip("'") if _GUARDED.match(text) else text


def csv_text(rows: pd.DataFrame) -> str:
    """Return a table as CSV without its index, in which no text is a formula."""
    import pandas as pd
    # Only what may hold text; a map would turn whole numbers beside missing ones into floats.
    texts = {str(name): pd.Series([guarded(value) for value in rows[name]], rows.index, object)
             for name in rows.columns if rows[name].dtype.kind not in "biuf"}
    safe = rows.assign(**texts)
    text: str = safe.rename(columns=guarded).to_csv(index=False, lineterminator="\n")
    return text


def plain_names(figure: Figure) -> Figure:
    """Return a figure, not drawn yet, in which a dollar in a name begins no formula."""
    from matplotlib.text import Text
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():
            text.set_parse_math(False)
    return figure
