"""Builds the CPU kernels: the C++ files beside this one into shared libraries for ctypes.

One library per level of instructions, so that what was built on one machine is right on every
other of its architecture. The build never stops an installation: without a library the torch
formulation computes, and ``build.json`` beside the libraries says why there is none.

``python -m sanrobust.kernels.native.build`` builds in place. setup.py loads this file by its
path before the package exists, so nothing of the package or of torch is imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARIES = Path(__file__).resolve().parent / "lib"
RECORD = "build.json"

GENERIC = "generic"
X86_LEVELS = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma",
               "-mprefer-vector-width=512"),
}
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno",
         "-fno-trapping-math", "-Wno-unknown-pragmas")
# One translation unit for each tuned width, so that they compile in parallel.
RELATIONS = (16, 32, 64, 128)
PER_RELATION = ("pairwise.cpp", "patchwise.cpp")
# Compiled once for each level: the intrinsics behind it take a second to read.
COMMON_HEADER = "simd.h"


class BuildError(Exception):
    """Why there are no kernels, as a clause; ``details`` is what the compiler said."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.details = details


class Compiler(NamedTuple):
    """A C++ compiler that was seen to work: its command, its version, its flag for threads."""

    command: tuple[str, ...]
    version: str
    threads: tuple[str, ...]


class Unit(NamedTuple):
    """One compiler run: a source file with the flags of its level and width."""

    level: str
    source: Path
    flags: tuple[str, ...]
    name: str


def build(target: Path = LIBRARIES, *, objects: Path | None = None) -> None:
    """Bring the libraries in the folder ``target`` up to date, and the record of them.

    Objects are kept in the folder ``objects`` (by default ``target/objects``) and compiled again
    only when a source, a header, the flags or the compiler changed.

    Raises BuildError, after recording the reason, when there is no compiler or it fails.
    """
    target.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"machine": platform.machine(), "interface": interface()}
    with _alone(target):
        try:
            compiler = find_compiler()
            record.update(compiler=compiler.version, threads=bool(compiler.threads))
            record["libraries"] = _compile_and_link(compiler, target,
                                                    objects or target / "objects")
        except BuildError as error:
            _write_record(target, {**record, "libraries": {}, "reason": error.reason})
            raise
        _write_record(target, record)


def find_compiler(environment: Mapping[str, str] = os.environ) -> Compiler:
    """Return the first working one of $CXX, g++, clang++ and c++.

    Raises BuildError when none works.
    """
    named = environment.get("CXX")
    candidates = [*([named] if named else []), "g++", "clang++", "c++"]
    for candidate in candidates:
        command = tuple(shlex.split(candidate))
        for threads in (("-fopenmp",), ()):
            if _works(command, threads):
                version = _run((*command, "--version")).stdout.partition("\n")[0].strip()
                return Compiler(command, version, threads)
    raise BuildError("no C++ compiler was found when sanrobust was installed "
                     f"(none of {', '.join(candidates)} works)")


def interface() -> str:
    """Return a digest of the header whose structs Python mirrors; a library records its own."""
    return _digest([(SOURCES / "api.h").read_bytes()])


def units(levels: Mapping[str, tuple[str, ...]]) -> list[Unit]:
    """Return every compiler run of a build, the longest first."""
    found = []
    for source in sorted(SOURCES.glob("*.cpp")):
        widths: tuple[int, ...] = RELATIONS if source.name in PER_RELATION else ()
        for level, flags in levels.items():
            found += [Unit(level, source, (*flags, f"-DSAN_RELATION={width}"),
                           f"{source.stem}-{width}") for width in reversed(widths)]
            found.append(Unit(level, source, flags, source.stem))
    return sorted(found, key=lambda unit: "-" not in unit.name)


def main() -> int:
    """Build in place and say what came of it; returns the exit code."""
    try:
        build()
    except BuildError as error:
        print(error.details, file=sys.stderr)
        print(f"sanrobust: no CPU kernels: {error.reason}", file=sys.stderr)
        return 1
    print(f"sanrobust: CPU kernels are in {LIBRARIES}: "
          f"{', '.join(json.loads((LIBRARIES / RECORD).read_text())['libraries'])}")
    return 0


