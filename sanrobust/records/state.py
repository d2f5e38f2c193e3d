"""How far a run is, told from the names of its files wherever they tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sanrobust.records.headers import BLOCK_SIZE
from sanrobust.records.names import Listing, files_in
from sanrobust.records.reader import RECORDS_FOLDER, Reader, outcomes, patiently, unreadable
from sanrobust.records.sealed import read_facts
from sanrobust.spec import digest_of


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        images: of the run.
        recorded: those that have records.
        blocks: of the run; 0 for a run of an earlier version that nobody has gone on with.
        there: blocks that are whole.
    """

    images: int
    recorded: int
    blocks: int
    there: int

    @property
    def whole(self) -> bool:
        """Whether every block is there."""
        return 0 < self.blocks == self.there


def state_of(folder: Path, header: Mapping[str, object]) -> State:
    """Return how far the run in ``folder`` is.

    Of a run with chunks of an earlier version the ids are read; of others, names alone. Raises
    OutputError where chunks do not read back.
    """
    return patiently(folder, lambda listing: _state(folder, header, listing))


def is_whole(folder: Path, header: Mapping[str, object]) -> bool:
    """Return whether every block of a run is there, by names alone."""
    images, size = _images(header), _size(header)
    blocks = files_in(folder / RECORDS_FOLDER).blocks
    return size > 0 and set(range(-(-images // size))) <= blocks.keys()


def failed_images(folder: Path, header: Mapping[str, object]) -> int:
    """Return how many images of a run are recorded as failed; reads no rows of blocks.

    Raises OutputError where a file does not read back.
    """
    return patiently(folder, lambda listing: _failed(folder, header, listing))


def _state(folder: Path, header: Mapping[str, object], listing: Listing) -> State:
    images, size = _images(header), _size(header)
    if listing.chunks or not size:
        table = _reader(folder, header).rows(listing, ())
        recorded = len(table.column("image").unique())
    else:
        recorded = _by_names(listing, images, size)
    blocks = -(-images // size) if size else 0
    return State(images, recorded, blocks, len(listing.blocks))


def _by_names(listing: Listing, images: int, size: int) -> int:
    """Count the images of blocks and parts."""
    count = sum(min(size, images - block * size) for block in listing.blocks)
    end = 0
    for part in listing.parts:
        first = max(part.first, end)
        count, end = count + max(part.last + 1 - first, 0), max(end, part.last + 1)
    return count


def _failed(folder: Path, header: Mapping[str, object], listing: Listing) -> int:
    count = sum(outcomes(_reader(folder, header).others(listing, ())).values()) \
        if listing.parts or listing.chunks else 0
    for path in listing.blocks.values():
        try:
            failed = read_facts(path).get("failed", 0)
        except FileNotFoundError:
            raise
        except Exception as error:  # pyarrow's are of several kinds
            raise unreadable(path, error) from error
        count += failed if isinstance(failed, int) else 0
    return count


def _reader(folder: Path, header: Mapping[str, object]) -> Reader:
    spec = header["spec"]
    assert isinstance(spec, dict)
    return Reader(folder, str(spec["experiment"]), digest_of(spec), header)


def _images(header: Mapping[str, object]) -> int:
    spec = header.get("spec")
    images = spec.get("images") if isinstance(spec, dict) else None
    return images if isinstance(images, int) and images > 0 else 0


def _size(header: Mapping[str, object]) -> int:
    size = header.get(BLOCK_SIZE)
    return size if isinstance(size, int) and size > 0 else 0
