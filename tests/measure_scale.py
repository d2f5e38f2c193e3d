"""Print what a run on many images takes, as a table in Markdown (Linux).

    python tests/measure_scale.py 100 10000 100000 1000000     # numbers of images, rising

The images are links to a few files of 16 pixels and the network is tiny, so that what is left is
the price of keeping account. Of each run: seconds until the first records, images per second and
CPU time, memory of all its processes in the second and the last tenth of the measuring and at its
peak, which is reading records back, what it leaves on disk; then `sanrobust table`, the
same command once more, and the way to new records for a run that was killed at nine tenths. The
last line is the exponent of CPU time in the number of images, without that of the first run, which
is the price of the start.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

FILES, PER_FOLDER = 8, 10_000
MODEL = """
import torch

class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 48 * 10).reshape(48, 10))

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) @ self.weight
"""
COMMAND = ("rotate", "-m", "tiny:Tiny", "--img-size", "16", "--crop-pct", "1", "--no-normalize",
           "--data", "data", "--out")
ROW = "| {:>9} | {:>7} | {:>8} | {:>8} | {:>14} | {:>7} | {:>6} | {:>6} | {:>7} | {:>7} |"
HEAD = ("images", "first s", "images/s", "CPU s", "MiB then/last", "peak", "files", "table s",
        "again s", "resume s")


@dataclass
class Watched:
    """A command that ran: when its first records came, and memory while it ran."""

    seconds: float = 0.0
    first: float = math.inf
    last: float = 0.0
    cpu: float = 0.0
    memory: list[tuple[int, float]] = field(default_factory=list)  # files of records, MiB

    @property
    def measuring(self) -> float:
        """The seconds from its first records to its last."""
        return self.last - self.first

    def tenth(self, number: int) -> float:
        """Return the mean memory in MiB over a tenth of the files of records, from 0."""
        most = self.memory[-1][0]
        part = [held for files, held in self.memory
                if number <= 10 * files / most < number + 1 and files < most]
        return sum(part) / len(part) if part else math.nan


def link(folder: Path, images: int) -> None:
    """Fill ten class folders with links to a few files."""
    random = np.random.default_rng(0)
    source = folder / "files"
    source.mkdir(parents=True)
    for number in range(FILES):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), "uint8")).save(source /
                                                                            f"{number}.png")
    for label in range(10):
        (folder / "data" / str(label)).mkdir(parents=True)
    for number in range(images):
        os.symlink(source / f"{number % FILES}.png",
                   folder / "data" / str(number % 10) / f"{number:07d}.png")


def processes(root: int) -> Iterator[int]:
    """Yield a process and those that it started."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield from processes(child)


def memory_of(root: int) -> float:
    """Return the memory of a process and its children in MiB; pages that they share count once."""
    total = 0
    for process in processes(root):
        with suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith("Pss:") else 0
    return total / 1024


def records_in(out: Path) -> int:
    """Return how many files of records are there."""
    return sum(1 for path in out.glob("runs/*/records/*.parquet"))


def watch(words: list[str], out: Path, *, kill_at: int | None = None, every: float = 0.5
          ) -> Watched:
    """Run a command of sanrobust to its end, or kill it at so many files of records."""
    before, begun = records_in(out), time.monotonic()
    cpu = os.times()
    child = subprocess.Popen([sys.executable, "-m", "sanrobust", *words], cwd=out.parent,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                             env={**os.environ, "SANROBUST_HOME": str(out.parent / "home")})
    seen = Watched()
    latest = before
    while child.poll() is None:
        there, now = records_in(out), time.monotonic() - begun
        if there > before:
            seen.first = min(seen.first, now)
            seen.last = now if there > latest else seen.last
            latest = there
            with suppress(OSError):
                seen.memory.append((there, memory_of(child.pid)))
        if kill_at is not None and there >= kill_at:
            child.send_signal(signal.SIGKILL)
        time.sleep(every if there > before else 0.05)
    seen.seconds = time.monotonic() - begun
    after = os.times()
    seen.cpu = (after.children_user + after.children_system
                - cpu.children_user - cpu.children_system)
    if kill_at is None and child.returncode:
        sys.exit(child.stderr.read().decode() if child.stderr else "the command failed")
    return seen


def measure(folder: Path, images: int) -> tuple[float, float]:
    """Measure a run on so many images, print its row; return its images and CPU seconds."""
    link(folder, images)
    (folder / "tiny.py").write_text(MODEL)
    whole = watch([*COMMAND, "whole"], folder / "whole")
    table = watch(["table", "--out", "whole"], folder / "whole")
    again = watch([*COMMAND, "whole"], folder / "whole")
    files = records_in(folder / "whole")
    watch([*COMMAND, "killed"], folder / "killed", kill_at=max(1, files * 9 // 10), every=0.02)
    resumed = watch([*COMMAND, "killed"], folder / "killed")
    same = (folder / "whole/rotation.csv").read_bytes() == (folder / "killed/rotation.csv"
                                                            ).read_bytes()
    if not same:
        sys.exit("the run that was killed and went on has another table")
    rate = images / whole.measuring if whole.measuring else math.nan
    peak = max(held for _, held in whole.memory)
    print(ROW.format(images, f"{whole.first:.1f}", f"{rate:.0f}", f"{whole.cpu:.1f}",
                     f"{whole.tenth(1):.0f} / {whole.tenth(9):.0f}", f"{peak:.0f}",
                     files, f"{table.seconds:.1f}", f"{again.seconds:.1f}",
                     f"{resumed.first:.1f}"), flush=True)
    return images, whole.cpu


def main() -> None:
    """Measure each number of images and print the exponent of their cost."""
    print(ROW.format(*HEAD))
    print(ROW.format(*["---:"] * len(HEAD)))
    points = []
    with tempfile.TemporaryDirectory(prefix="sanrobust-scale-") as name:  # loads files once
        watch(["rotate", "-m", "resnet26", "--num-samples", "1", "--out", "start"], Path(name, "r"))
    for images in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory(prefix="sanrobust-scale-") as name:
            points.append(measure(Path(name), images))
            shutil.rmtree(Path(name) / "data")
    if len(points) > 2:
        counts, seconds = np.array(points).T
        slope = np.polyfit(np.log(counts[1:]), np.log(seconds[1:] - seconds[0]), 1)[0]
        print(f"\nCPU time = {seconds[0]:.1f} s + c * images^{slope:.3f}")


if __name__ == "__main__":
    main()
