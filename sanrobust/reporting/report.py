"""``sanrobust report``: a folder of results as one page, with its figures beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

from sanrobust.choices import as_count, as_names, as_path
from sanrobust.comparing import compared
from sanrobust.comparison import sheet_of
from sanrobust.errors import OutputError, SanrobustError, UsageError
from sanrobust.experiments.base import Experiment
from sanrobust.experiments.budgets import BUDGET
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.experiments.layout import Listing
from sanrobust.files import atomic_write, require_writable
from sanrobust.processes import uninterrupted
from sanrobust.reporting import curves, provenance
from sanrobust.reporting.attention import Look, looks
from sanrobust.reporting.classes import class_view
from sanrobust.reporting.figures import KINDS, Picture, pictures
from sanrobust.reporting.gallery import Gallery, gallery
from sanrobust.reporting.page import PAGE, Page, render
from sanrobust.reporting.verdicts import verdicts
from sanrobust.reporting.views import TableView, listing_view, listing_views, table_view
from sanrobust.runs import Run, find_runs, require_runs, strange_runs
from sanrobust.summary import Selection, Summary, damage, gather, require_known
from sanrobust.tables import Table, paper_tables, to_csv

FOLDER = "report"
MOST_IMAGES = 12
_OWN_FIGURES = ("_severities", "_steps")


@dataclass(frozen=True)
class Section:
    """What a page says of one experiment.

    Attributes:
        name: of the experiment.
        table: its numbers.
        remarks: what is not in it, and what to know besides.
        more: further tables.
        figures: drawn from it.
        csv: the file that has the unrounded numbers.
        paper: the paper's own table, where none of its values stands beside ours.
        paired: the models held against each other on the same images; None where none can be.
    """

    name: str
    table: TableView
    remarks: tuple[str, ...]
    more: tuple[TableView, ...]
    figures: tuple[Picture, ...]
    csv: str
    paper: TableView | None
    paired: TableView | None


def report(out: str | Path = "results", *, to: str | Path | None = None,
           runs: Sequence[str] = (), models: Sequence[str] = (), data: Sequence[str] = (),
           images: int = 3, attention: bool = True) -> Page:
    """Write the page of the complete runs under ``out``.

    Args:
        out: folder of results.
        to: folder of the page; None for ``report`` in it.
        runs, models, data: which runs to show, as ``sanrobust table`` takes them; none means any.
        images: attacked images shown of each run that saved them, from 0 to 12.
        attention: draw where attention models of the zoo look.

    A run that does not read back is left out, named on the page, and is the report's problem.
    Raises OutputError where there is no complete run or a file cannot be written, UsageError for a
    choice that fits no run.
    """
    out = as_path(out, "out")
    folder = out / FOLDER if to is None else as_path(to, "to")
    images = as_count(images, "images", MOST_IMAGES)
    chosen = Selection(as_names(runs, "runs"), as_names(models, "models"), as_names(data, "data"))
    require_runs(out)
    require_writable(folder, PAGE)
    found, problems = _summaries(out, chosen)
    sections = [_section(EXPERIMENTS.get(name), each) for name, each in found.items()]
    shown = gallery([(each.table, each.runs) for name, each in found.items()
                     if EXPERIMENTS.get(name).makes_images], images)
    every = [run for each in found.values() for run in each.runs]
    strange = tuple(strange_runs(out))
    page = _page(out, sections, shown, looks(every) if attention else (), every,
                 class_views(found), strange)
    files: dict[str, bytes] = {PAGE: page.encode("utf-8")}
    for section, summary in zip(sections, found.values(), strict=True):
        files[section.csv] = to_csv(summary.table).encode("utf-8")
        files.update({name: content for figure in section.figures
                      for name, content in figure.files.items()})
    remarks = (*strange, *(remark for each in found.values() for remark in each.remarks),
               *shown.without)
    return Page(folder / PAGE, _write(folder, files), remarks, damage(problems))


def _summaries(out: Path, chosen: Selection) -> tuple[dict[str, Summary], list[OutputError]]:
    """Return the tables of all experiments that have one, and what is wrong with others."""
    names = [name for name in EXPERIMENTS.names() if not find_runs(out, name).empty]
    require_known(out, names, chosen)
    found: dict[str, Summary] = {}
    problems: list[SanrobustError] = []
    for name in names:
        try:
            found[name] = gather(out, name, chosen=chosen)
        except (UsageError, OutputError) as error:
            problems.append(error)
    if not found:
        raise problems[0]
    damaged = [error for error in (*problems, *(each.problem for each in found.values()))
               if isinstance(error, OutputError)]
    return found, damaged


def _section(experiment: Experiment, summary: Summary) -> Section:
    table, stem = summary.table, experiment.files
    figures = tuple(_figures(experiment, table, summary.runs))
    beside = any(name.startswith("paper_") for name in table.columns)
    own = None if beside or experiment.reference is None else _paper(experiment)
    return Section(experiment.name, table_view(table, experiment.name), summary.remarks,
                   tuple(listing_views(table, experiment.name)), figures, f"{stem}.csv", own,
                   _paired(experiment, summary.runs))


def _paired(experiment: Experiment, runs: Sequence[Run]) -> TableView | None:
    made = compared(experiment, runs)
    if made is None:
        return None
    table = sheet_of(made)
    lines = tuple(line for group in table.groups for line in group)
    title = f"{experiment.name}: which models differ, image by image"
    return listing_view(Listing(title, table.headings, lines, stubs=table.stubs),
                        f"{experiment.name}-paired", table.caption)


def _paper(experiment: Experiment) -> TableView:
    view = table_view(paper_tables()[experiment.files], f"{experiment.name}-paper")
    return replace(view, title=f"The paper: {view.title}")


def _figures(experiment: Experiment, table: Table, runs: Sequence[Run]) -> Iterator[Picture]:
    stem = experiment.files
    for plot in experiment.plots:
        yield from pictures(stem + plot.suffix, plot.title or experiment.name,
                            partial(plot.draw, table.rows))
    yield from pictures(f"{stem}_severities", "Error against severity, by corruption",
                        partial(curves.draw_severities, table))
    if all(name in experiment.records.columns for name in (*BUDGET, *curves.LOSSES)):
        yield from pictures(f"{stem}_steps", "Median loss of the images against step; an image "
                            "that is done keeps its last one",
                            partial(curves.draw_steps, table, runs))


def class_views(found: Mapping[str, Summary]) -> tuple[TableView, ...]:
    """Return the tables of classes of all experiments that have any."""
    views = (class_view(each.table, f"{name}-classes") for name, each in found.items())
    return tuple(view for view in views if view is not None)


def _page(out: Path, sections: Sequence[Section], shown: Gallery, seen: Sequence[Look],
          runs: Sequence[Run], classes: Sequence[TableView], strange: Sequence[str]) -> str:
    version = metadata.version("sanrobust")
    checked = [listing_view(each, f"validity-{number}")
               for number, each in enumerate(verdicts(out), 1)]
    return render(
        "report.html", title=f"Robustness report: {_named(out)}", sections=sections, gallery=shown,
        looks=seen, classes=classes, verdicts=checked, strange=strange,
        models=len({str(run.spec["model"]) for run in runs}), runs=len(runs),
        data=list(dict.fromkeys(str(run.spec["data"]) for run in runs)),
        provenance=[listing_view(provenance.of_runs(runs), "runs"),
                    listing_view(provenance.of_machines(runs), "machines")],
        commands=provenance.commands(runs, str(out)), references=provenance.references(version),
        version=version)


def _named(out: Path) -> str:
    return out.name or out.resolve().name or "results"


def _write(folder: Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    with uninterrupted():  # all files or none
        for name, content in files.items():
            with atomic_write(folder / name) as stream:
                stream.write(content)
        for name in _may_be_written() - set(files):  # an earlier report's would be another's
            (folder / name).unlink(missing_ok=True)
    return tuple(folder / name for name in files)


def _may_be_written() -> set[str]:
    """Return the names of all figures that reports draw of any experiment."""
    stems = {experiment.files + suffix for experiment in EXPERIMENTS
             for suffix in (*(plot.suffix for plot in experiment.plots), *_OWN_FIGURES)}
    return {f"{stem}.{kind}" for stem in stems for kind in KINDS}
