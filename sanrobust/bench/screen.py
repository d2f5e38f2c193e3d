"""The results of a benchmark as tables for a screen, one column per contender."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sanrobust.bench.peak import Peak
from sanrobust.bench.results import Results
from sanrobust.bench.samples import Case, Summary
from sanrobust.bench.settings import OURS, in_order
from sanrobust.tables.sheet import Sheet, to_text

_MISSING = "-"

Cells = Mapping[tuple[Case, str], str]


def tables(results: Results) -> str:
    """Return everything that was measured as tables for a screen."""
    summaries = results.summaries()
    models = [each for each in summaries if each.case.kind == "model"]
    operators = [each for each in summaries if each.case.kind == "operator"]
    shape = results.settings.shape
    batch = f"batch {shape.batch_size}, {shape.img_size} px, {shape.dtype}, {shape.device}"
    parts = [to_text(_sheet(title, cells)) for title, cells in (
        (f"Models, images/s, in brackets how much faster ours is ({batch}).",
         _timed(models, _rate)),
        (f"Operators, milliseconds, in brackets how much faster ours is ({batch}).",
         _timed(operators, _milliseconds)),
        (f"Memory above libraries and weights, GB, in brackets how many times ours ({batch}).",
         _held(results.peaks))) if cells]
    if results.efforts:
        parts.append(to_text(_attacks(results)))
    if results.loops:
        parts.append(to_text(_loops(results)))
    rejected = sum(each.rejected for each in summaries)
    taken = rejected + sum(each.samples for each in summaries)
    if taken:
        parts.append(f"{rejected} of {taken} samples were rejected because the machine was slow.")
    return "\n\n".join(parts)


def _attacks(results: Results) -> Sheet:
    """Return what each side of each attack took: medians, and what one run was counted to take."""
    timed = {(each.case, each.contender): each for each in results.summaries()}
    groups: dict[Case, list[tuple[str, ...]]] = {}
    for (case, name), effort in results.efforts.items():
        summary = timed.get((case, name))
        seconds = summary.seconds if summary else None
        faster = summary.ours_faster if summary else None
        own = results.efforts.get((case, OURS))
        groups.setdefault(case, []).append((
            case.name, case.step, name,
            _MISSING if seconds is None else f"{seconds:.3g}{_times(name, faster)}",
            f"{effort.cpu_seconds:.3g}"
            + _times(name, effort.cpu_seconds / own.cpu_seconds if own else None),
            f"{effort.robust:.1f}", str(effort.forward), str(effort.backward),
            f"{100 * effort.model_share:.0f}"))
    threat = results.settings.threat
    title = (f"Attacks on {threat.images} digits, linf {threat.eps:g}/255, {threat.iters} steps, "
             f"{threat.queries} queries: median wall time, and of one counted run the CPU time, "
             "the accuracy left in percent, the images in passes and the percentage of its wall "
             "time inside the network, that of the counting left out; in brackets how much faster "
             "ours is.")
    return Sheet("bench", title, ("", "", "", "s", "CPU s", "robust", "forward", "backward",
                                  "network"), 3, tuple(map(tuple, groups.values())))


def _loops(results: Results) -> Sheet:
    """Return what whole commands took beside their bare models."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for case, loop in results.loops.items():
        groups.setdefault(case.name, []).append((
            case.name, case.step, f"{loop.images_per_second:.3g}",
            f"{loop.bare_images_per_second:.3g}", f"{100 * loop.model_share:.1f}",
            f"{loop.seconds:.3g}", f"{loop.setup_seconds:.3g}", f"{loop.cpu_seconds:.3g}"))
    shape, loops = results.settings.shape, tuple(results.loops.values())
    title = (f"Whole commands on {loops[0].images} images (batch {shape.batch_size}, "
             f"{loops[0].img_size} px, {shape.dtype}, {shape.device}): images/s from the first "
             "image to the table, and of the bare model in as many passes; the percentage of the "
             "whole wall time inside the model; wall time, the part of it before the first image, "
             "and CPU time.")
    return Sheet("bench", title, ("", "", "images/s", "bare", "% in model", "s", "set-up s",
                                  "CPU s"), 2, tuple(map(tuple, groups.values())))


def _timed(summaries: Sequence[Summary], value: Callable[[Summary], str]) -> dict[
        tuple[Case, str], str]:
    return {(each.case, each.contender): _MISSING if each.seconds is None
            else value(each) + _times(each.contender, each.ours_faster) for each in summaries}


def _rate(summary: Summary) -> str:
    assert summary.images_per_second is not None
    return f"{summary.images_per_second:.3g}"


def _milliseconds(summary: Summary) -> str:
    assert summary.seconds is not None
    return f"{summary.seconds * 1e3:.3g}"


def _held(peaks: Sequence[Peak]) -> dict[tuple[Case, str], str]:
    ours = {peak.case: peak.net for peak in peaks if peak.contender == OURS}
    cells = {}
    for peak in peaks:
        own = ours.get(peak.case)
        ratio = peak.net / own if peak.net is not None and own else None
        text = _MISSING if peak.net is None else f"{peak.net / 1e9:.2f}"
        cells[peak.case, peak.contender] = text + _times(peak.contender, ratio)
    return cells


def _times(contender: str, ratio: float | None) -> str:
    return "" if contender == OURS or ratio is None else f" (x{ratio:.2g})"


def _sheet(title: str, cells: Cells) -> Sheet:
    columns = in_order(contender for _, contender in cells)
    lines = [(case.name, case.step, *(cells.get((case, name), _MISSING) for name in columns))
             for case in dict.fromkeys(case for case, _ in cells)]
    return Sheet("bench", title, ("", "", *columns), 2, (tuple(lines),))
