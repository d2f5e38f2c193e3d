"""Images that a training has to do without, and those that it must not."""

from __future__ import annotations

from collections.abc import Mapping

from sanrobust.csvfiles import shown
from sanrobust.data.decode import ImageError
from sanrobust.data.imageset import ImageSet
from sanrobust.data.loader import Batch
from sanrobust.errors import DataError


def all_broken(images: ImageSet) -> str | None:
    """Say why no image can be decoded; None as soon as one can."""
    reasons: dict[str, str] = {}
    for index, ref in enumerate(images.refs):
        try:
            images.load(index)
            return None
        except ImageError as error:
            reasons[ref.id] = str(error)
    return f"none of {len(images.refs)} can ({first(reasons)})"


def undecodable(reasons: Mapping[str, str], total: int, split: str) -> str:
    """Say how many of an entire split are left out."""
    return (f"{len(reasons)} of {total} {split} images cannot be decoded and are left out "
            f"({first(reasons)})")


def first(reasons: Mapping[str, str]) -> str:
    """Return the first image and its reason."""
    image, reason = next(iter(reasons.items()))
    return f"the first is {shown(image)}: {reason}"


def note_lost(batch: Batch, lost: dict[str, str]) -> None:
    """Enter images that cannot be decoded; raises DataError for those that could not be read.

    Without them the weights would be of other images than the job names.
    """
    unread = {failure.id: failure.reason for failure in batch.failures if failure.passing}
    if unread:
        raise DataError("every image must be readable while it is trained on", seen=first(unread),
                        hint="see to it that it can be read, and type the same command again")
    lost.update((failure.id, failure.reason) for failure in batch.failures)
