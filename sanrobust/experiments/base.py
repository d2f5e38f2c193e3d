"""What an experiment is: one value that knows everything about itself.

Commands, Python functions, records, tables and their choices follow from it. Importing an
experiment loads neither torch nor pandas; its functions load what they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sanrobust.experiments.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

    from sanrobust.data.imageset import ImageSet
    from sanrobust.data.loader import Batch, FailedImage
    from sanrobust.metrics import Summary
    from sanrobust.preprocessing import Preprocessing

    Model = Callable[[Tensor], Tensor]

Columns = dict[str, Sequence[object]]
"""Values by column, one per row."""
Images = Sequence["Tensor | None"]
"""The image of each row, float32 (3, S, S) in [0, 1]; None for a row that has an error."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """The form in which an experiment's measurements lie on disk, one or several rows per image.

    Attributes:
        columns: kind of each column by its name: string, int32, float32, float64, bool, or a list
            of float32 (``list<float>``). There must be ``image``, ``label`` and ``error``, which
            says why an image has no measurements and is null for all others. Each may hold nulls.
        key: columns that tell all rows apart, ``image`` first.
        read: columns that the summary reads.
        version: raised when columns change their meaning. Columns that were not written yet are
            null.
    """

    columns: Mapping[str, str]
    key: tuple[str, ...]
    read: tuple[str, ...]
    version: int = 1


class Measurement(Protocol):
    """An experiment with its settings, ready for the loop.

    Attributes:
        gradient: whether it takes gradients with respect to the pixels.
        batched: whether it gives the model several images at a time.
        notes: what the user should know of these settings before anything is measured.
    """

    @property
    def gradient(self) -> bool: ...

    @property
    def batched(self) -> bool: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def spec(self) -> Mapping[str, object]:
        """Return everything that decides the numbers, as JSON values."""
        ...

    def check(self, images: ImageSet, *, num_classes: int,
              preprocessing: Preprocessing) -> Sequence[str]:
        """Return what the user should know before these images are measured.

        Raises where they cannot be, with a model of ``num_classes`` logits.
        """
        ...

    def measure(self, model: Model, batch: Batch) -> Columns:
        """Return the records of a batch; the rows of an image in the order of the key."""
        ...

    def failed(self, image: FailedImage) -> Columns:
        """Return the records of an image that could not be decoded or may not be measured."""
        ...


class Maker(Measurement, Protocol):
    """A measurement of images that it makes itself and can hand over."""

    def make(self, model: Model, batch: Batch) -> tuple[Columns, Images]:
        """Do as `measure`; return with the records the image that was made for each row."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Published numbers that may stand beside measured ones.

    Attributes:
        rows: makes them, with the column ``model`` and the table's own.
        fits: says of a row, by its columns, whether they may stand beside it.
        note: makes the sentence that says where they are from.
    """

    rows: Callable[[], pd.DataFrame]
    fits: Callable[[Mapping[str, object]], bool]
    note: Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure that is written beside the table, as SVG and PNG.

    Attributes:
        suffix: what its file's name has behind that of the table; may be empty.
        draw: draws the rows of a table, or returns None where there is nothing to draw.
        title: what it shows, a phrase.
    """

    suffix: str
    draw: Callable[[pd.DataFrame], Figure | None]
    title: str = ""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Whether a rate's yes holds of each image.

    Attributes:
        name: of the rate, as the layout has it.
        holds: by image, nullable flags, numbers from 0 to 1 where several answers of an image are
            averaged, or from -1 to 1 for a drop, the difference of two; NA where it is not known,
            as of images that failed.
        part: values of the layout's part columns, None for what the run does not have; empty for
            what its parts share.
    """

    name: str
    holds: pd.Series[Any]
    part: tuple[object, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything about one experiment.

    Attributes:
        name: of the command, the Python function and the specification.
        files: name of its tables' files.
        help: of the command: a line, an empty line, and what it does and writes.
        settings: frozen dataclass whose fields are made with `sanrobust.options.setting`; it raises
            UsageError for what cannot be meant.
        prepare: makes a measurement of settings; raises a deliberate error where files or packages
            that they name cannot serve.
        records: form of the records.
        summarise: rows of the table from a run's records and its specification's settings.
        told_by_rows: settings of the specification that the rows tell themselves, as a list of
            budgets, of which one does not change the numbers of another.
        layout: how the table is printed.
        outcomes: what holds of each image, from the same, for `sanrobust.comparing`; None: models
            cannot be compared by it.
        reference: published numbers, where there are any.
        plots: figures beside the table.
        makes_images: whether its measurements are each a `Maker`, whose images the user may save.
        opens: the images of a folder of the experiment's own kind, which the command takes in place
            of a dataset; None: datasets.
    """

    name: str
    files: str
    help: str
    settings: type
    prepare: Callable[[Any], Measurement]
    records: Records
    summarise: Callable[[pd.DataFrame, Mapping[str, object]], Sequence[Summary]]
    layout: Layout
    outcomes: Callable[[pd.DataFrame, Mapping[str, object]], Iterator[Outcome]] | None = None
    told_by_rows: tuple[str, ...] = ()
    reference: Reference | None = None
    plots: tuple[Plot, ...] = ()
    makes_images: bool = False
    opens: Callable[[Path], ImageSet] | None = None


def stacked(tables: Sequence[Columns]) -> Columns:
    """Return the rows of several tables below each other."""
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}
