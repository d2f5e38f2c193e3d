"""Commands that are stopped at any moment and typed again: nothing lost, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from warm_commands import WarmCommands, alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

ORPHAN_S = 5.0
SMALL = ("-m", "resnet26.digits", "--num-samples", "40", "-b", "4", "--out", "o")
TRAINED = ("-m", "resnet26", "--epochs", "1", "-b", "512")
SIGNALS = ("KILL", "TERM", "INT", "HUP", "broken pipe", "stop and continue")

Content = dict[str, object]


def records(folder: Path) -> Content:
    """The rows of each run; nothing but whole blocks holds any."""
    found: Content = {}
    for run in sorted((folder / "o" / "runs").glob("*/")):
        files = sorted(run.glob("records/*"))
        assert all(re.fullmatch(r"block-\d{6}\.parquet", path.name) for path in files), files
        table = pa.concat_tables(map(pq.read_table, files))
        keys = [(name, "ascending") for name in ("image", "view", "eps", "step", "iters")
                if name in table.column_names]
        found[run.name] = table.sort_by(keys).replace_schema_metadata(None).to_pylist()
    return found


def bytes_of(pattern: str) -> Callable[[Path], Content]:
    """The bytes of the files that a pattern names."""
    def read(folder: Path) -> Content:
        return {str(path.relative_to(folder)): path.read_bytes()
                for path in sorted(folder.glob(pattern))}
    return read


def tables(folder: Path) -> Content:
    """Tables of results, which name no time."""
    return {**bytes_of("o/*.csv")(folder), **bytes_of("o/*.md")(folder),
            **bytes_of("o/*.tex")(folder)}


def study_content(folder: Path) -> Content:
    """Weights, tables and records of a study."""
    return {**bytes_of("o/weights/*.safetensors")(folder), **tables(folder), **records(folder)}


def saved_content(folder: Path) -> Content:
    """Records, and every file of the images made."""
    return {**bytes_of("o/runs/*/adversarial/*")(folder), **records(folder)}


@dataclass(frozen=True)
class Victim:
    """A command; ``before`` are commands that make what it needs, ``content`` is what counts."""

    argv: tuple[str, ...]
    content: Callable[[Path], Content]
    before: tuple[tuple[str, ...], ...] = ()


VICTIMS = {
    "rotate": Victim(("rotate", *SMALL, "-j", "1"), records),
    "pgd": Victim(("pgd", *SMALL), records),
    "pgd saved": Victim(("pgd", *SMALL, "--save-adversarial"), saved_content),
    "autoattack": Victim(("pgd", *SMALL, "--attack", "autoattack", "--iters", "3", "--queries",
                          "10", "--seed", "1"), records),
    "table": Victim(("table", "--out", "o"), tables, (("rotate", *SMALL), ("pgd", *SMALL))),
    "zoo add": Victim(("zoo", "add", "resnet26.mine", "w/resnet26.digits.safetensors",
                       "--overwrite"), bytes_of("home/*.safetensors"),
                      (("train", *TRAINED, "--out", "w"),)),
    "train": Victim(("train", *TRAINED, "--out", "w"), bytes_of("w/*.safetensors")),
    "study": Victim(("study", *TRAINED, "--seeds", "2", "--processes", "2", "--out", "o"),
                    study_content),
}


class Range:
    """Runs a victim as often as asked, each time from the same beginning."""

    def __init__(self, commands: WarmCommands, folder: Path, name: str) -> None:
        self._commands, self._folder, self.victim = commands, folder, VICTIMS[name]
        self._prepared, self._here = folder / "prepared", folder / "here"
        self._prepared.mkdir(parents=True)
        for argv in self.victim.before:
            assert self._run(argv, self._prepared) == 0
        self.seconds = min(self._time() for _ in range(2))  # the first loads files into memory
        self.expected = self.victim.content(self._here)
        assert self.expected

    def stop(self, kind: str, chance: random.Random) -> int:
        """Stop the command once, type it again, and hold what is there to the expected."""
        self._renew()
        said = self._folder / "said"
        if kind == "broken pipe":
            said = self._folder / "pipe"
            # A command that began after its reader had gone has made a file of that name.
            said.unlink(missing_ok=True)
            os.mkfifo(said)
            reader = os.open(said, os.O_RDONLY | os.O_NONBLOCK)
        pid = self._commands.start(*self.victim.argv, folder=self._here, said=said)
        time.sleep(chance.uniform(0, self.seconds))
        if kind == "broken pipe":
            os.close(reader)
            said.unlink()
        elif kind == "stop and continue":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1)
            os.kill(pid, signal.SIGCONT)
        else:
            os.kill(pid, getattr(signal, f"SIG{kind}"))
        code = self._commands.wait(pid)
        self._require_nobody_left(pid)
        assert kind == "broken pipe" or "Traceback" not in self._said(), self._said()
        assert self._run(self.victim.argv, self._here) == 0, self._said()
        assert self.victim.content(self._here) == self.expected
        left = [path for path in self._here.rglob("*")
                if path.suffix in (".tmp", ".part", ".new") or path.name.startswith(".sanrobust")]
        assert not left
        return code

    def _time(self) -> float:
        self._renew()
        begun = time.monotonic()
        assert self._run(self.victim.argv, self._here) == 0, self._said()
        return time.monotonic() - begun

    def _renew(self) -> None:
        shutil.rmtree(self._here, ignore_errors=True)
        shutil.copytree(self._prepared, self._here)

    def _run(self, argv: tuple[str, ...], folder: Path) -> int:
        return self._commands.wait(self._commands.start(*argv, folder=folder,
                                                        said=self._folder / "said"))

    def _said(self) -> str:
        path = self._folder / "said"
        return path.read_text() if path.exists() else ""

    @staticmethod
    def _require_nobody_left(session: int) -> None:
        until = time.monotonic() + ORPHAN_S
        while (left := alive(session)) and time.monotonic() < until:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"{len(left)} processes outlive the command by {ORPHAN_S:.0f} s"


@pytest.fixture(scope="module")
def commands() -> Iterator[WarmCommands]:
    warm = WarmCommands()
    yield warm
    warm.close()


@pytest.mark.parametrize(("name", "kinds"), [
    ("pgd saved", ["KILL"]), ("autoattack", ["KILL"]), ("zoo add", SIGNALS[2:5])])
def test_a_command_that_was_stopped_goes_on(commands: WarmCommands, tmp_path: Path, name: str,
                                            kinds: Sequence[str]) -> None:
    place, chance = Range(commands, tmp_path / "range", name), random.Random(name)
    for kind in kinds:
        place.stop(kind, chance)


@pytest.mark.slow
@pytest.mark.parametrize("name", VICTIMS)
def test_two_hundred_stops(commands: WarmCommands, tmp_path: Path, name: str,
                           capfd: pytest.CaptureFixture[str]) -> None:
    """A command's part of them: 36 each, but 24 of a study, which takes longest."""
    place, chance = Range(commands, tmp_path / "range", name), random.Random(f"slow {name}")
    counts: Counter[str] = Counter()
    try:
        for kind in SIGNALS * (4 if name == "study" else 6):
            code = place.stop(kind, chance)
            counts[f"{kind}, exit code {code}"] += 1
    finally:
        with capfd.disabled():
            print(f"\n{name}: {counts.total()} stops within {place.seconds:.1f} s each: "
                  + "; ".join(f"{kind}: {count}" for kind, count in sorted(counts.items())))


