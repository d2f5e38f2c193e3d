"""What a function of an experiment returns: its table, its records, and the images that it made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sanrobust.data.replayed import SavedImages, open_saved
from sanrobust.data.saved import FOLDER, SOURCE, Saved
from sanrobust.errors import UsageError
from sanrobust.runs import Run
from sanrobust.summary import Summary

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What was measured, of the models asked for alone.

    ``result["top1"]`` is a column of the table, ``result[["model", "top1"]]`` are several.

    Attributes:
        table: a row for each model and part of the experiment, rates in percent, unrounded.
        text: the table as the command prints it.
        files: where it was written.
        runs: the runs whose numbers it has, as they lie on disk.
    """

    table: pd.DataFrame
    text: str
    files: tuple[Path, ...]
    runs: tuple[Run, ...] = field(default=())

    @cached_property
    def records(self) -> pd.DataFrame:
        """What was recorded of each image, in the table's runs, which ``run_id`` tells apart.

        Raises OutputError where a run does not read back.
        """
        import pandas as pd
        return pd.concat([_records(run) for run in self.runs], ignore_index=True)

    @cached_property
    def adversarial(self) -> Adversarial:
        """The images that one run made and saved, which are read when they are asked for.

        Raises UsageError where there are several runs, or none saved its images, and DataError
        where they are not as they were written.
        """
        if len(self.runs) != 1:
            raise UsageError("adversarial images must be those of one run",
                             seen=f"there are {len(self.runs)}",
                             hint="measure one model and set of images for each call")
        folder = self.runs[0].folder
        if not (folder / FOLDER / SOURCE).exists():
            raise UsageError("adversarial images must have been saved", seen=f"{folder} has none",
                             hint="give save_adversarial=True, and fresh=True where the images "
                                  "were measured without it")
        return Adversarial(open_saved(folder))

    def __getitem__(self, columns: Any) -> Any:
        return self.table[columns]

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        html: str = self.table.to_html(index=False)
        return html

    if not TYPE_CHECKING:
        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"a Result has no {name!r}: its rows are the DataFrame "
                                 "result.table, what was recorded of each image is result.records")


class Adversarial:
    """Images that a run made and saved, float32 in [0, 1], read from disk when they are indexed.

    ``images[3]`` is an image (3, S, S), ``images[:100]`` are the first hundred, (100, 3, S, S), and
    ``images[:]`` are all N. Where the run had several budgets, the first index is that of the
    budget, in the order of the table: ``images[1]`` is another `Adversarial`, and ``images[1][:]``
    are its images.

    Attributes:
        ids: of the images, in the order of the records; those that failed have none.
        labels: their class indices.
        budgets: eps, step and iterations of each budget, in 1/255 or the pixel range.
    """

    def __init__(self, saved: SavedImages, budgets: tuple[int, ...] | None = None) -> None:
        self._saved = saved
        self._chosen = tuple(range(len(saved.budgets))) if budgets is None else budgets
        self.ids = tuple(ref.id for ref in saved.refs)
        self.labels = tuple(ref.label for ref in saved.refs)
        self.budgets = tuple(saved.budgets[place] for place in self._chosen)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, 3, S, S), or (E, N, 3, S, S) for E budgets."""
        side = self._saved.source.side
        of_one = (len(self.ids), 3, side, side)
        return of_one if len(self._chosen) == 1 else (len(self._chosen), *of_one)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Tensor | Adversarial:
        import torch
        if len(self._chosen) > 1:
            if isinstance(index, slice):
                parts = [Adversarial(self._saved, (place,)) for place in self._chosen[index]]
                return torch.stack([part._images(slice(None)) for part in parts])
            return Adversarial(self._saved, (self._chosen[index],))
        return (self._images(index) if isinstance(index, slice)
                else self._image(self._saved.saved[index]))

    def __iter__(self) -> Iterator[Tensor | Adversarial]:
        return (self[place] for place in range(len(self)))

    def _images(self, part: slice) -> Tensor:
        import torch
        side = self._saved.source.side
        images = [self._image(rows) for rows in self._saved.saved[part]]
        return torch.stack(images) if images else torch.empty(0, 3, side, side)

    def _image(self, rows: tuple[Saved, ...]) -> Tensor:
        return self._saved.pixels(rows[self._chosen[0]])

    def __repr__(self) -> str:
        return f"Adversarial of shape {self.shape} in {self._saved.folder}"


def result_of(summary: Summary) -> Result:
    """Return what a summary and its runs hold."""
    return Result(summary.frame, summary.text, summary.files, summary.runs)


def _records(run: Run) -> pd.DataFrame:
    records = run.records()
    for column in records.columns:
        if records[column].dtype == "category":  # as text is held on disk
            records[column] = records[column].astype(object)
    names: dict[str, Any] = {"run_id": run.name, "model": run.spec["model"],
                             "data": run.spec["data"]}
    for place, (column, told) in enumerate(names.items()):
        if column not in records.columns:
            records.insert(place, column, told)
    return records
