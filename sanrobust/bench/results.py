"""What a benchmark found, and its files: CSV of every sample and of the medians, facts as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sanrobust.bench.loop import LoopTime
from sanrobust.bench.passes import Effort
from sanrobust.bench.peak import Peak
from sanrobust.bench.samples import Case, Sample, Summary, best_rate, healthy, summarise
from sanrobust.bench.settings import OURS, Settings
from sanrobust.files import write_text
from sanrobust.harmless import guarded

# The last is the picture, which `sanrobust.bench.plot` draws.
FILES = ("samples.csv", "bench.csv", "bench.json", "bench.png")
SUMMARY_COLUMNS = (
    "kind", "name", "step", "contender", "computed_by", "batch_size", "img_size", "device",
    "dtype", "threads", "median_s", "fastest_s", "slowest_s", "images_per_s", "samples",
    "rejected", "ours_faster", "base_bytes", "model_bytes", "net_bytes", "counted_s", "cpu_s",
    "model_s", "model_share", "forward_images", "backward_images", "robust_top1", "setup_s",
    "bare_s", "failure")
SAMPLE_COLUMNS = ("kind", "name", "step", "contender", "round", "seconds", "probe_before_gflops",
                  "probe_after_gflops", "healthy")


@dataclass
class Results:
    """What has been found so far.

    Attributes:
        settings: what was asked for.
        facts: the machine, its limits and how the benchmark ran, as JSON values.
        threads: threads of the CPU.
        known: best rate that the probe is known to reach, in GFLOP/s.
        samples: every timing, healthy or not.
        peaks: every measurement of memory.
        efforts: what attacks asked of their networks, in one counted run each.
        loops: what whole commands took.
        computed_by: what computed each contender of each case's name, in words.
        refused: contenders that were not timed, with the reason.
    """

    settings: Settings
    facts: Mapping[str, object]
    threads: int
    known: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)
    efforts: dict[tuple[Case, str], Effort] = field(default_factory=dict)
    loops: dict[Case, LoopTime] = field(default_factory=dict)
    computed_by: dict[tuple[str, str], str] = field(default_factory=dict)
    refused: dict[tuple[Case, str], str] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Best rate of the probe that is known or was seen so far, in GFLOP/s."""
        return best_rate(self.samples, self.known)

    def summaries(self) -> list[Summary]:
        """Return the medians, judged by the best probe of the whole run."""
        return summarise(self.samples, self.known)

    def write(self) -> list[Path]:
        """Write ``samples.csv``, ``bench.csv`` and ``bench.json`` and return their paths.

        Raises OutputError when they cannot be written.
        """
        best = self.best
        facts = {**self.facts, "best_probe_gflops": best,
                 "rejected": sum(not healthy(sample, best) for sample in self.samples)}
        files = {"samples.csv": _csv(SAMPLE_COLUMNS, self._sample_rows(best)),
                 "bench.csv": _csv(SUMMARY_COLUMNS, self._summary_rows()),
                 "bench.json": json.dumps(facts, indent=2, default=str) + "\n"}
        for name, text in files.items():
            write_text(self.settings.out / name, text)
        return [self.settings.out / name for name in files]

    def _sample_rows(self, best: float) -> Iterable[Sequence[object]]:
        for each in self.samples:
            yield (*_names(each.case, each.contender), each.round, each.seconds, each.before,
                   each.after, healthy(each, best))

    def _summary_rows(self) -> Iterable[Sequence[object]]:
        timed = {(each.case, each.contender): each for each in self.summaries()}
        held = {(each.case, each.contender): each for each in self.peaks}
        for key in dict.fromkeys([*timed, *self.refused, *held, *self.efforts]):
            yield self._summary_row(key, timed.get(key), held.get(key))
        for case, loop in self.loops.items():
            yield self._loop_row(case, loop)

    def _summary_row(self, key: tuple[Case, str], timed: Summary | None,
                     held: Peak | None) -> Sequence[object]:
        case, contender = key
        shape = self.settings.shape
        speed = (None,) * 7 if timed is None else (
            timed.seconds, timed.fastest, timed.slowest, timed.images_per_second, timed.samples,
            timed.rejected, timed.ours_faster)
        memory = (None,) * 3 if held is None else (held.base, held.model, held.net)
        failure = None if held is None else held.failure
        effort = self.efforts.get(key)
        counted = (None,) * 7 if effort is None else (
            effort.seconds, effort.cpu_seconds, effort.model_seconds, effort.model_share,
            effort.forward, effort.backward, effort.robust)
        return (*_names(case, contender), self.computed_by.get((case.name, contender)),
                case.images, shape.img_size if effort is None else effort.img_size, shape.device,
                shape.dtype, self.threads, *speed, *memory, *counted, None, None,
                self.refused.get(key) or failure)

    def _loop_row(self, case: Case, loop: LoopTime) -> Sequence[object]:
        shape = self.settings.shape
        known: dict[str, object] = dict(zip(SUMMARY_COLUMNS, _names(case, OURS))) | {
            "computed_by": loop.computed_by, "batch_size": shape.batch_size,
            "img_size": loop.img_size, "device": shape.device, "dtype": shape.dtype,
            "threads": self.threads, "images_per_s": loop.images_per_second,
            "counted_s": loop.seconds, "cpu_s": loop.cpu_seconds, "model_s": loop.model_seconds,
            "model_share": loop.model_share, "forward_images": loop.forward,
            "backward_images": loop.backward, "setup_s": loop.setup_seconds,
            "bare_s": loop.bare_seconds}
        return [known.get(name) for name in SUMMARY_COLUMNS]


def _names(case: Case, contender: str) -> tuple[str, ...]:
    return case.kind, case.name, case.step, contender


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(map(guarded, row) for row in rows)
    return text.getvalue()
