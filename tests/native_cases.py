"""Cases for the compiled attention kernels: random layers, folded by hand, and their truth.

The truth is ``sanrobust.kernels.reference`` in float64 on the same numbers. Letters: B images, R
relation channels, M weight groups, C = 8 M value channels, N hidden channels, K2 neighbours.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sanrobust.errors import BackendError
from sanrobust.kernels import reference
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import (FLOAT, REFLECT, ZEROS, PairwiseArgs,
                                                PatchwiseArgs)
from sanrobust.kernels.pointwise import PointwiseConv2d
from sanrobust.kernels.reference import Window

TUNED, PLANAR = 1, 2
# Pre-activations nearer to 0 than this part of their root mean square may have another sign in
# float32; a case has none, so that gradients can be compared.
KINK = 2e-6
# Two roundings to float32, below which an error to the truth says nothing.
ROUNDING = 2.0 ** -23


@dataclass(frozen=True)
class Case:
    """One call: its shape, whether there is an epilogue, which table of positions."""

    kind: str
    relation: int
    groups: int
    footprint: int
    height: int
    width: int
    padding_mode: str = "reflect"
    images: int = 2
    epilogue: bool = True
    table_per_pixel: bool = False

    @property
    def pairwise(self) -> bool:
        return self.kind == "pairwise"

    @property
    def hidden(self) -> int:
        return self.relation if self.pairwise else self.groups

    @property
    def channels(self) -> int:
        return 8 * self.groups

    @property
    def neighbours(self) -> int:
        return self.footprint ** 2

    @property
    def pixels(self) -> tuple[int, int, int]:
        return self.images, self.height, self.width


@dataclass(frozen=True)
class Numbers:
    """What one case computes with: float32 values, channels last."""

    qkv: Tensor
    grad: Tensor
    mapping: nn.Sequential
    position: Tensor
    table: Tensor
    scale: Tensor | None
    shift: Tensor | None


@dataclass(frozen=True)
class Result:
    """The operator's output before and after the epilogue, and its gradient."""

    y: Tensor
    out: Tensor
    grad_qkv: Tensor


