"""Lines of cells: in columns of fixed-width letters, and as the pipe tables of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "
"""What stands between two columns on a screen."""


def aligned(cells: Sequence[str], widths: Sequence[int], stubs: int) -> str:
    """Return a line for a screen: the first ``stubs`` cells are words, the others numbers."""
    return GAP.join(cell.ljust(width) if place < stubs else cell.rjust(width)
                    for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
                    ).rstrip()


def pipes(headings: Sequence[str], lines: Sequence[Sequence[str]], stubs: int) -> str:
    """Return a pipe table; the first ``stubs`` columns are words, the others numbers."""
    rule = [":--"] * stubs + ["--:"] * (len(headings) - stubs)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))
