"""Attacked images beside the clean ones, chosen by a rule that the page states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sanrobust.data.saved import FOLDER, SOURCE
from sanrobust.errors import DataError
from sanrobust.experiments.budgets import budget_order, budget_words
from sanrobust.reporting.curves import named
from sanrobust.reporting.images import EXACT_SIDE, SHOWN_SIDE, data_uri, picture
from sanrobust.reporting.originals import Originals
from sanrobust.runs import Run
from sanrobust.tables import Table

if TYPE_CHECKING:
    from torch import Tensor

    from sanrobust.data.replayed import SavedImages
    from sanrobust.data.saved import Saved

MOST_BYTES = 700_000
"""Of all pictures of a gallery as they stand in the page."""
TIMES = 10
"""By which a difference is made larger."""
# Of sizes recorded in float32, in 1/255 and in the pixel range.
_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Shot:
    """An image before and after an attack.

    Attributes:
        image: its id.
        pictures: what is seen and its address, in order.
        before, after: what the model said.
        label, target: classes by name; the target is empty where there was none.
        budget: in words.
        size: of the change, in words.
    """

    image: str
    pictures: tuple[tuple[str, str], ...]
    label: str
    before: str
    after: str
    target: str
    budget: str
    size: str


@dataclass(frozen=True)
class Wall:
    """The images of one run."""

    title: str
    shots: tuple[Shot, ...]
    note: str


@dataclass(frozen=True)
class Gallery:
    """The images of all runs, and the rule by which they were chosen."""

    walls: tuple[Wall, ...]
    rule: str
    without: tuple[str, ...]


def gallery(tables: Sequence[tuple[Table, Sequence[Run]]], count: int) -> Gallery:
    """Show up to ``count`` images of each run that saved its images.

    A run whose images are not as they were written is named among those without any.
    """
    walls: list[Wall] = []
    without: list[str] = []
    for table, runs in tables if count else ():
        names = named(table)
        for run in runs:
            if (run.folder / FOLDER / SOURCE).exists():
                title = ", ".join(filter(None, names.get(run.name, (run.name,))))
                try:
                    walls.append(_wall(title, run, count))
                except DataError as error:
                    without.append(str(error))
    shown = count
    while _bytes(walls, shown) > MOST_BYTES and shown > 1:
        shown -= 1
    cut = tuple(Wall(wall.title, wall.shots[:shown], wall.note) for wall in walls)
    return Gallery(cut, _rule(shown), tuple(without))


def _rule(count: int) -> str:
    images = "image" if count == 1 else f"{count} images"
    return (f"Of each run that kept its images: the first {images} in the order of the dataset "
            "that the model classified right before the attack and wrong after it, each under the "
            "first budget of the table in which that is so. The difference is attacked minus "
            f"clean, {TIMES} times as large, on grey. Pictures up to {EXACT_SIDE} pixels are "
            f"exact to 8 bits; larger ones are shown at {SHOWN_SIDE}.")


def _bytes(walls: Sequence[Wall], count: int) -> int:
    return sum(len(address) for wall in walls for shot in wall.shots[:count]
               for _, address in shot.pictures)


def _wall(title: str, run: Run, count: int) -> Wall:
    from sanrobust.data.replayed import open_saved
    saved, sizes = open_saved(run.folder), _sizes(run)
    originals = Originals(run)
    shots = []
    for rows in saved.saved:
        row = next((each for each in sorted(rows, key=_order) if each.clean_pred == each.label
                    and each.adv_pred not in (None, each.label)), None)
        if row is not None:
            shots.append(_shot(saved, row, sizes, originals))
        if len(shots) == count:
            break
    note = "" if shots else "No image was classified right before the attack and wrong after it."
    return Wall(title, tuple(shots), note)


def _order(row: Saved) -> tuple[float, ...]:
    return budget_order(row.budget)


def _shot(saved: SavedImages, row: Saved, sizes: Mapping[object, tuple[float, float]],
          originals: Originals) -> Shot:
    from sanrobust.data.decode import ImageError
    try:
        attacked = saved.pixels(row)
    except ImageError as error:
        raise DataError("every saved image must be as it was written",
                        seen=f"one of {saved.folder} is not ({error})",
                        hint="restore the folder, or make the images anew with "
                             "--save-adversarial --fresh") from error
    linf, l2 = sizes.get((row.image, row.budget), (math.nan, math.nan))
    clean = _verified(originals.pixels(row.image), attacked, linf, l2)
    shown = [("attacked", attacked)]
    if clean is not None:
        shown = [("clean", clean), *shown, (f"difference × {TIMES}",
                                            0.5 + TIMES * (attacked - clean))]
    label, before, after, target = (_class(saved, index) for index in (
        row.label, row.clean_pred, row.adv_pred, row.target))
    return Shot(
        row.image,
        tuple((words, data_uri(*picture(pixels))) for words, pixels in shown),
        label=label, before=before, after=after, target=target,
        budget=budget_words(tuple(math.inf if part is None else part for part in row.budget)),
        size="" if math.isnan(linf) else f"largest change {linf:.1f}/255, L2 {l2:.2f}")


def _class(saved: SavedImages, index: int | None) -> str:
    if index is None:
        return ""
    names = saved.classes or ()
    return names[index] if 0 <= index < len(names) else str(index)


def _verified(clean: Tensor | None, attacked: Tensor, linf: float, l2: float) -> Tensor | None:
    """Return the clean image if the change between the two is the one that was recorded."""
    if clean is None or clean.shape != attacked.shape:
        return None
    change = attacked.double() - clean.double()
    sizes = (float(change.abs().max()) * 255, float(change.norm()))
    fits = all(math.isclose(found, told, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
               for found, told in zip(sizes, (linf, l2)))
    return clean if fits else None


def _sizes(run: Run) -> dict[object, tuple[float, float]]:
    """Return the recorded sizes of the change, in L-inf and 1/255, and in L2, by image and budget.
    """
    from sanrobust.experiments.budgets import BUDGET, budgets_of
    records = run.records(["image", *BUDGET, "linf", "l2"])
    return {(image, budget): (float(linf), float(l2)) for image, budget, linf, l2 in zip(
        records["image"], budgets_of(records), records["linf"], records["l2"], strict=True)}