def tuned_case(kind: str, relation: int, footprint: int, height: int, width: int,
               **settings: Any) -> Case:
    """Return a case with as many groups as the networks have."""
    return Case(kind, relation, relation // 2, footprint, height, width, **settings)


def require_library() -> library.Library:
    """Return the compiled kernels or skip the test saying why there are none."""
    found = library.load()
    if found is None:
        pytest.skip(f"no native kernels: {library.refusal()}")
    return found


def numbers(case: Case, seed: int = 0) -> Numbers:
    """Return random numbers for ``case``."""
    torch.manual_seed(seed)
    qkv = torch.randn(*case.pixels, 2 * case.relation + case.channels)
    grad = torch.randn(*case.pixels, case.channels)
    mapping = _random_mapping(case).eval()
    step, start = torch.randn(2, 2), torch.randn(2)
    if case.padding_mode == "zeros":
        step.zero_()
    if case.table_per_pixel:
        position = torch.randn(1, 2, case.height, case.width)
    else:
        rows, columns = torch.meshgrid(torch.arange(case.height), torch.arange(case.width),
                                       indexing="ij")
        grid = torch.stack((columns, rows)).float()
        position = (torch.einsum("ij,jhw->ihw", step, grid) + start[:, None, None])[None]
    table = _table(case, mapping, position, step) if case.pairwise else torch.empty(0)
    scale = torch.rand(case.channels) + 0.5 if case.epilogue else None
    shift = torch.randn(case.channels) * 0.3 if case.epilogue else None
    return Numbers(qkv, grad, mapping, position, table, scale, shift)


def smooth_numbers(case: Case) -> Numbers:
    """Return the numbers of the first seed without a pre-activation next to zero."""
    return next(made for made in (numbers(case, seed) for seed in count())
                if _distance_to_kink(case, made) > KINK)


def truth(case: Case, made: Numbers, dtype: torch.dtype = torch.float64) -> Result:
    """Return what the reference computes in ``dtype``; in float32 this is torch's own error."""
    qkv = made.qkv.to(dtype).requires_grad_()
    y = _attend(case, made, qkv)
    out = y
    if made.scale is not None and made.shift is not None:
        out = torch.relu(y * made.scale.to(dtype) + made.shift.to(dtype))
    out.backward(made.grad.to(dtype))
    assert qkv.grad is not None
    return Result(y.detach(), out.detach(), qkv.grad)


def run_native(case: Case, made: Numbers, *, threads: int = 1,
               lib: library.Library | None = None) -> Result:
    """Return what the compiled kernels compute."""
    lib = lib or require_library()
    folded = _fold_pairwise(case, made) if case.pairwise else _fold_patchwise(case, made)
    y = torch.full((*case.pixels, case.channels), float("nan"))
    out, grad_qkv = torch.full_like(y, float("nan")), torch.full_like(made.qkv, float("nan"))
    kept = _kept(case)
    settings = dict(images=case.images, height=case.height, width=case.width,
                    relation=case.relation, hidden=case.hidden, groups=case.groups,
                    channels=case.channels, footprint=case.footprint, threads=threads,
                    padding=REFLECT if case.padding_mode == "reflect" else ZEROS,
                    element=FLOAT)
    if case.pairwise:
        settings["table_per_pixel"] = int(case.table_per_pixel)
    args = (PairwiseArgs if case.pairwise else PatchwiseArgs)(
        **settings, **kept, **folded, qkv=made.qkv, scale=made.scale, shift=made.shift, y=y,
        out=out, grad=made.grad, grad_qkv=grad_qkv)
    lib.call(f"sanrobust_{case.kind}_forward", args)
    lib.call(f"sanrobust_{case.kind}_backward", args)
    return Result(y, out, grad_qkv)


def level(name: str) -> library.Library:
    """Return the library of one level of instructions or skip the test saying why not."""
    require_library()
    try:
        return library.load_level(name)
    except BackendError as error:
        pytest.skip(str(error))


def kernel_of(case: Case, lib: library.Library | None = None) -> int:
    """Return which kernels would take ``case``: TUNED, PLANAR or 0, the generic ones."""
    args = (PairwiseArgs if case.pairwise else PatchwiseArgs)(
        images=case.images, height=case.height, width=case.width, relation=case.relation,
        hidden=case.hidden, groups=case.groups, channels=case.channels,
        footprint=case.footprint)
    return (lib or require_library()).query(f"sanrobust_{case.kind}_tuned", args)


def assert_exact(case: Case, lib: library.Library | None = None) -> None:
    """Hold the kernels to at most twice the error that torch's float32 makes to the truth."""
    made = smooth_numbers(case)
    ours, exact = run_native(case, made, lib=lib), truth(case, made)
    torchs = truth(case, made, torch.float32)
    for name in ("y", "out", "grad_qkv"):
        error, allowed = (_error(getattr(each, name), getattr(exact, name))
                          for each in (ours, torchs))
        assert error <= 2 * allowed + ROUNDING, (
            f"{name} of {case}: error {error:.1e}, torch in float32 makes {allowed:.1e}")


def assert_alike(one: Result, other: Result) -> None:
    """Hold two results to the same bits."""
    for name in ("y", "out", "grad_qkv"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def images_of(case: Case, made: Numbers, first: int, end: int) -> tuple[Case, Numbers]:
    """Return the images first..end - 1 as a batch of their own."""
    return (replace(case, images=end - first),
            replace(made, qkv=made.qkv[first:end].contiguous(),
                    grad=made.grad[first:end].contiguous()))


def joined(results: list[Result]) -> Result:
    """Return the results of consecutive batches as that of one."""
    return Result(*(torch.cat([getattr(each, name) for each in results])
                    for name in ("y", "out", "grad_qkv")))


def _error(value: Tensor, exact: Tensor) -> float:
    assert not value.isnan().any()
    return ((value.double() - exact).norm() / exact.norm()).item()


def _random_mapping(case: Case) -> nn.Sequential:
    inputs = case.relation + 2 if case.pairwise else case.relation * (1 + case.neighbours)
    outputs = case.groups if case.pairwise else case.groups * case.neighbours
    norm, second = nn.BatchNorm2d(inputs), nn.BatchNorm2d(case.hidden)
    for each in (norm, second):
        nn.init.uniform_(each.weight, 0.5, 1.5)
        nn.init.uniform_(each.bias, -0.5, 0.5)
        nn.init.uniform_(each.running_mean, -0.5, 0.5)
        nn.init.uniform_(each.running_var, 0.5, 1.5)
    # Query (and key of pairwise) come normalised to the kernels: here that changes nothing.
    for parameter, neutral in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0),
                               (norm.running_var, 1 - norm.eps)):
        parameter.data[:case.relation] = neutral
    return nn.Sequential(norm, nn.ReLU(), PointwiseConv2d(inputs, case.hidden, bias=False),
                         second, nn.ReLU(), PointwiseConv2d(case.hidden, outputs))


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _table(case: Case, mapping: nn.Sequential, position: Tensor, step: Tensor) -> Tensor:
    """The hidden layer's initial value (1 or H * W, K2 + 1, N) by displacement."""
    reach = case.footprint // 2
    window = Window(case.footprint, padding_mode="zeros")
    if case.table_per_pixel:
        gaps = position.double().flatten(2).unsqueeze(2) \
            - reference.neighbours(position.double(), window)
        gaps = torch.cat((gaps, position.double().flatten(2).unsqueeze(2)), 2)[0].permute(2, 1, 0)
    else:
        moves = torch.tensor([[-dx, -dy] for dy in range(-reach, reach + 1)
                              for dx in range(-reach, reach + 1)], dtype=torch.float64)
        outside = position[0, :, 0, 0].double()
        gaps = torch.cat((moves @ step.double().T, outside[None]))[None]
    scale, shift = _affine(mapping[0])
    second_scale, second_shift = _affine(mapping[3])
    weight = mapping[2].weight.double().flatten(1) * second_scale[:, None]
    relu = torch.relu(gaps * scale[case.relation:] + shift[case.relation:])
    return (relu @ weight[:, case.relation:].T + second_shift).detach().float().contiguous()


