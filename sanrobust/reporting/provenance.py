"""Where the numbers of a page come from, how they are made again, and how they are cited."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sanrobust.experiments.layout import Listing
from sanrobust.runs import Run
from sanrobust.tables.entries import short

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Reference:
    """Something to cite.

    Attributes:
        text: as it stands in a list.
        bibtex: an entry.
    """

    text: str
    bibtex: str

    @property
    def lines(self) -> list[str]:
        """The lines of its entry."""
        return self.bibtex.splitlines()


AUTHORS, TITLE = "The developers of sanrobust", "sanrobust"
PAPER_TITLE = "Exploring Self-attention for Image Recognition"
PAPER_AUTHORS = (("Hengshuang", "Zhao"), ("Jiaya", "Jia"), ("Vladlen", "Koltun"))
PAPER_YEAR = 2020
PAPER_VENUE = "IEEE/CVF Conference on Computer Vision and Pattern Recognition"
"""What ``CITATION.cff`` says too."""


def references(version: str) -> tuple[Reference, ...]:
    """Return what to cite: this package, and the paper whose networks it brings."""
    names = [f"{given} {family}" for given, family in PAPER_AUTHORS]
    bibtex_names = " and ".join(f"{family}, {given}" for given, family in PAPER_AUTHORS)
    return (
        Reference(f"{AUTHORS}: {TITLE}, version {version}.",
                  f"@software{{sanrobust,\n  author = {{{{{AUTHORS}}}}},\n  title = {{{TITLE}}},\n"
                  f"  version = {{{version}}}\n}}"),
        Reference(f"{', '.join(names[:-1])} and {names[-1]}: {PAPER_TITLE}. {PAPER_VENUE}, "
                  f"{PAPER_YEAR}.",
                  f"@inproceedings{{zhao2020exploring,\n  author = {{{bibtex_names}}},\n"
                  f"  title = {{{PAPER_TITLE}}},\n  booktitle = {{{PAPER_VENUE}}},\n"
                  f"  year = {{{PAPER_YEAR}}}\n}}"))


def of_runs(runs: Sequence[Run]) -> Listing:
    """Return a line for each run: what it measured and what computed it."""
    lines = tuple(_line(run) for run in runs)
    return Listing("Runs whose records the tables are made of",
                   ("Model", "Experiment", "Data", "Device", "Precision", "Computed by",
                    "Measured", "Weights", "Images' digest", "Run", "Images", "Seconds"), lines,
                   stubs=10)


def _line(run: Run) -> tuple[str, ...]:
    spec, facts = run.spec, run.last_start
    environment = facts.get("environment")
    device = environment.get("device") if isinstance(environment, dict) else None
    words = (spec.get("model"), run.experiment, spec.get("data"), device, spec.get("precision"),
             facts.get("computed_by"), run.measured, short(str(spec.get("weights"))),
             short(str(spec.get("data_digest"))), run.name, spec.get("images"),
             run.header.get("seconds"))
    return tuple(UNKNOWN if word is None else str(word) for word in words)


def of_machines(runs: Sequence[Run]) -> Listing:
    """Return a line for each environment in which runs were computed."""
    found: dict[tuple[str, str], int] = {}
    for run in runs:
        environment = run.last_start.get("environment")
        key = _machine(environment if isinstance(environment, dict) else {})
        found[key] = found.get(key, 0) + 1
    return Listing("Machines and versions", ("Machine", "Versions", "Runs"),
                   tuple((*key, str(count)) for key, count in found.items()), stubs=2)


def _machine(environment: Mapping[str, object]) -> tuple[str, str]:
    versions = environment.get("versions")
    told = (", ".join(f"{name} {version}" for name, version in versions.items())
            if isinstance(versions, dict) else UNKNOWN)
    facts = [f"{name.replace('_', ' ')} {environment[name]}"
             for name in ("device", "threads", "cpu_capability", "tf32") if name in environment]
    return ", ".join([str(environment.get("platform", UNKNOWN)), *facts]), told


def commands(runs: Sequence[Run], out: str) -> tuple[str, ...]:
    """Return the commands that measured the runs, each once, and the one that makes the page."""
    return tuple(dict.fromkeys([*_typed(runs), f"sanrobust report {shlex.quote(out)}"]))


def _typed(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        command = run.header.get("command")
        if not command:
            yield f"# {run.name} was made by a call of sanrobust.{run.experiment} in Python"
        elif isinstance(command, str) and _is_ours(command):
            yield command
        else:
            yield f"# {run.name} says of its command what is none of sanrobust"


def _is_ours(command: str) -> bool:
    """Return whether a header's command is one of ours alone, for somebody may type it."""
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return words[:1] == ["sanrobust"] and shlex.join(words) == command and command.isprintable()
