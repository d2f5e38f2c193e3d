"""``sanrobust leaderboard``: models of several folders, ranked where they were measured alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from sanrobust.choices import as_names, as_path
from sanrobust.comparing import differing
from sanrobust.errors import DataError, UsageError
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.experiments.layout import Listing, Measure
from sanrobust.files import require_writable, write_text
from sanrobust.processes import uninterrupted
from sanrobust.reporting.page import PAGE, Page, render
from sanrobust.reporting.standings import Standing, documents, gathered
from sanrobust.reporting.views import Shown, TableView, Unit, listing_view, table_view
from sanrobust.summary import DEMO_NOTE
from sanrobust.tables import Table, make_table
from sanrobust.tables.grid import grid


@dataclass(frozen=True)
class Ranking:
    """Models measured alike.

    Attributes:
        table: them in their order, the first with their rank.
        by: by what they are ranked, a sentence.
    """

    table: TableView
    by: str


def leaderboard(folders: str | Path | Sequence[str | Path] = ("results",), *,
                to: str | Path = "leaderboard") -> Page:
    """Write a page of rankings over the folders, and a JSON for each model.

    Args:
        folders: of results, or of JSON that an earlier leaderboard wrote.
        to: where page and JSON are written.

    Raises OutputError where a folder has no complete run or a file cannot be written, DataError
    for JSON that is not as it was written.
    """
    target = as_path(to, "to")
    found = gathered([as_path(folder, "folders") for folder in as_names(folders, "folders")])
    if not found.standings:
        raise found.problem or UsageError(
            "a leaderboard must have complete runs", seen="there are none",
            hint="measure models first, for example with sanrobust rotate")
    require_writable(target, PAGE)
    known = [each for each in found.standings if each.experiment in EXPERIMENTS]
    strange = [f"not shown: {each.run}, of the experiment {each.experiment}, which is not here"
               for each in found.standings if each.experiment not in EXPERIMENTS]
    page = render("leaderboard.html", title="Robustness leaderboard", boards=list(_boards(known)),
                  coverage=listing_view(_coverage(known), "coverage"),
                  version=metadata.version("sanrobust"))
    files = {PAGE: page, **documents(found.standings)}
    with uninterrupted():
        for name, text in files.items():
            write_text(target / name, text)
    return Page(target / PAGE, tuple(target / name for name in files),
                (*found.remarks, *strange), found.problem)


@dataclass(frozen=True)
class ExperimentBoard:
    """The rankings of one experiment, and who stands alone."""

    name: str
    rankings: tuple[Ranking, ...]
    apart: TableView | None


def _boards(standings: Sequence[Standing]) -> Iterator[ExperimentBoard]:
    for name in EXPERIMENTS.names():
        groups: dict[str, list[Standing]] = {}
        for standing in standings:
            if standing.experiment == name:
                groups.setdefault(standing.group, []).append(standing)
        several = sorted((each for each in groups.values() if len(each) > 1),
                         key=lambda each: -len(each))
        alone = [each[0] for each in groups.values() if len(each) == 1]
        if groups:
            rankings = tuple(_ranking(name, each, number)
                             for number, each in enumerate(several, 1))
            yield ExperimentBoard(name, rankings, _apart(name, alone, several) if alone else None)


def _table(name: str, standings: Sequence[Standing]) -> Table:
    note = DEMO_NOTE if any(each.alike.get("data") == "digits" for each in standings) else ""
    try:
        return make_table(EXPERIMENTS.get(name), [
            {**row, "run_id": each.run} for each in standings for row in each.rows], note=note)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError("the rows of a leaderboard must be those of the experiment's tables",
                        seen=f"some of {name} are not ({error})",
                        hint="make its JSON anew from the runs") from error


def _ranking(name: str, standings: Sequence[Standing], number: int) -> Ranking:
    table = _table(name, standings)
    view, key, measure = table_view(table, f"{name}-{number}", bold=False), *_ranked(table)
    ranked = sorted(view.units, key=lambda unit: _order(unit, key, measure))
    units = tuple(_with_rank(unit, ranked, key, measure) for unit in ranked)
    better = "lower" if measure.best is min else "higher"
    by = (f"Ranked by {_in_words(table, key)} ({better} is better). A rank is a range: from one "
          "more than the models whose intervals lie wholly on the better side, to all but those "
          "on the worse side.")
    return Ranking(replace(view, stubs=(*view.stubs[:1], "Rank", *view.stubs[1:]), units=units), by)


def _ranked(table: Table) -> tuple[str, Measure]:
    """Return the key and the measure by which a table is ranked: of the last of the parts that
    most of its models have."""
    wanted = table.layout.ranked or table.layout.clean
    measures = [each for head in grid(table).heads for each in head.measures
                if each.key.rpartition(":")[2] == wanted]
    if not measures:
        measures = [each for head in grid(table).heads for each in head.measures][:1]
    view = table_view(table, "x")
    known = {each.key: sum(_cell(unit, each.key).value is not None for unit in view.units)
             for each in measures}
    best = max(known.values())
    chosen = [each for each in measures if known[each.key] == best][-1]
    return chosen.key, chosen


def _in_words(table: Table, key: str) -> str:
    for head in grid(table).heads:
        for measure in head.measures:
            if measure.key == key:
                return f"{head.title}{f' ({head.detail})' if head.detail else ''}: {measure.label}"
    return key


def _cell(unit: Unit, key: str) -> Shown:
    return next((cell for cell in unit.rows[0].cells if cell.key == key), Shown(""))


def _order(unit: Unit, key: str, measure: Measure) -> tuple[bool, float]:
    value = _cell(unit, key).value
    if value is None:
        return True, 0.0
    return False, value if measure.best is min else -value


def _with_rank(unit: Unit, units: Sequence[Unit], key: str, measure: Measure) -> Unit:
    first, *others = unit.rows
    rank = _rank(_cell(unit, key), [_cell(each, key) for each in units if each is not unit],
                 measure)
    rows = (replace(first, stubs=(first.stubs[0], rank, *first.stubs[1:])),
            *(replace(row, stubs=(row.stubs[0], "", *row.stubs[1:])) for row in others))
    return Unit(rows)


def _rank(own: Shown, others: Sequence[Shown], measure: Measure) -> str:
    if own.value is None:
        return "–"
    low, high = _bounds(own)
    above = below = 0
    for other in others:
        if other.value is not None:
            its_low, its_high = _bounds(other)
            above += its_low > high
            below += its_high < low
    better, worse = (below, above) if measure.best is min else (above, below)
    count = 1 + sum(other.value is not None for other in others)
    first, last = 1 + better, count - worse
    return str(first) if first == last else f"{first} to {last}"


def _bounds(cell: Shown) -> tuple[float, float]:
    """Return a cell's interval, or its value twice where it has none."""
    assert cell.value is not None
    return cell.bounds or (cell.value, cell.value)