def _fold_pairwise(case: Case, made: Numbers) -> dict[str, Tensor]:
    scale, _ = _affine(made.mapping[3])
    first = made.mapping[2].weight.double().flatten(1)[:, :case.relation] * scale[:, None]
    second = made.mapping[5].weight.double().flatten(1)
    return _floats(w1=first, w1t=first.T, w2=second, w2t=second.T) | {"table": made.table}


def _fold_patchwise(case: Case, made: Numbers) -> dict[str, Tensor]:
    relation, hidden, near = case.relation, case.hidden, case.neighbours
    key_scale, key_shift = (each[relation:].unflatten(0, (relation, near)).T
                            for each in _affine(made.mapping[0]))
    scale, shift = _affine(made.mapping[3])
    first = made.mapping[2].weight.double().flatten(1) * scale[:, None]
    by_neighbour = first[:, relation:].unflatten(1, (relation, near)).transpose(1, 2)
    first = torch.cat((first[:, :relation], by_neighbour.flatten(1)), 1)
    second = made.mapping[5].weight.double().flatten(1).unflatten(0, (case.groups, near))
    second = second.transpose(0, 1).reshape(-1, hidden)
    bias = made.mapping[5].bias.double().unflatten(0, (case.groups, near)).T.reshape(-1)
    return _floats(key_scale=key_scale, key_shift=key_shift, w1=first, w1t=first.T, b1=shift,
                   w2=second, w2t=second.T, b2=bias)


def _floats(**tensors: Tensor) -> dict[str, Tensor]:
    return {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}


def _kept(case: Case) -> dict[str, Tensor]:
    """Room for what the forward pass keeps for the backward pass."""
    if not case.pairwise:
        return {"h": torch.empty(*case.pixels, case.hidden)}
    words = (case.hidden + 15) // 16
    return {"alpha": torch.empty(*case.pixels, case.neighbours, case.groups),
            "signs": torch.empty(*case.pixels, case.neighbours, words, dtype=torch.int16)}


def _attend(case: Case, made: Numbers, qkv: Tensor) -> Tensor:
    dtype, relation = qkv.dtype, case.relation
    query, key, value = qkv.permute(0, 3, 1, 2).split((relation, relation, case.channels), 1)
    window = Window(case.footprint, padding_mode=case.padding_mode)
    mapping = deepcopy(made.mapping).to(dtype)
    if case.pairwise:
        y = reference.pairwise_attention(query, key, value, made.position.to(dtype), mapping,
                                         window)
    else:
        y = reference.patchwise_attention(query, key, value, mapping, window)
    return y.permute(0, 2, 3, 1)


def _distance_to_kink(case: Case, made: Numbers) -> float:
    """The smallest pre-activation as a part of the root mean square of its layer."""
    nearest: list[float] = []

    def note(before: Tensor) -> None:
        nearest.append((before.abs().min() / before.square().mean().sqrt()).item())

    watched = deepcopy(made.mapping)
    for layer in (1, 4):
        watched[layer].register_forward_pre_hook(lambda _, given: note(given[0]))
    with torch.no_grad():
        y = _attend(case, replace(made, mapping=watched), made.qkv.double())
        if made.scale is not None and made.shift is not None:
            note(y * made.scale + made.shift)
    return min(nearest)
