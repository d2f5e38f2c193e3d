"""Every CUDA kernel through NVIDIA's compiler for every architecture; it needs no device."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache

import pytest

from sanrobust.kernels.cuda import catalog, compiler
from sanrobust.kernels.cuda.compiler import Kernel

nvrtc = pytest.importorskip("cuda.bindings.nvrtc",
                            reason="NVRTC's Python bindings come with torch for CUDA only")

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
# What CuPy adds to the options, for device code and denormals.
CUPY_ADDS = ("-ftz=true", "--device-as-default-execution-space")
# Two blocks of 256 threads must fit into the 65536 registers of a multiprocessor.
TUNED_REGISTERS = 128
# One thread per value: more blocks hide the latency of memory.
SIMPLE_REGISTERS = 96
SIMPLE = ("elementary.cu", "general.cu")
_REPORT = re.compile(r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                     r"(\d+) bytes spill loads.*?Used (\d+) registers", re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def _nvrtc_loads() -> None:
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as reason:
        pytest.skip(f"NVRTC does not load here: {reason}")


def groups() -> dict[tuple[str, str], list[Kernel]]:
    """Kernels that are compiled together: of one file and element type (and width)."""
    found: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for kernel in catalog.all_kernels():
        arguments = kernel.expression.partition("<")[2].rstrip(">").split(", ")
        width = arguments[1] if kernel in TUNED else ""
        found[kernel.file, " ".join((arguments[0], width)).strip()].append(kernel)
    return dict(found)


TUNED = frozenset(catalog.tuned_kernels())
GROUPS = groups()


# Of other types than float the quick tests compile for one architecture.
CASES = [pytest.param(file, kind, architecture, marks=(
    [] if architecture == "sm_90" or kind.startswith("float") else [pytest.mark.slow]))
         for file, kind in GROUPS for architecture in ARCHITECTURES]


def check(result: tuple[object, ...], program: object = None) -> object:
    if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise AssertionError(f"{result[0]}\n{log_of(program) if program is not None else ''}")
    return result[1] if len(result) > 1 else None


def log_of(program: object) -> str:
    log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.decode()


def warnings_in(log: str) -> list[str]:
    """Lines in which the compiler or the assembler warns.

    Read from the log: the option that makes warnings errors is not known to every NVRTC.
    """
    return [line for line in log.splitlines() if re.search(r"\bwarning\b", line, re.IGNORECASE)]


@cache
def supported() -> frozenset[str]:
    """The architectures that this NVRTC can compile for."""
    return frozenset(f"sm_{number}" for number in check(nvrtc.nvrtcGetSupportedArchs()))


def compiled(text: str, expressions: list[str], architecture: str) -> tuple[str, list[str]]:
    """Compile a source; return the compiler's log and the symbols of the kernels asked for."""
    program = check(nvrtc.nvrtcCreateProgram(text.encode(), b"kernels.cu", 0, [], []))
    for expression in expressions:
        check(nvrtc.nvrtcAddNameExpression(program, expression.encode()))
    options = [each.encode() for each in (f"-arch={architecture}", *compiler.OPTIONS, *CUPY_ADDS,
                                          "--ptxas-options=-v")]
    check(nvrtc.nvrtcCompileProgram(program, len(options), options), program)
    names = [check(nvrtc.nvrtcGetLoweredName(program, each.encode())) for each in expressions]
    log = log_of(program)
    nvrtc.nvrtcDestroyProgram(program)
    return log, [name.decode() for name in names]


@cache
def report(file: str, kind: str, architecture: str) -> tuple[str, list[str]]:
    """Compile one group; return the compiler's log and its kernels' symbols."""
    expressions = [kernel.expression for kernel in GROUPS[file, kind]]
    return compiled(compiler.source(file), expressions, architecture)


@pytest.mark.parametrize(("file", "kind", "architecture"), CASES)
def test_every_kernel_compiles_without_spilling_registers(file: str, kind: str,
                                                          architecture: str) -> None:
    if architecture not in supported():
        pytest.skip(f"this NVRTC does not compile for {architecture}")
    log, names = report(file, kind, architecture)
    assert warnings_in(log) == []
    found = {name: tuple(map(int, numbers)) for name, *numbers in _REPORT.findall(log)}
    assert set(found) == set(names)
    ceiling = SIMPLE_REGISTERS if file in SIMPLE else TUNED_REGISTERS
    for name, (stack, stores, loads, registers) in found.items():
        assert (stack, stores, loads) == (0, 0, 0), name
        assert registers <= ceiling, name


@pytest.mark.parametrize(("body", "warns"), [("int unused = 3;", True), ("", False)])
def test_a_warning_is_seen_whatever_options_the_compiler_has(body: str, warns: bool) -> None:
    architecture = sorted(supported().intersection(ARCHITECTURES))[0]
    log, _ = compiled(f"__global__ void warned() {{ {body} }}", ["warned"], architecture)
    assert bool(warnings_in(log)) is warns


def test_a_file_contains_its_includes_once() -> None:
    text = compiler.source("pairwise_forward.cu")
    assert "#include" not in text
    assert text.count("struct PairwiseArgs {") == 1