def _apart(name: str, alone: Sequence[Standing], several: Sequence[Sequence[Standing]]
           ) -> TableView:
    """List who was measured as nobody else, with what differs from the largest ranking."""
    against = several[0][0] if several else alone[0]
    noun = "the first ranking" if several else alone[0].model
    lines = tuple((each.model, str(each.alike.get("data")), str(each.alike.get("images")),
                   differing(each.alike, against.alike) or "–", each.run) for each in alone)
    return listing_view(Listing(
        f"{name}: measured as no other model, and so not ranked",
        ("Model", "Data", "Images", f"Differs from {noun} in", "Run"), lines, stubs=5),
        f"{name}-apart")


def _coverage(standings: Sequence[Standing]) -> Listing:
    names = [name for name in EXPERIMENTS.names()
             if any(each.experiment == name for each in standings)]
    models = sorted({each.model for each in standings})
    lines = tuple((model, *(_known(standings, model, name) for name in names))
                  for model in models)
    return Listing("What is known of each model: data and images", ("Model", *names), lines,
                   stubs=1 + len(names))


def _known(standings: Sequence[Standing], model: str, name: str) -> str:
    found = dict.fromkeys(f"{each.alike.get('data')}, {each.alike.get('images')}"
                          for each in standings if (each.model, each.experiment) == (model, name))
    return "; ".join(found) or "–"
