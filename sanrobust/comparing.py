"""Models held against each other by their records of the same images; loads no torch."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from sanrobust.choices import as_names, as_path, as_points
from sanrobust.comparison import PREFIX, Comparison, Difference, texts
from sanrobust.errors import OutputError, SanrobustError, UsageError, shown_value
from sanrobust.experiments.base import Experiment, Outcome
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.experiments.layout import Measure, Part
from sanrobust.files import printable, write_text
from sanrobust.metrics import holm, paired_difference
from sanrobust.processes import uninterrupted
from sanrobust.runs import Found, Run, find_runs, near, select, tables_locked
from sanrobust.summary import Selection, damage, provenance, require_known, unfinished
from sanrobust.tables.entries import short

# What may differ between models that are compared; the settings told by the rows are their parts.
_OF_MODEL = ("model", "weights", "preprocessing", "code")
_LOWER_IS_BETTER = ("success", "error", "transfer", "drop")
_WORDS = {"data_digest": "images or labels", "images": "number of images"}


@dataclass
class _Side:
    """The newest outcomes of one model under one set of settings, of one set of weights alone."""

    name: str
    model: dict[str, object]
    runs: list[Run] = field(default_factory=list)
    outcomes: dict[tuple[Part, str], Outcome] = field(default_factory=dict)

    @property
    def parts(self) -> set[Part]:
        """Values of the layout's part columns that it has."""
        return {part for part, _ in self.outcomes if part}

    def add(self, run: Run, experiment: Experiment) -> None:
        assert experiment.outcomes is not None
        self.runs.append(run)
        for outcome in experiment.outcomes(run.records(experiment.records.read), run.settings):
            self.outcomes[_part(outcome), outcome.name] = outcome


def compare(out: str | Path, experiment: str, models: Sequence[str] = (), *,
            data: Sequence[str] = (), all_pairs: bool = False, everything: bool = False,
            fail_under: float | None = None) -> Comparison:
    """Compare models on the same images, by their records under ``out``, and write the table.

    Args:
        out: folder of the results.
        experiment: name of what was measured.
        models: names of models or of their architectures, or of run folders, the first of which is
            held against each other one; none means every model with complete runs, by name, but
            first the one that most others were measured like. Of those a pair that cannot be
            compared is named among what is told, unless there is a threshold.
        data: names of datasets; none means any.
        all_pairs: hold each against each.
        everything: every rate of every part, not only those that tables print.
        fail_under: least advantage in points, of the first model of each pair in each rate, that
            is no problem; None for any.

    Runs whose header does not read back are left out and are the comparison's problem; unfinished
    ones are among its remarks. Raises UsageError for models that are not there or cannot be
    compared, with the field that differs, and OutputError where records do not read back or files
    cannot be written.
    """
    kind, out = EXPERIMENTS.get(experiment), as_path(out, "out")
    models, data = as_names(models, "models"), as_names(data, "data")
    if fail_under is not None:
        fail_under = as_points(fail_under, "a threshold")
    if kind.outcomes is None:
        raise UsageError("an experiment must say what holds of each image to compare models by it",
                         seen=f"{experiment} does not", hint="compare them by another one")
    with tables_locked(out):
        found = find_runs(out, experiment)
        require_known(out, [experiment], Selection(data=tuple(data)))
        chosen = _chosen(found, out, experiment, models, data)
        made = replace(_compared(kind, chosen, all_pairs=all_pairs, everything=everything,
                                 insist=bool(models) or fail_under is not None),
                       fail_under=fail_under, damage=damage(found.damaged))
        files = {out / f"{PREFIX}{kind.files}.{suffix}": text
                 for suffix, text in texts(made).items()}
        with uninterrupted():  # all files or none
            for path, text in files.items():
                write_text(path, text)
    waiting = tuple(f"not compared: {unfinished(run)}"
                    for run in select(found.runs, models=models, data=data) if not run.complete)
    return replace(made, files=tuple(files), remarks=waiting)


