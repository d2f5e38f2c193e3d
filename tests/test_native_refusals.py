"""No native kernel computes with what it cannot read: each entry refuses it in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import needs_native
from torch import Tensor, nn

from sanrobust.design import PAIRWISE
from sanrobust.errors import BackendError, ModelError, UsageError
from sanrobust.kernels import relations
from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices, tensors
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import (CONCATENATION, DOT, HADAMARD, LRLRL, GemmArgs,
                                                HeadArgs, L, PairwiseArgs, StemArgs, dense)
from sanrobust.kernels.native.kernels import NativeKernels
from sanrobust.kernels.native.layers import Head, Pointwise, Stem
from sanrobust.kernels.native.tape import Buffers, Rows, Tape
from sanrobust.kernels.plain import Window
from sanrobust.registry import Registry
from sanrobust.zoo.build import build
from sanrobust.zoo.folded import FoldedSan
from sanrobust.zoo.forms import small_config

pytestmark = needs_native
WINDOW = Window(3)
IMAGES, RELATION, GROUPS, HIDDEN, CHANNELS, HEIGHT, WIDTH = 2, 4, 2, 3, 6, 5, 4
POSITIONS, AROUND = HEIGHT * WIDTH, 9

Change = Callable[[Tensor], Tensor]
# What a tensor can be that a kernel must not read as if it were another.
WRONG: dict[str, Change] = {
    "float16": Tensor.half, "bfloat16": Tensor.bfloat16, "float64": Tensor.double,
    "int64": Tensor.long, "bool": Tensor.bool, "complex": lambda each: each.to(torch.complex64),
    "on another device": lambda each: each.to("meta"), "sparse": Tensor.to_sparse,
    "one image fewer": lambda each: each[1:], "one image more": lambda each: each[[0, *range(
        len(each))]],
    "a row fewer": lambda each: each.narrow(-2, 1, each.shape[-2] - 1),
    "a column fewer": lambda each: each.narrow(-1, 1, each.shape[-1] - 1),
    "a dimension fewer": lambda each: each[0], "a dimension more": lambda each: each[None],
    "no elements": lambda each: each[:0],
}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def maps(channels: int) -> Tensor:
    return normal(IMAGES, channels, HEIGHT, WIDTH)


def pairwise() -> PairwiseMatrices:
    first, second = normal(HIDDEN, RELATION), normal(GROUPS, HIDDEN)
    return PairwiseMatrices(first, first.t(), second, second.t(), normal(1, AROUND + 1, HIDDEN))


def multiplied() -> PairwiseMatrices:
    return replace(pairwise(), delta="hadamard", offset=normal(RELATION))


def summed() -> PairwiseMatrices:
    first = normal(HIDDEN, 1)
    return replace(pairwise(), w1=first, w1t=first.t(), delta="dot", offset=normal(1))


def placed() -> PairwiseMatrices:
    return replace(pairwise(), table=normal(POSITIONS + 1, HIDDEN))


def patchwise() -> PatchwiseMatrices:
    first = normal(HIDDEN, (1 + AROUND) * RELATION)
    second = normal(AROUND * GROUPS, HIDDEN)
    return PatchwiseMatrices(
        key_scale=normal(AROUND, RELATION), key_shift=normal(AROUND, RELATION), w1=first,
        w1t=first.t(), b1=normal(HIDDEN), w2=second, w2t=second.t(), b2=normal(len(second)))


QUERY, KEY, VALUE, GRAD = maps(RELATION), maps(RELATION), maps(CHANNELS), maps(CHANNELS)
WEIGHT = normal(IMAGES, GROUPS, AROUND, POSITIONS)
DIFFERENCES = normal(IMAGES, RELATION, AROUND, POSITIONS)
ATTENDED = (QUERY, KEY, VALUE)

# Entry, its tensors, what else it takes.
ENTRIES = {
    "aggregation": ((VALUE, WEIGHT), (WINDOW,)),
    "aggregation_backward": ((GRAD, VALUE, WEIGHT), (WINDOW, True, True)),
    "subtraction": ((QUERY, KEY), (WINDOW,)),
    "pairwise": (ATTENDED, (pairwise(), WINDOW)),
    "pairwise_backward": ((GRAD, *ATTENDED), (pairwise(), WINDOW)),
    "patchwise": (ATTENDED, (patchwise(), WINDOW)),
    "patchwise_backward": ((GRAD, *ATTENDED), (patchwise(), WINDOW)),
}
PLACES = [(name, place) for name, (tensors, _) in ENTRIES.items() for place in range(len(tensors))]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("name", "place"), PLACES)
def test_kernels_refuse_a_tensor_that_does_not_fit_the_others(name: str, place: int,
                                                              wrong: str) -> None:
    tensors, rest = ENTRIES[name]
    kernel = getattr(NativeKernels(), name)
    kernel(*tensors, *rest)
    changed = [WRONG[wrong](each) if index == place else each
               for index, each in enumerate(tensors)]
    with pytest.raises(UsageError):
        kernel(*changed, *rest)


# A vector has no rows.
MATRICES = [(made, name, wrong) for made in (pairwise, multiplied, summed, placed, patchwise)
            for name, each in tensors(made()).items() for wrong in WRONG
            if each.dim() > 1 or not wrong.startswith("a row")]


@pytest.mark.parametrize(("made", "name", "wrong"), MATRICES)
def test_kernels_refuse_a_matrix_that_does_not_fit(
        made: Callable[[], PairwiseMatrices | PatchwiseMatrices], name: str, wrong: str) -> None:
    matrices = made()
    kernel = getattr(NativeKernels(), "patchwise" if made is patchwise else "pairwise")
    kernel(*ATTENDED, matrices, WINDOW)
    with pytest.raises(UsageError):
        kernel(*ATTENDED, replace(matrices, **{name: WRONG[wrong](getattr(matrices, name))}),
               WINDOW)


@pytest.mark.parametrize("changes", [
    dict(w1=None), dict(w1t=None), dict(offset=normal(RELATION)), dict(offset=normal(1)),
    dict(delta="hadamard"), dict(delta="dot"), dict(delta="concatenation"),
    dict(delta="concatenation", w1=None, w1t=None)])
def test_kernels_refuse_matrices_of_another_comparison(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        NativeKernels().pairwise(*ATTENDED, replace(pairwise(), **changes), WINDOW)


@pytest.mark.parametrize("window", [
    Window(0), Window(2), Window(-3), Window(3, stride=0), Window(3, dilation=0),
    Window(3, stride=-1), Window(3, padding_mode="circular"),  # type: ignore[arg-type]
    Window(2**31 + 1), Window(3, dilation=2**31 + 1)])
@pytest.mark.parametrize("name", ENTRIES)
def test_kernels_refuse_what_is_no_window(name: str, window: Window) -> None:
    tensors, rest = ENTRIES[name]
    rest = tuple(window if each is WINDOW else each for each in rest)
    with pytest.raises(UsageError):
        getattr(NativeKernels(), name)(*tensors, *rest)


@pytest.mark.parametrize("window", [Window(3, stride=2), Window(3, dilation=2)])
@pytest.mark.parametrize("name", ["pairwise", "patchwise"])
def test_fused_kernels_refuse_a_window_that_they_would_ignore(name: str, window: Window) -> None:
    tensors, (matrices, _) = ENTRIES[name]
    with pytest.raises(UsageError):
        getattr(NativeKernels(), name)(*tensors, matrices, window)


@pytest.mark.parametrize("size", [(0, 4), (5, 0), (5, 5), (-5, -4), (2**40, 2**40)])
def test_the_gradient_of_subtraction_refuses_maps_of_another_size(size: tuple[int, int]) -> None:
    NativeKernels().subtraction_backward(DIFFERENCES, (HEIGHT, WIDTH), WINDOW)
    for window in (WINDOW, Window(3, padding_mode="zeros")):
        with pytest.raises(UsageError):
            NativeKernels().subtraction_backward(DIFFERENCES, size, window)


@pytest.mark.parametrize("wrong", ["float16", "on another device", "sparse", "int64"])
def test_the_gradient_of_subtraction_refuses_other_gradients(wrong: str) -> None:
    with pytest.raises(UsageError):
        NativeKernels().subtraction_backward(WRONG[wrong](DIFFERENCES), (HEIGHT, WIDTH), WINDOW)


def test_a_view_that_negates_is_read_as_what_it_means() -> None:
    turned = torch._neg_view(VALUE)
    assert turned.is_neg() and turned.is_contiguous()
    kernels = NativeKernels()
    assert torch.equal(kernels.aggregation(turned, WEIGHT, WINDOW),
                       kernels.aggregation(-VALUE, WEIGHT, WINDOW))
    assert torch.equal(dense(turned), -VALUE)
    network = folded()
    images = normal(1, 3, 32, 32)
    assert torch.equal(network(torch._neg_view(images)), network(-images))


def folded() -> FoldedSan:
    torch.manual_seed(0)
    return FoldedSan(build(small_config("san10-pair")).eval())


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("wrong", {
    **{name: WRONG[name] for name in ("float16", "bfloat16", "float64", "int64", "bool", "complex",
                                      "on another device", "sparse", "a dimension fewer",
                                      "a dimension more")},
    "one channel": lambda each: each[:, :1], "four channels": lambda each: each[:, [0, 1, 2, 0]],
    "no channel": lambda each: each[:, :0], "no pixel": lambda each: each[:, :, :0],
    "channels last": lambda each: each.permute(0, 2, 3, 1), "a list": lambda each: [each],
}.items(), ids=lambda item: item[0] if isinstance(item, tuple) else str(item))
def test_a_folded_network_refuses_other_images(wrong: tuple[str, Change], learning: bool) -> None:
    network, images = folded(), normal(2, 3, 32, 32)
    network(images)
    changed = wrong[1](images)
    if learning:
        if not isinstance(changed, Tensor) or not (changed.is_floating_point()
                                                   or changed.is_complex()):
            pytest.skip("this tensor carries no gradient")
        changed.requires_grad_()
    # Too few pixels are a matter of the model, anything else of the caller.
    with pytest.raises(ModelError if wrong[0] == "no pixel" else UsageError):
        network(changed)


@pytest.mark.parametrize("change", [
    lambda images: images.contiguous(memory_format=torch.channels_last),
    lambda images: images.flip(3).flip(3), lambda images: images.transpose(2, 3).contiguous()
    .transpose(2, 3), lambda images: images[:, :, :, None].expand(-1, -1, -1, 1, -1)[:, :, :, 0]])
def test_a_folded_network_takes_images_of_any_strides(change: Change) -> None:
    network, images = folded(), normal(2, 3, 32, 32)
    assert torch.equal(network(change(images)), network(images))


def test_a_folded_network_is_made_of_nothing_else() -> None:
    torch.manual_seed(0)
    network = build(small_config("san10-pair")).eval()
    with pytest.raises(BackendError, match="it is no SAN"):
        FoldedSan(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="train mode"):
        FoldedSan(network.train())
    with pytest.raises(BackendError, match="torch.float16"):
        FoldedSan(network.eval().half())
    with pytest.raises(BackendError, match="weights are on meta"):
        FoldedSan(network.float().to("meta"))
    with pytest.raises(BackendError, match="mapping=L"):
        FoldedSan(build(small_config("san10-patch(mapping=L)")).eval())


def test_a_relation_that_no_kernel_knows_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(relations.find("pairwise", "hadamard"), name="squared")
    monkeypatch.setitem(relations.RELATIONS, "pairwise", Registry(
        "pairwise relation", listing="nowhere"))
    relations.register(entry)
    with pytest.raises(BackendError, match="no fused kernel has its relation squared"):
        FoldedSan(build(replace(small_config("san10-pair"),
                                design=replace(PAIRWISE, relation="squared"))).eval())


@pytest.mark.parametrize("changes", [
    dict(delta=4), dict(mapping=3), dict(mapping=L), dict(delta=HADAMARD), dict(delta=DOT),
    dict(mapping=LRLRL), dict(delta=CONCATENATION, relation=RELATION - 2)])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_pairwise_kernel_refuses_what_is_no_design(direction: str,
                                                     changes: dict[str, int]) -> None:
    numbers = dict(images=1, height=4, width=4, relation=RELATION, hidden=HIDDEN, groups=GROUPS,
                   channels=CHANNELS, footprint=3)
    with pytest.raises(BackendError, match="must be given arguments that the native kernels take"):
        library.require().call(f"sanrobust_pairwise_{direction}",
                               PairwiseArgs(**{**numbers, **changes}))


@pytest.mark.parametrize("changes", [
    dict(), dict(delta=DOT), dict(delta=CONCATENATION), dict(mapping=L), dict(mapping=LRLRL),
    dict(table_by_place=1)])
def test_pairwise_matrices_have_as_many_elements_as_their_design_says(
        changes: dict[str, int]) -> None:
    numbers = dict(images=1, height=HEIGHT, width=WIDTH, relation=RELATION, hidden=HIDDEN,
                   groups=GROUPS, channels=CHANNELS, footprint=3, **changes)
    sizes = PairwiseArgs(**numbers).elements()
    for name, size in sizes.items():
        dtype = {"signs": torch.int16, "moments": torch.float64}.get(name, torch.float32)
        PairwiseArgs(**numbers, **{name: torch.zeros(size, dtype=dtype)})
        for wrong in (size + 1, size - 1) if size else (1,):
            with pytest.raises(UsageError, match=f"{name} of this native call must have {size}"):
                PairwiseArgs(**numbers, **{name: torch.zeros(wrong, dtype=dtype)})


def rows(values: Tensor, sides: tuple[int, int] = (3, 2)) -> Rows:
    return Rows(values, len(values) // (sides[0] * sides[1]), *sides)


@pytest.mark.parametrize("values", [
    normal(12, 5), normal(11, 4), normal(12, 4).double(), normal(12, 4).half(),
    normal(4, 12).t(), normal(12, 4).to("meta"), normal(24, 4)[::2]])
def test_a_product_of_rows_refuses_other_rows(values: Tensor) -> None:
    layer, tape = Pointwise(normal(7, 4)), Tape(Buffers(), keep=False)
    layer.forward(rows(normal(12, 4)), torch.empty(12, 7), tape)
    with pytest.raises(UsageError):
        layer.forward(rows(values), torch.empty(12, 7), tape)
    with pytest.raises(UsageError):
        layer.forward(rows(normal(12, 4)), torch.empty(12, 6), tape)


def test_the_first_and_the_last_layer_refuse_what_they_cannot_read() -> None:
    stem = Stem(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16).eval(), pooled=True)
    head = Head(nn.BatchNorm2d(16).eval(), nn.Linear(16, 5))
    tape = Tape(Buffers(), keep=False)
    assert head.forward(stem.forward(normal(2, 3, 6, 4), tape), tape).shape == (2, 5)
    for images in (normal(2, 1, 6, 4), normal(2, 4, 6, 4), normal(2, 3, 6, 4).double()):
        with pytest.raises(UsageError):
            stem.forward(images, tape)
    with pytest.raises(UsageError):
        head.forward(rows(normal(12, 15)), tape)


def test_a_recorded_program_refuses_tensors_unlike_its_own() -> None:
    layer, tape = Pointwise(normal(7, 4)), Tape(Buffers(), keep=False)
    given, out = normal(12, 4), torch.empty(12, 7)
    layer.forward(rows(given), out, tape)
    program = tape.program(given, out)
    again = torch.empty(12, 7)
    program.run(given * 2, again)
    torch.testing.assert_close(again, 2 * out)
    for wrong in (given.double(), given[:6], given.to("meta"), normal(4, 12).t()):
        with pytest.raises(UsageError):
            program.run(wrong, again)


@pytest.mark.parametrize("numbers", [
    dict(images=-1), dict(images=2**63), dict(relation=2**31), dict(threads=-1),
    dict(footprint=2**32 + 3), dict(element=2)])
def test_numbers_that_a_field_would_cut_off_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        PairwiseArgs(**numbers)


def test_a_kernel_refuses_the_arguments_of_another() -> None:
    kernels = library.require()
    for args in (StemArgs(), HeadArgs(), None):
        with pytest.raises(UsageError, match="must be given GemmArgs"):
            kernels.call("sanrobust_gemm", args)  # type: ignore[arg-type]
    assert kernels.call("sanrobust_gemm", GemmArgs()) == 0


@pytest.mark.parametrize(("inner", "columns"), [(2**31, 1), (1, 2**31), (-1, 4)])
def test_the_size_of_a_packed_matrix_is_not_cut_off(inner: int, columns: int) -> None:
    with pytest.raises(UsageError):
        library.require().packed_size(inner, columns)