def _levels(compiler: Compiler) -> dict[str, tuple[str, ...]]:
    """The levels this machine's architecture has and the compiler knows."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {GENERIC: ()}
    able = {level: flags for level, flags in X86_LEVELS.items()
            if _works(compiler.command, flags)}
    # Few processors need the generic level where there are others: its build may be quicker.
    return {GENERIC: ("-O2",) if able else (), **able}


def _compile_and_link(compiler: Compiler, target: Path, objects: Path) -> dict[str, str]:
    """Return the file name of each level's library."""
    levels = _levels(compiler)
    headers = _digest(each.read_bytes() for each in sorted(SOURCES.glob("*.h")))
    made = {unit: _object(unit, compiler, headers, objects) for unit in units(levels)}
    _compile(compiler, {unit: path for unit, path in made.items() if not path.exists()})
    libraries = {}
    for level in levels:
        parts = [path for unit, path in made.items() if unit.level == level]
        libraries[level] = f"san_{level}.so"
        _link(compiler, parts, target / libraries[level])
    for stale in set(objects.glob("*/*")) - set(made.values()):
        stale.unlink(missing_ok=True)
    return libraries


def _object(unit: Unit, compiler: Compiler, headers: str, objects: Path) -> Path:
    """Where the unit's object is kept, under a name that changes with all that it is made of."""
    command = " ".join((*compiler.command, *FLAGS, *compiler.threads, *unit.flags))
    key = _digest([unit.source.read_bytes(), headers.encode(), compiler.version.encode(),
                   command.encode()])
    return objects / unit.level / f"{unit.name}.{key}.o"


def _compile(compiler: Compiler, todo: Mapping[Unit, Path]) -> None:
    """Compile units into objects, as many at a time as there are processors."""
    levels = sorted({unit.level for unit in todo})
    with (tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_processors()) as pool):
        try:
            common = dict(zip(levels, pool.map(
                lambda level: _precompile(compiler, level, Path(folder) / level), levels)))
            list(pool.map(lambda unit: _compile_unit(compiler, unit, todo[unit],
                                                     common[unit.level]), todo))
        except BuildError:
            pool.shutdown(cancel_futures=True)
            raise


def _precompile(compiler: Compiler, level: str, folder: Path) -> tuple[str, ...]:
    """Return the flags that bring in the common header compiled; none where that fails."""
    header = SOURCES / COMMON_HEADER
    flags = X86_LEVELS.get(level, ())
    folder.mkdir()
    try:
        _run((*compiler.command, *FLAGS, *compiler.threads, *flags, "-x", "c++-header",
              str(header), "-o", str(folder / f"{COMMON_HEADER}.gch")), "no")
    except BuildError:
        return ()
    return ("-include", str(folder / COMMON_HEADER))


def _compile_unit(compiler: Compiler, unit: Unit, made: Path, common: tuple[str, ...]) -> None:
    made.parent.mkdir(parents=True, exist_ok=True)
    part = made.with_suffix(f".{os.getpid()}")
    _run((*compiler.command, *FLAGS, *compiler.threads, *unit.flags, *common,
          "-c", str(unit.source), "-o", str(part)),
         f"{compiler.command[0]} failed on {unit.source.name}")
    part.replace(made)


def _link(compiler: Compiler, parts: list[Path], library: Path) -> None:
    """Link unless the library was made from these very objects."""
    key = _digest(part.name.encode() for part in parts)
    stamp = library.with_suffix(".key")
    if library.exists() and stamp.exists() and stamp.read_text() == key:
        return
    made = library.with_suffix(f".{os.getpid()}")
    _run((*compiler.command, "-shared", *compiler.threads, *map(str, parts), "-o", str(made)),
         f"{compiler.command[0]} failed to link {library.name}")
    made.replace(library)
    _replace(stamp, key)


def _works(command: tuple[str, ...], flags: tuple[str, ...]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.cpp"
        source.write_text("#include <new>\nextern \"C\" int answer() { return 42; }\n")
        try:
            _run((*command, *FLAGS, *flags, "-shared", str(source), "-o", f"{source}.so"), "no")
        except BuildError:
            return False
    return True


def _run(command: tuple[str, ...], reason: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command; a ``reason`` makes its failure a BuildError that begins with it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                              stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BuildError(f"{reason or command[0]} ({error.strerror})") from error
    if reason and done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line),
                     f"exit code {done.returncode}")
        raise BuildError(f"{reason} ({first.strip()})", done.stderr)
    return done


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other builds of ``folder`` waiting, where the system can."""
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        try:
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX)
        except ImportError:
            pass
        yield


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _digest(parts: Iterable[bytes]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()[:16]


def _write_record(target: Path, record: Mapping[str, Any]) -> None:
    _replace(target / RECORD, json.dumps(record, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a whole file or leave the old one."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
