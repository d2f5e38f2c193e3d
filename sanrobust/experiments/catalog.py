"""Every experiment by its name: ours, and those that installed packages add.

A package adds one by an entry point of the group ``sanrobust.experiments`` that names an
`Experiment`.
"""

from __future__ import annotations

from sanrobust.experiments.accuracy import ACCURACY
from sanrobust.experiments.base import Experiment
from sanrobust.experiments.corrupt import CORRUPT
from sanrobust.experiments.pgd import PGD
from sanrobust.experiments.replay import REPLAY
from sanrobust.experiments.rotation import ROTATION
from sanrobust.experiments.spatial import SPATIAL
from sanrobust.registry import Registry

ENTRIES: tuple[Experiment, ...] = (
    ROTATION,
    PGD,
    SPATIAL,
    ACCURACY,
    CORRUPT,
    REPLAY,
)
COMMANDS = ("table", "compare", "report", "leaderboard", "status", "train", "study", "bench",
            "complexity", "show", "zoo", "info")
"""Commands that are no experiments; no experiment may be called so."""

EXPERIMENTS: Registry[Experiment] = Registry(
    "experiment", listing="sanrobust --help", group="sanrobust.experiments", of=Experiment,
    names=lambda value: tuple(dict.fromkeys((value.name, value.files))), taken=COMMANDS)
for _entry in ENTRIES:
    EXPERIMENTS.add(_entry.name, _entry)
