"""Kernels of star and clique attention: products of queries and keys, a given hidden layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_truth import PADDING, Patchwise, arguments, error, maps_of, rows_of
from torch import Tensor

from sanrobust.errors import BackendError, UsageError
from sanrobust.kernels import reference
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import DotsArgs, PatchwiseArgs
from sanrobust.kernels.reference import Window

pytestmark = pytest.mark.skipif(library.refusal() is not None,
                                reason=f"native kernels: {library.refusal()}")

TOLERANCE = 2e-6
POWERS = [2, 4]  # of the footprint: products of a star and of a clique
MAPS = [("reflect", *each) for each in ((1, 1, 2), (3, 2, 2), (3, 5, 3), (7, 4, 4), (7, 13, 5),
                                        (5, 25, 4), (7, 4, 21))]
MAPS += [("zeros", *each) for each in ((3, 1, 1), (7, 1, 5), (7, 5, 9), (3, 24, 3), (7, 3, 19))]
TENSORS = ("qkv", "w1", "w1t", "b1", "w2", "w2t", "b2", "key_scale", "key_shift", "scale", "shift",
           "y", "out", "grad", "grad_qkv", "h", "grad_h")


def products(qkv: Tensor, grad: Tensor, padding: str, footprint: int, relation: int, *,
             threads: int = 1, level: str | None = None) -> tuple[Tensor, Tensor]:
    """Return the products of maps (B, H, W, 2R + beside), and what is added to their gradient."""
    images, height, width, channels = qkv.shape
    clique = int(grad.shape[-1] > footprint ** 2)
    kernels = library.require() if level is None else library.load_level(level)
    out, added = torch.full_like(grad, torch.nan), torch.ones_like(qkv)
    args = DotsArgs(images=images, height=height, width=width, relation=relation,
                    beside=channels - 2 * relation, footprint=footprint, threads=threads,
                    clique=clique, padding=PADDING[padding], qkv=qkv, out=out, grad=grad,
                    grad_qkv=added)
    kernels.call("sanrobust_dots_forward", args)
    kernels.call("sanrobust_dots_backward", args)
    return out, added - 1


def numbers(footprint: int, height: int, width: int, relation: int, power: int = 2,
            images: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(footprint + height)
    return (torch.randn(images, height, width, 2 * relation + 6),
            torch.randn(images, height, width, footprint ** power))


def wanted_products(qkv: Tensor, grad: Tensor, padding: Any, footprint: int,
                    relation: int) -> tuple[Tensor, Tensor]:
    leaf = qkv.double().requires_grad_()
    query, key, _ = leaf.permute(0, 3, 1, 2).split((relation, relation, 6), 1)
    window = Window(footprint, padding_mode=padding)
    if grad.shape[-1] > footprint ** 2:
        made = torch.einsum("brjp,brkp->bpjk", *(reference.neighbours(each, window)
                                                 for each in (query, key))).reshape(grad.shape)
    else:
        made = reference.dot_product(query, key, 1, window)[:, 0].transpose(1, 2)
        made = made.reshape(grad.shape)
    gradient, = torch.autograd.grad(made, leaf, grad.double())
    return made.detach(), gradient


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("relation", [3, 32])  # one by one, and by vectors
@pytest.mark.parametrize("padding, footprint, height, width", MAPS)
def test_products_match_the_truth(padding: str, footprint: int, height: int, width: int,
                                  relation: int, power: int) -> None:
    given = (*numbers(footprint, height, width, relation, power), padding, footprint, relation)
    for found, wanted in zip(products(*given), wanted_products(*given)):
        assert error(found.double(), wanted) < TOLERANCE


@pytest.mark.parametrize("level", library.LEVELS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("relation", [3, 32])
def test_products_at_every_level_of_instructions(relation: int, power: int, level: str) -> None:
    if level not in library.levels():
        pytest.skip(f"this processor lacks {level}")
    given = (*numbers(5, 13, 9, relation, power), "reflect", 5, relation)
    for found, wanted in zip(products(*given, level=level), wanted_products(*given)):
        assert error(found.double(), wanted) < TOLERANCE


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("relation", [3, 32])
def test_bits_of_products_depend_on_neither_threads_nor_batch(relation: int, power: int) -> None:
    qkv, grad = numbers(5, 25, 9, relation, power, images=3)
    whole = products(qkv, grad, "reflect", 5, relation)
    for threads in (2, 4):
        again = products(qkv, grad, "reflect", 5, relation, threads=threads)
        assert all(map(torch.equal, whole, again))
    alone = [products(qkv[one:one + 1], grad[one:one + 1], "reflect", 5, relation)
             for one in range(3)]
    assert all(torch.equal(torch.cat(parts), each) for parts, each in zip(zip(*alone), whole))


def call(direction: str, like: PatchwiseArgs, tensors: dict[str, Tensor],
         level: str | None) -> None:
    """Call the patchwise kernel with these tensors and the numbers of ``like``."""
    sizes = {name: getattr(like, name) for name, *_ in like._fields_ if name not in TENSORS}
    kernels = library.require() if level is None else library.load_level(level)
    kernels.call(f"sanrobust_patchwise_{direction}", PatchwiseArgs(**sizes, **tensors))


def given_hidden(case: Patchwise, dtype: torch.dtype, level: str | None = None) -> None:
    """Assert that a kernel does with a given hidden layer what it does with its own."""
    args, held = arguments(case, dtype, 1)
    hidden = torch.full((len(case.qkv), case.widths["hidden"]), torch.nan, dtype=dtype)
    if not library.require().query("sanrobust_patchwise_tuned", args):
        hidden = torch.randn_like(hidden)  # nothing is kept of the generic kernel
    else:
        call("forward", args, held | {"h": hidden}, level)
        hidden = hidden - 0.2 * (hidden == 0)
    names = ("qkv", "w2", "w2t", "b2", "scale", "shift", "y", "out", "grad", "grad_qkv")
    own = {name: held[name] for name in names if name in held}
    own |= {"h": hidden, "grad_h": torch.full_like(hidden, torch.nan)}
    call("forward", args, own, level)
    call("backward", args, own, level)
    for name, wanted in wanted_of_hidden(case, hidden.double()).items():
        assert error(own[name].double(), wanted) < (1e-12 if dtype == torch.float64 else 4e-6), name


def wanted_of_hidden(case: Patchwise, hidden: Tensor) -> dict[str, Tensor]:
    qkv, leaf = case.qkv.clone().requires_grad_(), hidden.clone().requires_grad_()
    value = maps_of(case, qkv)[2]
    rows = torch.einsum("om,pm->po", case.w2, leaf.relu()) + case.b2
    weight = rows.unflatten(0, (case.size[0], -1)).transpose(1, 2)
    weight = weight.unflatten(1, (case.window.neighbours, -1)).transpose(1, 2)
    y = rows_of(reference.aggregation(value, weight, case.window))
    out = y if case.scale is None else torch.relu(y * case.scale + case.shift)
    grad_qkv, grad_h = torch.autograd.grad(out, (qkv, leaf), case.grad)
    return {"out": out.detach(), "grad_qkv": grad_qkv, "grad_h": grad_h}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("height, width", [(2, 3), (13, 7), (25, 18)])
def test_the_generic_kernel_takes_a_hidden_layer(height: int, width: int, padding: str,
                                                 dtype: torch.dtype) -> None:
    given_hidden(Patchwise(height=height, width=width, padding=padding, relation=5, hidden=3,
                           groups=2, channels=6), dtype)


@pytest.mark.parametrize("level", library.LEVELS)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("relation", [16, 64])
def test_tuned_kernels_take_a_hidden_layer(relation: int, padding: str, level: str) -> None:
    if level not in library.levels():
        pytest.skip(f"this processor lacks {level}")
    given_hidden(Patchwise(height=13, width=7, footprint=5, padding=padding, relation=relation,
                           hidden=relation // 2, groups=relation // 2, channels=4 * relation),
                 torch.float32, level)


@pytest.mark.parametrize("missing", ["h", "grad_h"])
def test_without_a_first_layer_the_hidden_one_must_be_given(missing: str) -> None:
    case = Patchwise()
    args, held = arguments(case, torch.float32, 1)
    tensors = {name: held[name] for name in ("qkv", "w2", "w2t", "b2", "out", "grad", "grad_qkv")}
    tensors |= {name: torch.zeros(len(case.qkv), case.widths["hidden"])
                for name in {"h", "grad_h"} - {missing}}
    with pytest.raises(BackendError, match="must be given arguments"):
        call("backward", args, tensors, None)


def test_products_of_another_length_are_refused() -> None:
    qkv, grad = numbers(3, 4, 4, 3)
    with pytest.raises(UsageError, match="must have"):
        products(qkv, grad[..., :4].contiguous(), "reflect", 3, 3)