SHARDED = ("pgd", *SMALL)
PARTS = 3


def sharded_content(folder: Path) -> Content:
    """Records and tables."""
    return {**tables(folder), **records(folder)}


class Shards:
    """Parts of one run that are killed at any moment and typed again."""

    def __init__(self, commands: WarmCommands, folder: Path) -> None:
        self._commands, self._folder = commands, folder
        # What comes last is timed: the first loads files into memory.
        for name, parts in (("whole", [0]), ("parts", range(1, PARTS + 1))):
            self._here = folder / name
            self._here.mkdir(parents=True)
            begun = time.monotonic()
            for pid in [self._start(part) for part in parts]:
                assert commands.wait(pid) == 0
            self.seconds = time.monotonic() - begun
        self.expected = sharded_content(folder / "whole")
        assert sharded_content(self._here) == self.expected

    def stop(self, kinds: Sequence[str], chance: random.Random, number: int) -> Counter[str]:
        """Stop parts of a new run by each kind, type all of them again and compare."""
        self._here = self._folder / str(number)
        self._here.mkdir()
        counts: Counter[str] = Counter()
        for kind in kinds:
            pids = {part: self._start(part) for part in range(1, PARTS + 1)}
            time.sleep(chance.uniform(0, self.seconds))
            struck = list(pids) if kind.startswith("all") else [chance.randint(1, PARTS)]
            for part in struck:
                number_of = getattr(signal, f"SIG{kind.rpartition(' ')[2]}")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pids[part], number_of)
            for part, pid in pids.items():
                code = self._commands.wait(pid)
                assert part in struck or code == 0, self._said(part)
                assert "Traceback" not in self._said(part), self._said(part)
                counts[f"{kind}, exit code {code}"] += part in struck
                Range._require_nobody_left(pid)
        for part in chance.sample(range(1, PARTS + 1), PARTS):
            assert self._commands.wait(self._start(part)) == 0, self._said(part)
        assert sharded_content(self._here) == self.expected
        left = {path.name for path in (self._here / "o").rglob("*") if path.is_file()
                and not re.fullmatch(r"block-\d{6}\.parquet|run\.json|[0-9a-f]{16}\.json|pgd\.\w+|"
                                     r"tables\.lock|\d", path.name)}
        assert not left
        shutil.rmtree(self._here)
        return counts

    def _start(self, part: int = 0) -> int:
        more = ("--shard", f"{part}/{PARTS}") if part else ()
        return self._commands.start(*SHARDED, *more, folder=self._here,
                                    said=self._folder / f"said-{part}")

    def _said(self, part: int) -> str:
        return (self._folder / f"said-{part}").read_text()


SHARD_KINDS = ("KILL", "TERM", "INT", "all KILL", "all TERM", "all INT")


def stop_shards(commands: WarmCommands, folder: Path, kills: int) -> Counter[str]:
    shards, chance = Shards(commands, folder), random.Random(kills)
    counts: Counter[str] = Counter()
    kinds = [SHARD_KINDS[number % len(SHARD_KINDS)] for number in range(kills)]
    chance.shuffle(kinds)
    for number, kind in enumerate(kinds):  # a new run for each: what is left of one is soon done
        counts += shards.stop([kind], chance, number)
    return counts


def test_shards_that_were_stopped_make_what_one_process_makes(commands: WarmCommands,
                                                              tmp_path: Path) -> None:
    stop_shards(commands, tmp_path / "few", 2)


@pytest.mark.slow
def test_two_hundred_stops_of_shards(commands: WarmCommands, tmp_path: Path,
                                     capfd: pytest.CaptureFixture[str]) -> None:
    counts = stop_shards(commands, tmp_path / "many", int(os.environ.get("KILLS", "200")))
    with capfd.disabled():
        print("\nshards: " + "; ".join(f"{kind}: {count}" for kind, count in sorted(
            counts.items())))
