"""A run's header and the processes that measure it, each in a file of its own.

``run.json`` is written when a run is begun, with the specification, its place in the order of all
runs beside it, the digest of its images' ids, how they are cut into blocks, remarks for its readers
and how it was computed at first; and once more when it is complete. What each process that
measures it did and does stands in ``starts/`` (`sanrobust.records.starts`). Earlier versions kept
that under ``starts`` in the header itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from sanrobust.errors import Interrupted, OutputError
from sanrobust.records import (LAUNCH, RUNNING, RunStore, Start, ids_digest, others_at_work,
                               starts_of, state_of)
from sanrobust.records.starts import now
from sanrobust.runs import COMPLETE, ORDER, all_runs
from sanrobust.shards import Shard

DONE = "done"
"""Status of a process that measured its part while others were not ready."""


@contextmanager
def started(store: RunStore, ids: Sequence[str], *, facts: Mapping[str, object],
            remarks: Mapping[str, Sequence[str]], batch_size: int = 1,
            shard: Shard = Shard()) -> Iterator[Start]:
    """Keep what a run and this process say of themselves while the block measures images.

    Args:
        store: the run, open.
        ids: of all images of the run.
        facts: how it is computed this time.
        remarks: what a reader of the numbers must know, by kind.
        batch_size: decides how a new run is cut into blocks.
        shard: which part this process measures.

    Raises Interrupted in place of KeyboardInterrupt, with everything saved, and OutputError when
    the block ends without records of every image though no other process may measure the rest.
    """
    store.begin(lambda: _first_facts(store, ids, facts, remarks, shard), batch_size)
    store.take_up(ids)
    start = Start(store.folder, store.token, {
        **facts, "shard": [shard.index, shard.count], "shard_from": shard.source})
    try:
        start.write(RUNNING)
        yield start
        start.write(RUNNING)  # whose seconds are in the header's
        start.write(_ended(store, ids, shard))
    except KeyboardInterrupt:
        start.write("interrupted")
        raise _interrupted(store) from None
    except Exception as error:
        with suppress(OutputError):
            start.write("failed", problem=str(error))
        raise
    finally:
        start.end()


def missing(store: RunStore, ids: Sequence[str]) -> int:
    """Return how many of the images ``ids`` have no records yet.

    Raises OutputError when there are records of other images outside of whole blocks.
    """
    store.take_up(ids)
    return store.lacking()


def complete(store: RunStore, ids: Sequence[str]) -> bool:
    """Say in the header that a run is complete, if it is; any process may do so at any time.

    Raises OutputError for a file of records that is not as it was written.
    """
    store.take_up(ids)
    if store.missing():
        return False
    store.require_sound()
    header = store.header()
    header.pop("problem", None)  # of an earlier version's start
    store.write_header({**header, "status": COMPLETE, "updated": now(),
                        "seconds": _seconds(store, header)})
    return True


def _ended(store: RunStore, ids: Sequence[str], shard: Shard) -> str:
    if complete(store, ids):
        return COMPLETE
    if shard.count == 1 and not others_at_work(store.folder, store.token):
        _require_all(store, ids)
    return DONE


def _require_all(store: RunStore, ids: Sequence[str]) -> None:
    lacking = store.lacking()
    if lacking:
        raise OutputError("a run must have records of all its images when it ends",
                          seen=f"{store.folder} lacks {lacking} of {len(ids)}",
                          hint="type the same command again, which measures them")


def _interrupted(store: RunStore) -> Interrupted:
    state = state_of(store.folder, store.header())
    return Interrupted("a run must finish to enter the tables",
                       seen=f"it was stopped after {state.recorded} of {state.images} images",
                       hint="type the same command again to go on from there")


def _first_facts(store: RunStore, ids: Sequence[str], facts: Mapping[str, object],
                 remarks: Mapping[str, Sequence[str]], shard: Shard) -> dict[str, object]:
    """Return what the header says where this process begins the run."""
    return {"status": RUNNING, "started": now(), ORDER: _next_order(store),
            "ids_digest": ids_digest(ids), LAUNCH: shard.launch,
            **{kind: list(told) for kind, told in remarks.items()}, **facts}


def _next_order(store: RunStore) -> int:
    """Return a new run's number in the order of first starts: clocks are set back now and then."""
    return 1 + max((run.order for run in all_runs(store.folder.parents[1])), default=0)


def _seconds(store: RunStore, header: Mapping[str, object]) -> float:
    """Return for how long processes have computed the run, those of earlier versions included."""
    before = header.get("starts")
    if not isinstance(before, list):
        before = [] if header.get("status") == COMPLETE else [header]
    values = [each.get("seconds") for each in (
        *before, *(each.facts for each in starts_of(store.folder)))]
    return round(sum(value for value in values if isinstance(value, (int, float))), 3)
