"""What is known of each model: the rows of its tables with all that decides them, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePath

from sanrobust.comparing import alike
from sanrobust.csvfiles import CsvKind, read_bytes
from sanrobust.errors import DataError, OutputError, SanrobustError, UsageError
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.runs import find_runs, require_runs
from sanrobust.spec import digest_of
from sanrobust.summary import damage, gather

Row = dict[str, object]
FORM = 1
_SEAL = "sha256"
_KIND = CsvKind("file of a model's standings", ("", ""), "OUT")
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Standing:
    """A model in an experiment under one set of settings.

    Attributes:
        model, experiment: their names.
        weights: hash of the model's weights.
        run: name of the run.
        measured: when its last record was written.
        alike: all in which comparable runs agree.
        rows: of the experiment's table, rates in percent, unrounded; None for what is unknown.
    """

    model: str
    experiment: str
    weights: str
    run: str
    measured: str
    alike: Mapping[str, object]
    rows: tuple[Row, ...]

    @property
    def group(self) -> str:
        """The same for all that may stand in one ranking."""
        return json.dumps([self.experiment, self.alike], sort_keys=True)


@dataclass(frozen=True)
class Gathered:
    """Standings of several folders, and what could not be had."""

    standings: tuple[Standing, ...]
    remarks: tuple[str, ...]
    problem: SanrobustError | None


def gathered(folders: Sequence[Path]) -> Gathered:
    """Return the standings of folders of results, or of JSON that an earlier leaderboard wrote.

    Of the same model, weights and settings the rows measured last count. Raises OutputError for a
    folder with neither, DataError for JSON that is not as it was written.
    """
    found: dict[str, Standing] = {}
    remarks: list[str] = []
    problems: list[SanrobustError] = []
    for folder in folders:
        for standing in sorted(_of_folder(folder, remarks, problems),
                               key=lambda each: each.measured):
            key = json.dumps([standing.group, standing.model, standing.weights])
            earlier = found.get(key)
            found[key] = standing if earlier is None else _joined(earlier, standing)
    ordered = sorted(found.values(), key=lambda each: (each.group, each.model, each.weights))
    damaged = damage([each for each in problems if isinstance(each, OutputError)])
    return Gathered(tuple(ordered), tuple(remarks), damaged or next(iter(problems), None))


def _of_folder(folder: Path, remarks: list[str], problems: list[SanrobustError]
               ) -> Iterator[Standing]:
    files = sorted(folder.glob("*.json")) if os.path.isdir(folder) else []
    if files and not (folder / "runs").is_dir():
        yield from (standing for path in files for standing in _read(path))
        return
    require_runs(folder)
    for name in EXPERIMENTS.names():
        if find_runs(folder, name).empty:
            continue
        try:
            yield from _of_experiment(folder, name, remarks, problems)
        except (OutputError, UsageError) as error:
            problems.append(error)


def _of_experiment(folder: Path, name: str, remarks: list[str], problems: list[SanrobustError]
                   ) -> Iterator[Standing]:
    made, experiment = gather(folder, name), EXPERIMENTS.get(name)
    remarks += made.remarks
    if made.problem is not None:
        problems.append(made.problem)
    own = [column for column in made.table.columns if not column.startswith("paper_")]
    for run in made.runs:
        rows = made.table.rows.loc[made.table.rows["run_id"] == run.name, own]
        yield Standing(str(run.spec["model"]), name, str(run.spec["weights"]), run.name,
                       run.measured, _plain(alike(run, experiment)),
                       tuple(_row(row) for row in rows.to_dict(orient="records")))


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    """Return values as JSON has them, so that what is read equals what was written."""
    found: dict[str, object] = json.loads(json.dumps(values))
    return found


def _row(row: Mapping[object, object]) -> Row:
    found = {str(name): _value(value) for name, value in row.items()}
    if isinstance(found.get("source"), str):  # which folders somebody has is nobody's business
        found["source"] = "/".join(PurePath(str(found["source"])).parts[-2:])
    return found


def _value(value: object) -> object:
    import pandas as pd
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, (str, bool, int, float)):
        return value
    found: object = value.item() if hasattr(value, "item") else str(value)
    return found


def _joined(earlier: Standing, later: Standing) -> Standing:
    """Return both, with the later one's rows where both have a part."""
    first, second = sorted((earlier, later), key=lambda each: each.measured)
    parts = EXPERIMENTS.get(later.experiment).layout.parts
    rows = {tuple(str(row.get(name)) for name in parts): row for row in first.rows}
    rows.update({tuple(str(row.get(name)) for name in parts): row for row in second.rows})
    return Standing(second.model, second.experiment, second.weights, second.run, second.measured,
                    second.alike, tuple(rows.values()))


def documents(standings: Sequence[Standing]) -> dict[str, str]:
    """Return the text of a file for each model, by its name."""
    models: dict[str, list[Standing]] = {}
    for standing in standings:
        models.setdefault(standing.model, []).append(standing)
    return {_file(model): _document(model, each) for model, each in models.items()}


def _file(model: str) -> str:
    """Return a file's name that leads nowhere and is no other model's."""
    digest = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".-")[:_LONGEST_NAME] or "model"
    return f"{plain}-{digest}.json"


def _document(model: str, standings: Sequence[Standing]) -> str:
    facts = {"form": FORM, "sanrobust": metadata.version("sanrobust"), "model": model,
             "standings": [asdict(each) for each in standings]}
    return json.dumps({**facts, _SEAL: digest_of(facts)}, indent=1) + "\n"


def _read(path: Path) -> Iterator[Standing]:
    try:
        facts = json.loads(read_bytes(path, _KIND).decode("utf-8"))
        if not isinstance(facts, dict) or facts.pop(_SEAL, None) != digest_of(facts):
            raise ValueError("it was changed after it was written, or is none")
        if facts["form"] != FORM:
            raise ValueError("it is of another version's form")
        yield from [_standing(each) for each in facts["standings"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError("a file of a model's standings must be as it was written",
                        seen=f"{path} is not ({error})"[:300],
                        hint="remove it, or make it anew with sanrobust leaderboard") from error


def _standing(facts: Mapping[str, object]) -> Standing:
    """Return a standing; raises ValueError, KeyError or TypeError for facts of another kind."""
    rows, settings = facts["rows"], facts["alike"]
    texts = {name: facts[name] for name in ("model", "experiment", "weights", "run", "measured")}
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(settings, dict) \
            or not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise ValueError("a fact in it is of another kind")
    return Standing(**texts, alike=settings, rows=tuple(rows))  # type: ignore[arg-type]


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(
        value is None or isinstance(value, (str, bool, int, float)) for value in row.values())
