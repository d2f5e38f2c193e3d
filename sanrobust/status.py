"""How far the runs of a folder are and who measures them, told from files alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sanrobust.errors import OutputError, number_of
from sanrobust.records import Said
from sanrobust.runs import Run, require_runs
from sanrobust.summary import unfinished


def status_lines(out: Path) -> Iterator[str]:
    """Yield what is to be told of the runs under ``out``, unfinished ones in full.

    Raises OutputError where there is no run, and, after all lines, where one does not read back.
    """
    found = require_runs(out)
    damaged = list(found.damaged)
    for run in found.runs:
        try:
            yield from _of_run(run)
        except OutputError as error:
            damaged.append(error)
    for other in damaged[1:]:
        yield str(other)
    if damaged:
        raise damaged[0]


def _of_run(run: Run) -> Iterator[str]:
    state, failed = run.state, run.failed
    failures = f", {failed} of them failed" if failed else ""
    if run.complete and state.recorded == state.images:
        yield (f"{run.name}: complete, {number_of(state.images, 'image')}{failures}, "
               f"measured {run.measured}")
        return
    blocks = f"; {state.there} of {state.blocks} blocks" if state.blocks else ""
    missing = state.images - state.recorded
    yield (f"{run.name}: {state.recorded} of {state.images} images{failures}{blocks}; "
           f"{missing} missing")
    at_work = [each for each in run.starts if each.alive]
    if not at_work:
        yield f"  nobody is at work: {unfinished(run).removeprefix(run.name).strip()}"
        return
    yield f"  {_speed(sum(map(_rate, at_work)), missing)}"
    yield from (f"  {_worker(each)}" for each in at_work)


def _rate(said: Said) -> float:
    rate = said.facts.get("rate")
    return float(rate) if isinstance(rate, (int, float)) else 0.0


def _speed(rate: float, missing: int) -> str:
    if rate <= 0:
        return "no image yet since the start"
    return (f"{rate:.3g} images/s over the last minutes, about {_duration(missing / rate)} left")


def _duration(seconds: float) -> str:
    """Return a time as people say it."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _worker(said: Said) -> str:
    facts = said.facts
    since = str(facts.get("started", ""))[:16].replace("T", " ")
    part = facts.get("shard")
    which = (f", part {part[0] + 1} of {part[1]}" if isinstance(part, list) and len(part) == 2
             and part[1] > 1 else "")
    block = "" if said.block is None else f", at block {said.block}"
    return (f"{facts.get('host')}, process {facts.get('pid')}{which}, since {since} UTC{block}, "
            f"{facts.get('images')} images so far")
