"""The build of the CPU kernels, and the choice of a library: with and without a compiler."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanrobust.errors import BackendError
from sanrobust.kernels import backends
from sanrobust.kernels.native import build, library
from sanrobust.kernels.native.arguments import PairwiseArgs

ROOT = Path(__file__).resolve().parents[1]
GXX = shutil.which("g++")
needs_compiler = pytest.mark.skipif(GXX is None, reason="no g++ on this machine")
needs_kernels = pytest.mark.skipif(library.refusal() is not None,
                                   reason=f"native kernels: {library.refusal()}")

# A library of a processor that has AVX2 and nothing above it.
SMALL = """extern "C" __attribute__((visibility("default"))) int sanrobust_level() { return 1; }
extern "C" __attribute__((visibility("default"))) int sanrobust_lanes() { return LANES; }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Libraries are kept in a folder of this test."""
    monkeypatch.setattr(build, "LIBRARIES", tmp_path / "lib")
    return tmp_path / "lib"


@pytest.fixture
def small(tmp_path, folder, monkeypatch):
    """A project of two source files and a header in the place of the kernels."""
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "api.h").write_text("#define LANES 4\n")
    (sources / "level.cpp").write_text('#include "api.h"\n' + SMALL)
    (sources / "pairwise.cpp").write_text("")
    monkeypatch.setattr(build, "SOURCES", sources)
    return sources


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that counts its runs: g++ behind a script in $CXX."""
    script, log = tmp_path / "counting", tmp_path / "runs"
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{{extra}}\nexec {GXX} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))

    class Runs:
        def refuse(self, flag):
            """Fail whenever the flag is given."""
            script.write_text(f'#!/bin/sh\ncase "$*" in *{flag}*) echo "error: no {flag}" >&2; '
                              f'exit 1;; esac\nexec {GXX} "$@"\n')

        def compiled(self):
            """Return how many sources were compiled, and forget them."""
            lines = log.read_text().splitlines() if log.exists() else []
            log.write_text("")
            return sum(" -c " in line for line in lines)

    script.write_text(script.read_text().replace("{extra}", ""))
    return Runs()


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    """A machine on which no compiler can be found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


@needs_compiler
def test_an_installation_beside_a_compiler_has_kernels():
    assert library.refusal() is None


def test_without_a_compiler_the_reason_is_recorded(folder, no_compiler):
    with pytest.raises(build.BuildError, match="no C[+][+] compiler was found"):
        build.build(folder)
    assert library.load() is None
    assert library.levels() == ()
    assert "no C++ compiler was found when sanrobust was installed" in library.refusal()


@needs_kernels
def test_without_a_library_the_reference_computes(tmp_path, monkeypatch):
    maps = torch.zeros(1, 1, 3, 3)
    call = backends.Call("subtraction", (maps, maps), backends.Window(3))
    assert backends.choose(call).name == "native"
    monkeypatch.setattr(build, "LIBRARIES", tmp_path)
    assert backends.choose(call).name == "reference"
    assert "was not built" in backends.refusals(call)["native"]


def test_what_was_never_built_says_how_to_build_it(folder):
    assert library.refusal() == f"it was not built: run {library.REBUILD}"
    with pytest.raises(BackendError, match="it runs none"):
        library.load_level("generic")


@needs_compiler
def test_a_failing_compile_names_file_and_error(small, folder):
    (small / "level.cpp").write_text("int broken = ;\n")
    with pytest.raises(build.BuildError, match="failed on level.cpp .*error: expected") as caught:
        build.build(folder)
    assert "broken" in caught.value.details
    assert "failed on level.cpp" in library.refusal()


@needs_compiler
def test_a_damaged_library_is_a_reason_not_a_crash(small, folder):
    build.build(folder)
    (folder / "san_generic.so").write_text("not a library")
    assert "does not load" in library.refusal()


@needs_compiler
def test_a_library_of_another_interface_is_not_called(small, folder):
    build.build(folder)
    (small / "api.h").write_text("#define LANES 4  // another struct\n")
    assert "another version of its interface" in library.refusal()


@needs_compiler
def test_only_what_changed_is_compiled_again(small, folder, compiler):
    levels = len(build._levels(build.find_compiler()))
    compiler.compiled()
    build.build(folder)
    assert compiler.compiled() == 6 * levels
    build.build(folder)
    assert compiler.compiled() == 0
    (small / "level.cpp").write_text('#include "api.h"\n' + SMALL + "// changed\n")
    build.build(folder)
    assert compiler.compiled() == levels
    (small / "api.h").write_text("#define LANES 8\n")
    build.build(folder)
    assert compiler.compiled() == 6 * levels
    assert library.load().lanes == 8
    assert len(list((folder / "objects").glob("*/*"))) == 6 * levels


@needs_compiler
def test_other_flags_compile_again(small, folder, compiler, monkeypatch):
    build.build(folder)
    compiler.compiled()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O1"))
    build.build(folder)
    assert compiler.compiled() > 0


@needs_compiler
def test_a_compiler_without_openmp_still_builds(small, folder, compiler):
    compiler.refuse("-fopenmp")
    build.build(folder)
    assert json.loads((folder / build.RECORD).read_text())["threads"] is False
    assert library.refusal() is None


@needs_compiler
def test_a_level_that_the_compiler_lacks_is_left_out(small, folder, compiler):
    compiler.refuse("-mavx512f")
    build.build(folder)
    assert "avx512" not in json.loads((folder / build.RECORD).read_text())["libraries"]
    assert library.refusal() is None


@needs_compiler
def test_a_broken_compiler_in_the_environment_is_passed_over(small, folder, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    build.build(folder)
    assert library.refusal() is None


def test_tuned_widths_are_units_of_their_own(small):
    names = sorted(unit.name for unit in build.units({"generic": ()}))
    assert names == ["level", "pairwise", *sorted(f"pairwise-{n}" for n in build.RELATIONS)]


@needs_compiler
def test_where_there_is_a_compiler_the_installed_package_has_kernels():
    # Without them every test of a kernel would be skipped, and nothing would fail.
    assert library.refusal() is None


@needs_compiler
def test_other_architectures_get_the_generic_library_alone(monkeypatch):
    compiler = build.find_compiler()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert build._levels(compiler) == {"generic": ()}


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels are those of x86-64")
def test_a_level_above_the_processors_is_never_loaded(small, folder):
    build.build(folder)
    assert (folder / "san_avx512.so").exists()
    # The libraries of this test say that the processor has AVX2 at most.
    assert library.levels() == ("generic", "avx2")
    assert library.load().name == "avx2"
    with pytest.raises(BackendError, match="it runs generic, avx2"):
        library.load_level("avx512")


@needs_kernels
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo")
def test_the_level_is_one_that_the_system_reports():
    flags = Path("/proc/cpuinfo").read_text().split()
    needed = {"generic": (), "avx2": ("avx2", "fma"),
              "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl")}
    assert all(flag in flags for flag in needed[library.load().name])


@needs_kernels
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps")
def test_one_openmp_runtime_serves_torch_and_the_kernels():
    if not json.loads((build.LIBRARIES / build.RECORD).read_text())["threads"]:
        pytest.skip("built without threads")
    # In a process of its own: other libraries that tests load bring a runtime of theirs.
    script = ("from sanrobust.kernels.native import library; library.load(); "
              "print(open('/proc/self/maps').read())")
    maps = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True).stdout
    mapped = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line}
    assert len(mapped) == 1


@needs_kernels
def test_calls_of_no_such_kernel_are_missing_attributes():
    with pytest.raises(AttributeError):
        library.load().query("sanrobust_nothing")


@pytest.mark.parametrize("status, raised", [(1, BackendError), (2, MemoryError)])
def test_statuses_become_errors(status, raised):
    class Answering(library.Library):
        def __init__(self):
            pass

        def query(self, function, args=None):
            return status

    with pytest.raises(raised, match="sanrobust_pairwise_forward"):
        Answering().call("sanrobust_pairwise_forward", PairwiseArgs(relation=5))


def test_an_installation_goes_on_without_a_compiler(tmp_path, no_compiler):
    done = install(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no CPU kernels, torch computes instead: no C++ compiler was found" in done.stderr
    assert (tmp_path / "built/sanrobust/kernels/native/lib/build.json").exists()


@needs_compiler
def test_an_installation_compiles_into_the_package(tmp_path):
    done = install(tmp_path)
    assert done.returncode == 0, done.stderr
    made = sorted(path.name for path in
                  (tmp_path / "built/sanrobust/kernels/native/lib").glob("*"))
    assert "san_generic.so" in made
    assert "objects" not in made


def install(tmp_path):
    """Run setup.py on a project that has the build of the kernels and one small kernel."""
    pytest.importorskip("setuptools", reason="needs setuptools")
    native = tmp_path / "sanrobust/kernels/native"
    (native / "src").mkdir(parents=True)
    for name in ("setup.py", "sanrobust/kernels/native/build.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (native / "src/api.h").write_text("#define LANES 4\n")
    (native / "src/level.cpp").write_text('#include "api.h"\n' + SMALL)
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = sanrobust\nversion = 0\n"
                                        "[options]\npackages = find_namespace:\n")
    return subprocess.run([sys.executable, "setup.py", "-q", "build_py", "-d", "built"],
                          cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))


def test_the_command_says_what_came_of_the_build(folder, monkeypatch, capsys):
    folder.mkdir()
    (folder / build.RECORD).write_text(json.dumps({"libraries": ["avx2", "generic"]}))
    monkeypatch.setattr(build, "build", lambda: None)
    assert build.main() == 0
    assert capsys.readouterr().out.endswith(f"CPU kernels are in {folder}: avx2, generic\n")

    def fail():
        raise build.BuildError("g++ stopped", "line 1: no such thing")

    monkeypatch.setattr(build, "build", fail)
    assert build.main() == 1
    said = capsys.readouterr()
    assert not said.out and said.err.splitlines() == ["line 1: no such thing",
                                                      "sanrobust: no CPU kernels: g++ stopped"]