def compared(experiment: Experiment, runs: Sequence[Run]) -> Comparison | None:
    """Do as `compare` without names, of these complete runs alone, and write nothing.

    None where no two models can be compared. Raises OutputError where records do not read back.
    """
    models = sorted({str(run.spec["model"]) for run in runs})
    if experiment.outcomes is None or len(models) < 2:
        return None
    chosen = {model: [run for run in runs if run.spec["model"] == model] for model in models}
    try:
        return _compared(experiment, chosen, all_pairs=False, everything=False, insist=False)
    except UsageError:
        return None


def _compared(experiment: Experiment, chosen: Mapping[str, Sequence[Run]], *, all_pairs: bool,
              everything: bool, insist: bool) -> Comparison:
    rows, done, remarks = _rows(experiment, chosen, all_pairs=all_pairs, everything=everything,
                                insist=insist)
    adjusted = holm([row.found.p_value for row in rows])
    judged = tuple(replace(row, holm=p) for row, p in zip(rows, adjusted))
    return Comparison(experiment.name, judged, (), remarks, done)


def _chosen(found: Found, out: Path, experiment: str, models: Sequence[str],
            data: Sequence[str]) -> dict[str, list[Run]]:
    """Return the complete runs of each model, under the name that a table calls it by."""
    runs = [run for run in select(found.runs, data=data) if run.complete]
    waiting = [unfinished(run) for run in found.runs if not run.complete]
    if not runs:
        raise damage(found.damaged) or OutputError(
            "models are compared by complete runs", seen=waiting[0] if waiting
            else f"there is none of {experiment} under {out}", hint="compare when it is finished"
            if waiting else f"type sanrobust {experiment} --out {shlex.quote(str(out))} first, or "
            "name another folder with --out")
    chosen: dict[str, list[Run]] = {}
    for name in models or sorted({str(run.spec["model"]) for run in runs}):
        called, its = _named(name, runs, found, out)
        if called in chosen:
            raise UsageError("a model must be named once",
                             seen=f"{called} is meant by two of {', '.join(map(str, models))}",
                             hint="leave one of the two out")
        chosen[called] = its
    others = sorted({str(run.spec["model"]) for run in runs} - {
        str(run.spec["model"]) for its in chosen.values() for run in its})
    if len(chosen) < 2 and others:
        raise UsageError("a comparison must have two models",
                         seen=f"{' and '.join(chosen)} alone is named",
                         hint=f"name another of {', '.join(others)}, or leave the names out")
    if len(chosen) < 2:
        also = f", and {waiting[0]}" if waiting else ""
        raise UsageError("a comparison must have two models",
                         seen=f"there is {' and '.join(chosen)} alone{also}",
                         hint=f"measure another one with sanrobust {experiment} -m NAME")
    return chosen


def _named(name: str, runs: Sequence[Run], found: Found, out: Path) -> tuple[str, list[Run]]:
    """Return the runs of a model or of a folder, and what they are called in a table."""
    typed = name
    # Of a path, its folder; names of models have slashes too.
    name = typed if select(found.runs, models=(typed,)) else typed.rstrip("/").rpartition("/")[2]
    by_model = select(runs, models=(name,))
    names = {str(run.spec["model"]) for run in by_model}
    if len(names) > 1:
        raise UsageError("a name must be that of one model",
                         seen=f"{name} is {' and '.join(sorted(names))}",
                         hint="give the full name")
    if by_model:
        return names.pop(), list(by_model)
    by_folder = select(runs, names=(name,))
    if not by_folder:
        begun = select(found.runs, models=(name,)) or select(found.runs, names=(name,))
        if begun:
            raise UsageError("a model to compare must have a complete run",
                             seen=unfinished(begun[-1]), hint="compare when it is finished")
        if found.damaged:  # may be what is meant
            raise damage(found.damaged) or found.damaged[0]
        there = sorted({str(run.spec["model"]) for run in runs})
        raise UsageError(f"a model to compare must have a complete run under {out}",
                         seen=f"none is of {shown_value(typed)}",
                         hint=f"{near(typed, there)}there are {', '.join(there)}")
    return by_folder[-1].name, list(by_folder[-1:])


