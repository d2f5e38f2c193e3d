"""Per-image results on disk, written by any number of processes that know nothing of each other.

A run's folder holds ``run.json`` (what was run, and since when), ``starts/`` (who measures or
measured it, how) and ``records/``. The unit of work is a block of images, and a block is a file: it
appears whole, and writing it again writes the same rows. So it needs no lock and no order, what
is there is done, and a kill costs what was not saved of the blocks that were open.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.errors import OutputError
from sanrobust.files import NameTaken, output_error, sweep
from sanrobust.records.headers import (BLOCK_SIZE, HEADER_NAME, SEALED_FROM, read_header,
                                       write_header_file)
from sanrobust.records.names import Listing, block_path, files_in, part_path
from sanrobust.records.plan import Plan, block_size, ids_digest
from sanrobust.records.reader import (RECORDS_FOLDER, RUNS_FOLDER, Reader, chosen,
                                      coded, foreign, outcomes, patiently, schema, unreadable)
from sanrobust.records.sealed import read_facts, verified_facts, write_sealed
from sanrobust.spec import RunSpec

if TYPE_CHECKING:
    import pyarrow as pa

LAUNCH = "launch"
"""Key of a header under which stands which launch began the run."""
MOST_PARTS = 16
"""Files in which a process leaves an open block; more become one."""


class RunStore:
    """The records of one run, as one of its processes sees them.

    Args:
        out: folder of the results.
        spec: what the run's numbers depend on; decides the folder.
        fresh: start a new attempt beside earlier ones instead of going on with the last.
        launch: all processes with the same one share a fresh attempt.

    Attributes:
        folder: of the run.
        token: name of this process in it, which no other has.
    """

    def __init__(self, out: Path, spec: RunSpec, *, fresh: bool = False,
                 launch: str | None = None) -> None:
        self.spec, self.token = spec, secrets.token_hex(8)
        try:
            self.folder = _attempt_folder(out / RUNS_FOLDER, spec, fresh=fresh, launch=launch)
        except OSError as error:  # a name too long, a folder that may not be looked into
            raise output_error(out, error) from error
        self._records = self.folder / RECORDS_FOLDER
        self._plan: Plan | None = None
        self._outside: dict[str, bool] = {}  # of images in parts and chunks: whether they failed
        self._covered: frozenset[int] = frozenset()  # blocks whose images all are in chunks
        self._open: int | None = None
        self._rows: list[pa.Table] = []  # of the open block, as measured by this process
        self._parts: list[Path] = []

    def __enter__(self) -> RunStore:
        try:
            self._records.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, *(each for each in self.folder.iterdir() if each.is_dir())):
                sweep(folder)
        except OSError as error:
            raise output_error(self.folder, error) from error
        header = self.header()
        if header and header["spec_digest"] != self.spec.digest:
            raise OutputError("a run's folder must hold one specification",
                              seen=f"{self.folder} was written for another one",
                              hint="pass --fresh, or name another folder with --out")
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the folder to others."""

    def header(self) -> dict[str, object]:
        """Return the content of ``run.json``, or an empty dict before the first write."""
        path = self.folder / HEADER_NAME
        return read_header(path) if path.exists() else {}

    def write_header(self, facts: Mapping[str, object]) -> None:
        """Write ``run.json``: the specification, its digest, ``facts``, and a hash of it all."""
        write_header_file(self.folder / HEADER_NAME, self._header_of(facts))

    def begin(self, facts: Callable[[], Mapping[str, object]], batch_size: int) -> None:
        """Write the header of a run that has none, unless another process is faster.

        A run of an earlier version gets what it lacks: how its images are cut into blocks.

        Args:
            facts: makes what a new header says.
            batch_size: decides how the images are cut.
        """
        header = self.header()
        if BLOCK_SIZE in header:
            return
        size = self._size_found() or block_size(self.spec.images, batch_size)
        wanted = self._header_of({**(header or facts()), BLOCK_SIZE: size})
        with suppress(NameTaken):
            write_header_file(self.folder / HEADER_NAME, wanted, replace=bool(header))

    def _header_of(self, facts: Mapping[str, object]) -> dict[str, object]:
        sealed_from = facts.get(SEALED_FROM, files_in(self._records).next_chunk)
        return {**facts, "spec": self.spec.as_dict(), "spec_digest": self.spec.digest,
                SEALED_FROM: sealed_from}

    def take_up(self, ids: Sequence[str]) -> None:
        """Find out which of the run's images ``ids`` have records.

        Reads what lies outside of whole blocks; of those it reads nothing. Raises OutputError for
        damage, and for records of images that are not the run's.
        """
        header, listing = self.header(), files_in(self._records)
        if header and SEALED_FROM not in header and (listing.blocks or listing.parts):
            raise OutputError("a run's header must hold its hash, as the files beside it do",
                              seen=f"{self.folder / HEADER_NAME} has lost it",
                              hint="restore it, or delete it and type the command that "
                                   "measured it again, which goes on with the run's records")
        size = header.get(BLOCK_SIZE) or self._size_found() or max(len(ids), 1)
        assert isinstance(size, int)
        self._plan = Plan(ids, size)
        self._outside = patiently(self.folder, self._outcomes)
        self._covered = self._covered_blocks(ids)
        self._sweep(files_in(self._records))

    def _outcomes(self, listing: Listing) -> dict[str, bool]:
        if not (listing.parts or listing.chunks):
            return {}
        return outcomes(self._reader().others(listing, ()))

    def _covered_blocks(self, ids: Sequence[str]) -> frozenset[int]:
        """Return the blocks of which all images are in chunks; refuses images of another set."""
        if not self._outside:
            return frozenset()
        others = self._outside.keys() - set(ids)
        if others:
            raise OutputError("a run must hold records of its own images alone",
                              seen=f"{self.folder} holds {len(others)} of others (the first is "
                                   f"{min(others)})", hint="start anew with --fresh")
        listing = files_in(self._records)
        if not listing.chunks:
            return frozenset()
        of_parts = {part.block for part in listing.parts}
        return frozenset(block for block in range(self.plan.blocks) if block not in of_parts
                         and all(map(self._outside.__contains__, self.plan.ids_of(block))))

    def _sweep(self, listing: Listing) -> None:
        """Delete what a kill left of parts and chunks once what stands for them reads back."""
        for block in {part.block for part in listing.superseded}:
            self._facts(listing.blocks[block], verified_facts)
        for path in (*(part.path for part in listing.superseded), *listing.merged_away):
            path.unlink(missing_ok=True)

    @property
    def plan(self) -> Plan:
        """How the images are cut into blocks."""
        assert self._plan is not None, "take_up comes first"
        return self._plan

    def is_there(self, block: int) -> bool:
        """Return whether all images of a block have their records in one place."""
        return block in self._covered or block_path(self._records, block).exists()

    def missing(self) -> list[int]:
        """Return the blocks that are not there."""
        there = files_in(self._records).blocks.keys() | self._covered
        return [block for block in range(self.plan.blocks) if block not in there]

    def lacking(self) -> int:
        """Return how many images have no records."""
        return sum(len(self.todo(block)) for block in self.missing())

    def failing(self, blocks: Iterable[int]) -> dict[int, int]:
        """Return how many images of each of the blocks are recorded as failed, if any are."""
        there = files_in(self._records).blocks
        found = {}
        for block in blocks:
            if block in there:
                count = self._facts(there[block], read_facts).get("failed")
            else:
                count = sum(self._outside.get(image, False) for image in self.plan.ids_of(block))
            if isinstance(count, int) and count:
                found[block] = count
        return found

    def todo(self, block: int, *, retry: bool = False) -> list[int]:
        """Return the positions of a block's images that have no records.

        Args:
            retry: and of those that are recorded as failed.
        """
        path = block_path(self._records, block)
        known: Mapping[str, bool] = self._outside
        if path.exists():
            if not retry:
                return []
            known = outcomes(self._reader().rows_of([path])[0])
        return [position for position in self.plan.positions(block)
                if known.get(self.plan.ids[position], True) and (
                    retry or self.plan.ids[position] not in known)]

    def append(self, block: int, columns: Mapping[str, Sequence[object]]) -> None:
        """Add rows of images of one block; with the last of them the block is there.

        Args:
            block: its number.
            columns: values per column; all rows of an image must be in the same call.

        Rows of a block that is there replace those of the images that failed; of others they are
        the same. Raises OutputError when the disk refuses it.
        """
        if block != self._open:
            self._open, self._rows, self._parts = block, [], []
        table = coded(columns, self.spec.experiment)
        self._rows.append(table)
        measured = {image for rows in self._rows for image in outcomes(rows)}
        if not (self._is_known(block, measured) and self.finish(block)):
            self._save_part(block, table)

    def _is_known(self, block: int, measured: set[str]) -> bool:
        return block_path(self._records, block).exists() or all(
            image in measured or image in self._outside for image in self.plan.ids_of(block))

    def finish(self, block: int) -> bool:
        """Write a block if all of its images have records, and delete its parts.

        Returns whether it is there.
        """
        own = self._rows if block == self._open else []
        path = block_path(self._records, block)
        if not path.exists() or (own and self.failing([block])):
            table = chosen([*self._before(block, own), *own])
            if not outcomes(table).keys() >= set(self.plan.ids_of(block)):
                return False
            self._write(path, self._in_order(table, block), block)
            self._open = None
        for part in files_in(self._records).superseded:
            if part.block == block:
                part.path.unlink(missing_ok=True)
        return True

    def _before(self, block: int, own: Sequence[pa.Table]) -> list[pa.Table]:
        """Return what other processes, or earlier ones, have measured of a block.

        Nothing where this one measured all of it.
        """
        measured = {image for rows in own for image in outcomes(rows)}
        if measured.issuperset(self.plan.ids_of(block)):
            return []
        return patiently(self.folder, lambda listing: self._rows_before(listing, block))

    def _rows_before(self, listing: Listing, block: int) -> list[pa.Table]:
        import pyarrow as pa
        import pyarrow.compute as pc
        reader = self._reader()
        if block in listing.blocks:
            return reader.rows_of([listing.blocks[block]])
        found = reader.rows_of([part.path for part in listing.parts if part.block == block])
        if listing.chunks:
            old = reader.others(replace(listing, parts=()))
            own = pa.array(self.plan.ids_of(block))
            found.insert(0, old.filter(pc.is_in(old.column("image").cast(pa.string()),
                                                value_set=own)))
        return found

    def _in_order(self, table: pa.Table, block: int) -> pa.Table:
        """Return the rows of a block's own images in the order of the dataset."""
        places = {image: place for place, image in enumerate(self.plan.ids_of(block))}
        images = table.column("image").to_pylist()
        return table.take(sorted(range(len(images)), key=lambda row: places[images[row]]))

    def _save_part(self, block: int, table: pa.Table) -> None:
        import pyarrow as pa
        old: list[Path] = []
        if len(self._parts) >= MOST_PARTS:
            old, self._parts = self._parts, []
            table = pa.concat_tables(self._rows).unify_dictionaries()
        images = outcomes(table)
        places = [place for place in self.plan.positions(block) if self.plan.ids[place] in images]
        path = part_path(self._records, block, places[0], places[-1], self.token)
        self._write(path, table, block)
        self._parts.append(path)
        for each in old:
            each.unlink(missing_ok=True)

    def _write(self, path: Path, table: pa.Table, block: int) -> None:
        found = outcomes(table)
        write_sealed(path, table.cast(schema(self.spec.experiment)), {
            "spec": self.spec.digest, "block": block, "size": self.plan.size,
            "images": len(found), "failed": sum(found.values()), "ids": ids_digest(found)})

    def require_sound(self) -> None:
        """See that every block is as it was written and holds its own images; reads no rows.

        Raises OutputError that names the first that does not.
        """
        for block, path in files_in(self._records).blocks.items():
            facts = self._facts(path, verified_facts)
            if facts.get("spec") != self.spec.digest:
                raise foreign(path)
            if facts.get("size") != self.plan.size \
                    or facts.get("ids") != ids_digest(self.plan.ids_of(block)):
                raise unreadable(path, ValueError("it holds other images than its name says"))

    def _facts(self, path: Path, read: Callable[[Path], dict[str, object]]) -> dict[str, object]:
        import pyarrow as pa
        try:
            return read(path)
        except (OSError, pa.ArrowException, ValueError, KeyError, OverflowError) as error:
            raise unreadable(path, error) from error

    def _size_found(self) -> int | None:
        """Return the size of the blocks of a run that has lost its header."""
        listing = files_in(self._records)
        for path in (*listing.blocks.values(), *(part.path for part in listing.parts)):
            size = self._facts(path, read_facts).get("size")
            if isinstance(size, int) and size > 0:
                return size
        return None

    def _reader(self) -> Reader:
        return Reader(self.folder, self.spec.experiment, self.spec.digest, self.header())


def _attempt_folder(runs: Path, spec: RunSpec, *, fresh: bool, launch: str | None) -> Path:
    """Return the last attempt's folder, or the next one's for a fresh start."""
    attempt = 1
    while _attempt_name(runs, spec, attempt + 1).exists():
        attempt += 1
    last = _attempt_name(runs, spec, attempt)
    if fresh and last.exists() and not _is_of_launch(last, launch):
        return _attempt_name(runs, spec, attempt + 1)
    return last


def _is_of_launch(folder: Path, launch: str | None) -> bool:
    """Return whether a process of the same launch began an attempt, or is about to."""
    if launch is None:
        return False
    path = folder / HEADER_NAME
    return not path.exists() or read_header(path).get(LAUNCH) == launch


def _attempt_name(runs: Path, spec: RunSpec, attempt: int) -> Path:
    return runs / (spec.run_id if attempt == 1 else f"{spec.run_id}.{attempt}")
