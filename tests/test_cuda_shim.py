"""The CUDA kernels' own sources, run on the CPU, against formulas in float64."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_cases import Case, make
from cuda_on_cpu import COMPILER, ShimDevice
from torch import Tensor, nn

from sanrobust.kernels import kernelset
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.calls import Call
from sanrobust.kernels.cuda import arguments, catalog, compiler, launch, tuned
from sanrobust.kernels.cuda.backend import CupyBackend
from sanrobust.kernels.cuda.compiler import Kernel
from sanrobust.kernels.cuda.kernels import CupyKernels
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.plain import PaddingMode, PlainKernels, Window
from sanrobust.kernels.relations import Delta

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels with")

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Double sums of at most a few hundred terms of size one, in two orders.
EXACT = 1e-11
# Units in the last place of the storage: half of one from rounding once, the rest from sums in
# float32, where a value comes out of terms larger than itself.
STORED_ULPS = 0.75
# Of float32 sums where the formula's own error is next to nothing.
FLOOR = 2e-7


def chosen() -> list[Kernel]:
    """The kernels that the tests run: every dtype, with the footprints of the cases below."""
    kernels = [*catalog.general_kernels(), *catalog.narrow_kernels()]
    footprints = {"double": (3, 5, 7, 11)}
    for each in catalog.elementary_kernels():
        name, *types = each.expression.removeprefix("san::").rstrip(">").replace("<", ", ").split(
            ", ")
        if len(types) == 1 or int(types[2]) in footprints.get(types[0], (3,)):
            kernels.append(each)
    shapes = [("float", "16"), ("float", "64"), ("float", "128"), ("san::Half", "16"),
              ("san::BFloat16", "32")]
    compared = [("float", "16"), ("float", "128"), ("san::Half", "16")]
    subtracts = launch.DELTAS["subtraction"]
    for each in catalog.tuned_kernels():
        _, _, arguments = each.expression.rstrip(">").partition("<")
        shape, delta = tuple(arguments.split(", ")[:2]), arguments.split(", ")[2:3]
        if shape in shapes and (delta in ([], [subtracts]) or shape in compared):
            kernels.append(each)
    return kernels


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> ShimDevice:
    return ShimDevice(tmp_path_factory.mktemp("cuda"), chosen())


@pytest.fixture(scope="module")
def kernels(device: ShimDevice) -> CupyKernels:
    return CupyKernels(device)


def maps_of(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)


def run(kernels: CupyKernels, case: Case, dtype: torch.dtype,
        memory_format: torch.memory_format = torch.preserve_format) -> list[Tensor]:
    """Result and gradients of a case by the kernels; by default maps keep their strides."""
    query, key, value = (each.to(dtype, memory_format=memory_format) for each in case.maps)
    grad = case.grad.to(dtype, memory_format=memory_format)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    matrices = case.matrices_of(accumulator)
    forward, backward = getattr(kernels, case.kind), getattr(kernels, f"{case.kind}_backward")
    return [forward(query, key, value, matrices, case.window),
            *backward(grad, query, key, value, matrices, case.window)]


def assert_close(case: Case, found: list[Tensor], dtype: torch.dtype) -> None:
    """Hold the errors against those of the formula in the same dtype, or of rounding once."""
    truth = case.formula(torch.float64)
    same = case.formula(torch.float32) if dtype == torch.float32 else truth
    for one, exact, plain in zip(found, truth, same):
        error = (one.double() - exact).abs().max().item()
        scale = exact.abs().max().item()
        if dtype in (torch.float16, torch.bfloat16):
            bound = STORED_ULPS * torch.finfo(dtype).eps * scale
        elif dtype == torch.float32:
            bound = 2 * (plain.double() - exact).abs().max().item() + FLOOR * scale
        else:
            bound = EXACT * scale
        assert one.dtype == dtype and one.is_contiguous()
        assert error <= bound


ELEMENTARY = [(3, 1, 1, 2, 5), (5, 1, 1, 3, 4), (7, 1, 1, 4, 6), (3, 2, 1, 5, 6), (3, 1, 2, 3, 7),
              (5, 3, 1, 7, 8), (3, 2, 3, 4, 9), (11, 1, 1, 6, 7), (5, 2, 2, 9, 5)]


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("footprint", "stride", "dilation", "height", "width"), ELEMENTARY)
def test_elementary_kernels_equal_plain_torch(
        kernels: CupyKernels, footprint: int, stride: int, dilation: int, height: int, width: int,
        padding_mode: PaddingMode) -> None:
    window = Window(footprint, stride, dilation, padding_mode)
    value = maps_of(2, 6, height, width, dtype=torch.float64, seed=0)
    query = maps_of(2, 6, height, width, dtype=torch.float64, seed=1)
    positions = window.output_size(value)[0] * window.output_size(value)[1]
    weight = maps_of(2, 3, footprint ** 2, positions, dtype=torch.float64, seed=2)
    results = []
    for each in (kernels, PlainKernels()):
        summed = each.aggregation(value, weight, window)
        relation = each.subtraction(query, value, window)
        results.append((summed, relation, *each.aggregation_backward(summed.cos(), value, weight,
                                                                     window, True, True),
                        *each.subtraction_backward(relation.cos(), (height, width), window)))
    for found, expected in zip(*results):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < EXACT * max(1, footprint ** 2)


@pytest.mark.parametrize(("dtype", "ulps"), [(torch.float32, 4), (torch.float16, STORED_ULPS),
                                             (torch.bfloat16, STORED_ULPS)])
def test_elementary_kernels_accumulate_in_float32(kernels: CupyKernels, dtype: torch.dtype,
                                                  ulps: float) -> None:
    window = Window(3, 2, 1)
    value = maps_of(2, 4, 6, 5, dtype=dtype, seed=0)
    weight = maps_of(2, 2, 9, 9, dtype=dtype, seed=1)
    grad = maps_of(2, 4, 3, 3, dtype=dtype, seed=2)
    grad_relation = maps_of(2, 4, 9, 9, dtype=dtype, seed=3)
    results = [
        (each.aggregation(*to(value, weight), window), each.subtraction(*to(value, value), window),
         *each.aggregation_backward(*to(grad, value, weight), window, True, True),
         *each.subtraction_backward(*to(grad_relation), (6, 5), window))
        for each, to in ((kernels, lambda *tensors: tensors),
                         (PlainKernels(), lambda *tensors: [each.double() for each in tensors]))]
    for found, exact in zip(*results):
        error = (found.double() - exact).abs().max()
        assert found.dtype == dtype
        assert error <= ulps * torch.finfo(dtype).eps * exact.abs().max()


# Smallest legal maps, odd sides, H != W either way; widths that no tuned kernel takes.
GENERAL = [(3, 2, 5), (5, 3, 4), (7, 4, 6), (7, 9, 5), (11, 6, 7)]


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("footprint", "height", "width"), GENERAL)
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_attention_of_any_width_equals_the_formula(kernels: CupyKernels, kind: str, footprint: int,
                                                   height: int, width: int,
                                                   padding_mode: str) -> None:
    case = make(kind, 5, 7, 3, 6, footprint, padding_mode, height, width)
    assert_close(case, run(kernels, case, torch.float64), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_attention_of_any_width_in_every_dtype(kernels: CupyKernels, kind: str,
                                               dtype: torch.dtype) -> None:
    case = make(kind, 4, 5, 2, 8, 3, "reflect", 5, 4)
    assert_close(case, run(kernels, case, dtype, torch.channels_last), dtype)


NARROW = [(torch.float32, 2, 5), (torch.float32, 9, 2), (torch.float16, 5, 4),
          (torch.bfloat16, 3, 3)]


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("dtype", "height", "width"), NARROW)
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_attention_of_the_first_stage_equals_the_formula(
        device: ShimDevice, kernels: CupyKernels, kind: str, dtype: torch.dtype, height: int,
        width: int, padding_mode: str) -> None:
    case = make(kind, 4, 4 if kind == "pairwise" else 2, 2, 16, 3, padding_mode, height, width)
    device.launched.clear()
    assert_close(case, run(kernels, case, dtype), dtype)
    assert {each.file for each in device.launched} == {f"narrow_{kind}.cu"}


def san_case(kind: str, relation: int, footprint: int, padding_mode: str, height: int,
             width: int) -> Case:
    hidden = relation if kind == "pairwise" else relation // 2
    return make(kind, relation, hidden, relation // 2, 4 * relation, footprint, padding_mode,
                height, width)


TUNED = [(16, 7, 4, 5), (16, 3, 9, 10), (16, 5, 3, 13), (64, 7, 5, 4), (128, 7, 4, 4)]


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("relation", "footprint", "height", "width"), TUNED)
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_tuned_attention_equals_the_formula(device: ShimDevice, kernels: CupyKernels, kind: str,
                                            relation: int, footprint: int, height: int, width: int,
                                            padding_mode: str) -> None:
    case = san_case(kind, relation, footprint, padding_mode, height, width)
    device.launched.clear()
    assert_close(case, run(kernels, case, torch.float32), torch.float32)
    assert device.launched <= set(catalog.tuned_kernels())


COMPARED = [(7, torch.float64), (5, torch.float32), (16, torch.float32), (128, torch.float32),
            (16, torch.float16)]


@pytest.mark.parametrize("by_place", [False, True])
@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("relation", "dtype"), COMPARED)
@pytest.mark.parametrize("delta", launch.DELTAS)
def test_every_comparison_equals_the_formula(
        device: ShimDevice, kernels: CupyKernels, delta: Delta, relation: int, dtype: torch.dtype,
        padding_mode: str, by_place: bool) -> None:
    is_tuned = relation in (16, 128)
    groups, channels = (relation // 2, 4 * relation) if is_tuned else (3, 6)
    case = make("pairwise", relation, relation, groups, channels, 3, padding_mode, 4, 7,
                delta=delta, by_place=by_place)
    device.launched.clear()
    assert_close(case, run(kernels, case, dtype), dtype)
    assert any(each.file == "general.cu" for each in device.launched) is not is_tuned


@pytest.mark.parametrize("delta", launch.DELTAS)
def test_the_narrow_kernels_take_what_they_compute(device: ShimDevice, kernels: CupyKernels,
                                                   delta: Delta) -> None:
    for by_place in (False, True):
        case = make("pairwise", 4, 4, 2, 16, 3, "zeros", 5, 6, delta=delta, by_place=by_place)
        device.launched.clear()
        assert_close(case, run(kernels, case, torch.float32), torch.float32)
        narrow = any(each.file == "narrow_pairwise.cu" for each in device.launched)
        assert narrow is (delta == "subtraction" and not by_place)


@pytest.mark.parametrize(("relation", "dtype"), [(16, torch.float16), (32, torch.bfloat16)])
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_tuned_attention_rounds_once_to_the_storage(kernels: CupyKernels, kind: str, relation: int,
                                                    dtype: torch.dtype) -> None:
    case = san_case(kind, relation, 7, "reflect", 4, 5)
    assert_close(case, run(kernels, case, dtype), dtype)


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_layout_of_the_maps_changes_no_number(kernels: CupyKernels, kind: str) -> None:
    case = san_case(kind, 16, 3, "reflect", 5, 6)
    first = run(kernels, case, torch.float32)
    merged = torch.cat([each.float() for each in case.maps], 1)   # views of it stay as they are
    merged = merged.contiguous(memory_format=torch.channels_last)
    sliced = Case(kind, tuple(merged.split([16, 16, 64], 1)), case.grad, case.matrices,
                  case.window)
    for other in (run(kernels, case, torch.float32, torch.channels_last),
                  run(kernels, sliced, torch.float32)):
        for one, two in zip(first, other):
            assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_no_number_depends_on_the_batch_or_how_work_is_cut(
        device: ShimDevice, kernels: CupyKernels, kind: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    case = san_case(kind, 16, 3, "reflect", 6, 11)
    whole = run(kernels, case, torch.float32)
    # The order of threads differs between launches, so this repeats the run, too.
    monkeypatch.setattr(launch, "SCRATCH_BYTES", 1)
    monkeypatch.setattr(device, "limit", 64 << 10)
    monkeypatch.setattr(tuned, "_FEW_BLOCKS", 1)   # large tiles, taken in several turns
    again = run(kernels, case, torch.float32)
    single = Case(kind, tuple(each[1:] for each in case.maps), case.grad[1:], case.matrices,
                  case.window)
    for one, two, alone in zip(whole, again, run(kernels, single, torch.float32)):
        assert torch.equal(one, two)
        assert torch.equal(one[1:], alone)


@pytest.mark.parametrize("relation", [5, 16])
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_nan_stays_nan_in_the_window_that_sees_it(kernels: CupyKernels, kind: str,
                                                  relation: int) -> None:
    hidden = relation if kind == "pairwise" else relation // 2
    case = make(kind, relation, hidden, max(relation // 2, 1), 4 * relation // 2 * 2
                if relation == 16 else 4, 3, "reflect", 5, 9)
    case.maps[1][0, 0, 2, 2] = torch.nan
    found = run(kernels, case, torch.float32)[0]
    lost = found.isnan().all(1)
    expected = torch.zeros_like(lost)
    expected[0, 1:4, 1:4] = True
    assert torch.equal(lost, expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [PairwiseAttention, PatchwiseAttention])
def test_layers_on_the_backend_equal_the_reference(kernels: CupyKernels, kind: type[nn.Module],
                                                   training: bool,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    # Frozen layers are folded and fused; training composes elementary kernels and the mapping.
    monkeypatch.setitem(kernelset._made, "cupy", kernels)
    monkeypatch.setattr(compiler, "refusal", lambda: None)
    monkeypatch.setattr(CupyBackend, "device_type", "cpu")
    torch.manual_seed(0)
    layer = kind(6, relation_channels=3, value_channels=4, weight_groups=2, footprint=3)
    layer = layer.double().train(training).requires_grad_(training)
    features = maps_of(2, 6, 4, 5, dtype=torch.float64, seed=1).requires_grad_()
    results = []
    for backend in ("cupy", "reference"):
        state = {name: each.clone() for name, each in layer.state_dict().items()}
        with use_backend(backend):
            out = layer(features)
        wanted = [features, *(each for each in layer.parameters() if each.requires_grad)]
        results.append([out, *torch.autograd.grad(out.sin().sum(), wanted)])
        layer.load_state_dict(state)
    for found, expected in zip(*results):
        assert (found - expected).abs().max() < EXACT


def test_empty_batches_give_empty_results(kernels: CupyKernels) -> None:
    for kind in ("pairwise", "patchwise"):
        case = san_case(kind, 16, 3, "reflect", 4, 5)
        empty = Case(kind, tuple(each[:0] for each in case.maps), case.grad[:0], case.matrices,
                     case.window)
        for found, like in zip(run(kernels, empty, torch.float32), (2, 0, 1, 2)):
            assert found.shape == (0, *case.maps[like].shape[1:])


def test_structs_have_the_size_that_the_compiler_gives_them(tmp_path: Path) -> None:
    names = ("Map", "Weights", "ElementaryArgs", "PairwiseArgs", "PatchwiseArgs")
    numbers = ", ".join(f"sizeof(san::{name})" for name in names)
    text = tmp_path / "sizes.cpp"
    text.write_text(compiler.source("args.cuh")
                    + f'extern "C" unsigned long sizes[] = {{{numbers}}};\n')
    library = tmp_path / "sizes.so"
    subprocess.run([str(COMPILER), "-std=c++17", "-shared", "-fPIC", "-o", library, text],
                   check=True)
    sizes = (ctypes.c_ulong * len(names)).in_dll(ctypes.CDLL(str(library)), "sizes")
    assert list(sizes) == [ctypes.sizeof(getattr(arguments, name)) for name in names]


def test_sanitizers_find_nothing() -> None:
    found = subprocess.run([str(COMPILER), "-print-file-name=libasan.so"], capture_output=True,
                           text=True)
    library = found.stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("g++ comes without an address sanitizer")
    # Leaks are Python's; exec'd fibers keep their stacks, so no stack may be set aside.
    settings = {"LD_PRELOAD": library, "PYTHONPATH": os.pathsep.join(sys.path),
                "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    script = Path(__file__).with_name("cuda_sanitize.py")
    run = subprocess.run([sys.executable, str(script)], env=os.environ | settings,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.endswith("clean\n")


def test_another_footprint_is_refused_with_a_reason() -> None:
    call = Call("aggregation", (torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 169, 81)), Window(13))
    assert CupyBackend().limits(call) == "the footprint is 13, not one of 3, 5, 7, 9, 11"


def test_without_cupy_the_backend_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    compiler.refusal.cache_clear()
    try:
        reason = compiler.refusal()
    finally:
        compiler.refusal.cache_clear()
    assert reason is not None
    assert reason.startswith("CuPy is not installed; for CUDA 13: pip install")


def test_importing_the_backend_does_not_import_cupy() -> None:
    code = "import sys, sanrobust.kernels.cuda.backend as b; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