def alike(run: Run, experiment: Experiment) -> dict[str, object]:
    """Return all in which two runs must agree for their models to be compared."""
    fixed = {name: value for name, value in run.spec.items()
             if name not in (*_OF_MODEL, "settings")}
    told = {name: value for name, value in run.settings.items()
            if name not in experiment.told_by_rows}
    return {**fixed, **told}


def differing(mine: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    """Say in which fields of `alike` two runs differ; empty where in none."""
    differ = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    # That of the contents says the same again, where the data have another name.
    if "data" in differ:
        differ = [name for name in differ if name not in ("data_digest", "images")]
    return "; ".join(f"{_WORDS.get(name, name)}: {_shown(mine.get(name))} and "
                     f"{_shown(theirs.get(name))}" for name in differ)


def _rows(experiment: Experiment, chosen: Mapping[str, Sequence[Run]], *, all_pairs: bool,
          everything: bool, insist: bool
          ) -> tuple[list[Difference], tuple[str, ...], tuple[str, ...]]:
    """Return the differences of all pairs without their adjusted p, what was done, and what else
    is to be told: who cannot be compared, unless each pair must be."""
    groups: dict[str, dict[str, _Side]] = {}
    for name, runs in chosen.items():
        for run in runs:
            sides = groups.setdefault(_group(run, experiment), {})
            model = {each: run.spec.get(each) for each in _OF_MODEL}
            if name not in sides or sides[name].model != model:
                sides[name] = _Side(name, model)
            sides[name].add(run, experiment)
    names = list(chosen)
    if not insist:  # the first is the one that most others were measured like
        names.sort(key=lambda name: -len({other for sides in groups.values() if name in sides
                                          for other in sides}))
    pairs = list(combinations(names, 2)) if all_pairs else [(names[0], each) for each in names[1:]]
    sets = _sets(groups.values())
    rows: list[Difference] = []
    done: dict[str, None] = {}
    used: set[str] = set()
    remarks: dict[str, None] = {}
    for a, b in pairs:
        both = [sides for sides in groups.values() if a in sides and b in sides]
        before = len(rows)
        for sides in both:
            rows += _differences(experiment, sides[a], sides[b], sets, everything=everything)
            done[_done(experiment, sides[a].runs[-1])] = None
            remarks.update(dict.fromkeys(_alone(experiment, sides[a], sides[b])))
            used.update(run.name for side in (sides[a], sides[b]) for run in side.runs)
        if len(rows) == before:
            reason = _incomparable(experiment, chosen[a][-1], chosen[b][-1], a, b)
            if insist:
                raise reason
            remarks[f"not compared: {reason.seen}"] = None
    if not rows:
        raise reason
    first = None if all_pairs else names[0]
    idle = [(name, run) for name, its in chosen.items() for run in its if run.name not in used]
    remarks.update(dict.fromkeys(f"the run {run.name} takes no part: " + _left_out(
        run, name, groups[_group(run, experiment)], first) for name, run in idle))
    return rows, tuple(each for each in done if each), tuple(remarks)


def _left_out(run: Run, name: str, sides: Mapping[str, _Side], first: str | None) -> str:
    """Say why a run has no row; ``first`` is the model that all are held against, if one is."""
    if first is not None and len(sides) > 1 and any(run is each for each in sides[name].runs):
        return f"{first} was not measured like it; --all-pairs compares it with other models"
    return ("no other model was measured like it, or its own model was measured anew with other "
            "weights")


def _sets(groups: Iterable[Mapping[str, _Side]]) -> dict[str, set[str]]:
    """Return the digests of the images of each name, of those that two models were measured on."""
    found: dict[str, set[str]] = {}
    for run in (run for sides in groups if len(sides) > 1 for side in sides.values()
                for run in side.runs):
        found.setdefault(str(run.spec["data"]), set()).add(str(run.spec.get("data_digest")))
    return found


def _group(run: Run, experiment: Experiment) -> str:
    return json.dumps(alike(run, experiment), sort_keys=True)


def _alone(experiment: Experiment, a: _Side, b: _Side) -> Iterator[str]:
    """Say which parts only one of two models was measured in."""
    layout = experiment.layout
    for mine, other in ((a, b), (b, a)):
        parts = sorted(mine.parts - other.parts, key=layout.order)
        if other.parts and parts:
            words = "; ".join(layout.in_words(part) for part in parts)
            yield f"only {mine.name} was measured at {words}"


def _facts(experiment: Experiment, run: Run) -> dict[str, object]:
    """Return what decides a run's numbers as the columns of a table have it."""
    return {name: json.dumps(value) if isinstance(value, (list, dict)) else value
            for name, value in provenance(run, experiment).items() if value is not None}


def _done(experiment: Experiment, run: Run) -> str:
    words = experiment.layout.done(_facts(experiment, run))
    return f"{words[:1].upper()}{words[1:].rstrip('.')}." if words else ""


def _differences(experiment: Experiment, a: _Side, b: _Side, sets: Mapping[str, set[str]], *,
                 everything: bool) -> Iterator[Difference]:
    """Yield in what two models differ; ``sets`` has the digests of the images of each name."""
    shared = [key for key in a.outcomes if key in b.outcomes]
    if a.parts and b.parts and not a.parts & b.parts:
        return  # what their parts share, such as clean images, is not what was asked for
    run = a.runs[-1]
    variant = experiment.layout.variant(_facts(experiment, run))
    data = printable(str(run.spec["data"]))
    if len(sets[str(run.spec["data"])]) > 1:
        data += f" ({short(str(run.spec.get('data_digest')))})"
    for (part, name), words, higher in _measures(experiment, shared, everything=everything):
        found = paired_difference(a.outcomes[part, name].holds, b.outcomes[part, name].holds)
        if found.n:  # otherwise nothing is known of it
            yield Difference(a.name, b.name, data, variant, words, name, found, math.nan, higher)


def _measures(experiment: Experiment, shared: Sequence[tuple[Part, str]], *, everything: bool
              ) -> Iterator[tuple[tuple[Part, str], str, bool]]:
    """Yield what both sides know, in words, and whether it is good where it is high."""
    layout = experiment.layout
    parts = sorted({part for part, _ in shared if part}, key=layout.order)
    left = dict.fromkeys(shared)
    for head in layout.heads(parts):
        for measure in head.measures:
            key = _key(measure, parts)
            if key in left:
                del left[key]
                words = f"{head.title}{f' ({head.detail})' if head.detail else ''}"
                yield key, f"{words}: {measure.label}", measure.best is not min
    for part, name in left if everything else ():
        told, label = layout.in_words(part), layout.label(name)
        yield ((part, name), f"{told}: {label}" if told else label,
               not any(word in name for word in _LOWER_IS_BETTER))


def _key(measure: Measure, parts: Sequence[Part]) -> tuple[Part, str]:
    number, colon, name = measure.key.rpartition(":")
    return (parts[int(number)] if colon else (), name)


def _part(outcome: Outcome) -> Part:
    """Return the part as layouts have it: inf stands for what the run does not have."""
    return tuple(math.inf if value is None else value if isinstance(value, str)
                 else float(str(value)) for value in outcome.part)


def _incomparable(experiment: Experiment, one: Run, other: Run, a: str, b: str) -> SanrobustError:
    """Return what says in which field the newest runs of two models differ."""
    mine, theirs = alike(one, experiment), alike(other, experiment)
    told = differing(mine, theirs) or "; ".join(
        f"{name}: {_shown(one.settings.get(name))} and {_shown(other.settings.get(name))}"
        for name in experiment.told_by_rows)
    return UsageError("models that are compared must be measured alike",
                      seen=f"{a} and {b} differ in {told}",
                      hint=f"measure both with the same options of sanrobust {experiment.name}")


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return printable(text[:12] if len(text) == 64 else text)
