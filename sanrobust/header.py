"""What a run says of itself while it computes: ``run.json``, true at every moment.

Beside the specification it holds the run's status, its place in the order of all runs beside it,
the digest of its images' ids, remarks for its readers, and under ``starts`` one entry for each time
that it was started or gone on with: by which command, on what machine, with which versions, batches
and kernels, and for how many seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone

from sanrobust.errors import Interrupted, OutputError
from sanrobust.records import RunStore, ids_digest
from sanrobust.runs import COMPLETE, ORDER, all_runs

# Before there was an entry for each start, these facts of the first one stood in the header.
_OF_A_START = ("started", "weights_source", "batch_size", "workers", "environment", "not_folded",
               "seconds")


@contextmanager
def started(store: RunStore, ids: Sequence[str], *, facts: Mapping[str, object],
            remarks: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Keep a run's header while the block measures the images ``ids``.

    Args:
        store: the run, open.
        ids: of all images of the run.
        facts: how it is computed this time.
        remarks: what a reader of the numbers must know, by kind.

    Raises Interrupted in place of KeyboardInterrupt, with everything saved, and OutputError when
    the block ends without records of every image.
    """
    before, command = store.header(), facts.get("command")
    order = _order(store, before)
    starts = _earlier_starts(before)
    begun, clock = _now(), time.monotonic()

    def write(status: str, **more: str) -> None:
        this = {"started": begun, **facts, "seconds": round(time.monotonic() - clock, 3)}
        store.write_header({
            "status": status, "started": before.get("started", begun), "updated": _now(),
            "seconds": round(_seconds(before) + time.monotonic() - clock, 3),
            **order, "ids_digest": ids_digest(ids), "command": command,
            **{kind: list(told) for kind, told in remarks.items()},
            **more, "starts": [*starts, this]})

    write("running")
    try:
        yield
        _require_all(store, ids)
    except KeyboardInterrupt:
        write("interrupted")
        raise Interrupted(
            "a run must finish to enter the tables",
            seen=f"it was stopped after {len(store.recorded())} of {store.spec.images} images",
            hint="type the same command again to go on from there") from None
    except Exception as error:
        with suppress(OutputError):
            write("failed", problem=str(error))
        raise
    write(COMPLETE)


def missing(store: RunStore, ids: Sequence[str]) -> int:
    """Return how many of the images ``ids`` have no records yet.

    Raises OutputError when there are records of other images.
    """
    recorded = store.recorded()
    foreign = recorded.difference(ids)
    if foreign:
        raise OutputError("a run must hold records of its own images alone",
                          seen=f"{store.folder} holds {len(foreign)} of others (the first is "
                               f"{min(foreign)})", hint="start anew with --fresh")
    return len(ids) - len(recorded)


def _require_all(store: RunStore, ids: Sequence[str]) -> None:
    lacking = missing(store, ids)
    if lacking:
        raise OutputError("a run must have records of all its images when it ends",
                          seen=f"{store.folder} lacks {lacking} of {len(ids)}",
                          hint="type the same command again, which measures them")


def _order(store: RunStore, before: Mapping[str, object]) -> dict[str, object]:
    """Return a run's number in the order of first starts: clocks are set back now and then.

    Runs of earlier versions have none and keep none.
    """
    if before:
        return {ORDER: before[ORDER]} if ORDER in before else {}
    return {ORDER: 1 + max((run.order for run in all_runs(store.folder.parents[1])), default=0)}


def _earlier_starts(header: Mapping[str, object]) -> list[object]:
    starts = header.get("starts")
    if isinstance(starts, list):
        return starts
    return [{name: header[name] for name in _OF_A_START if name in header}] if header else []


def _seconds(header: Mapping[str, object]) -> float:
    seconds = header.get("seconds", 0.0)
    return float(seconds) if isinstance(seconds, (int, float)) else 0.0


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
