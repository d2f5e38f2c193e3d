"""What the native kernels compute, said in torch after the formulas of ``api.h``."""

from __future__ import annotations

from copy import copy
from itertools import count

import pytest
import torch
from torch import Tensor

from sanrobust.errors import BackendError
from sanrobust.kernels import reference
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import (CONCATENATION, DOT, DOUBLE, FLOAT, HADAMARD, L, LRL,
                                                LRLRL, REFLECT, SUBTRACTION, ZEROS, LocalArgs,
                                                PairwiseArgs, PatchwiseArgs, pair_words)
from sanrobust.kernels.reference import Window

PADDING = {"reflect": REFLECT, "zeros": ZEROS}
ELEMENT = {torch.float32: FLOAT, torch.float64: DOUBLE}
# What kernels write, and what has its shape.
WRITTEN = {"out": "grad", "grad_qkv": "qkv"}
TUNED, PLANAR = 1, 2
# Pre-activations nearer to 0 than this part of their root mean square may have another sign in
# float32; a smooth case has none, so that gradients can be compared.
KINK = 2e-6
# Two roundings to float32, below which an error to the truth says nothing.
ROUNDING = 2.0 ** -23


class Case:
    """What every operator's case has: its tensors in float64, its shape, and its formula."""

    def outputs(self, qkv, of, note=lambda before: None):
        """Return the output rows before and behind the epilogue, with the other tensors by ``of``.

        ``note`` is given what stands before each ReLU.
        """

        def relu(before):
            note(before)
            return before.relu()

        y = rows_of(self.attended(qkv, of, relu))
        return y, y if self.scale is None else relu(y * of(self.scale) + of(self.shift))

    def distance_to_kink(self):
        """The smallest pre-activation as a part of the root mean square of its layer."""
        nearest = []
        self.outputs(self.qkv, lambda tensor: tensor,
                     lambda each: nearest.append(each.abs().min() / each.square().mean().sqrt()))
        return min(nearest).item()

    def images(self, first, end):
        """The images first..end - 1 as a batch of their own."""
        part, (_, height, width) = copy(self), self.size
        rows = slice(first * height * width, end * height * width)
        part.size, part.qkv, part.grad = (end - first, height, width), self.qkv[rows], \
            self.grad[rows]
        return part


class Pairwise(Case):
    """One pairwise case with all its tensors, drawn from ``seed``."""

    names = ("qkv", "w1", "w2", "table", "offset", "w_mid", "b_mid", "scale", "shift", "grad")
    transposed = {"w1": "w1t", "w2": "w2t", "w_mid": "w_mid_t"}
    written = {"y": "grad", **WRITTEN}
    args, function = PairwiseArgs, "sanrobust_pairwise"

    def __init__(self, *, images=2, height=5, width=6, relation=4, hidden=4, groups=2, channels=16,
                 footprint=3, padding="reflect", per_pixel=False, by_place=False, delta=SUBTRACTION,
                 mapping=LRL, epilogue=True, seed=0):
        draw = drawing(seed)
        hidden = groups if mapping == L else hidden
        self.window = Window(footprint, padding_mode=padding)
        self.size = (images, height, width)
        self.widths = dict(relation=relation, hidden=hidden, groups=groups, channels=channels)
        self.extra = {"table_per_pixel": int(per_pixel), "table_by_place": int(by_place),
                      "delta": delta, "mapping": mapping}
        compared = 1 if delta == DOT else relation
        rows = height * width + 1 if by_place else footprint ** 2 + 1
        self.qkv = draw(images * height * width, 2 * relation + channels)
        self.w1 = self.w2 = self.offset = self.w_mid = self.b_mid = None
        if delta != CONCATENATION:
            self.w1 = draw(hidden, compared) / compared ** 0.5
        if mapping != L:
            self.w2 = draw(groups, hidden) / hidden ** 0.5
        self.table = draw(height * width if per_pixel else 1, rows, hidden)
        if delta == DOT:
            self.qkv[:, :relation] /= relation ** 0.5
        if delta in (HADAMARD, DOT):
            self.offset = draw(compared)
        if mapping == LRLRL:
            self.w_mid, self.b_mid = draw(hidden, hidden) / hidden ** 0.5, draw(hidden)
        self.scale, self.shift = epilogue_of(draw, channels, epilogue)
        self.grad = draw(images * height * width, channels)

    def attended(self, qkv, of, relu):
        """Return the attended maps for ``qkv`` with the other tensors as ``of`` gives them."""
        query, key, value = maps_of(self, qkv)
        table = of(self.table)[:, (places if self.extra["table_by_place"]
                                   else displacements)(self).long()]
        if table.shape[0] > 1:
            pixels = torch.arange(table.shape[2])
            table = table[pixels, :, pixels].unsqueeze(0).transpose(1, 2)
        logits = table.permute(0, 3, 1, 2) + self.first(query, key, of, relu)
        if self.extra["mapping"] == LRLRL:
            logits = torch.einsum("nm,bmjp->bnjp", of(self.w_mid), relu(logits))
            logits = logits + of(self.b_mid)[:, None, None]
        if self.extra["mapping"] != L:
            logits = torch.einsum("sm,bmjp->bsjp", of(self.w2), relu(logits))
        return reference.aggregation(value, logits.softmax(2), self.window)

    def first(self, query, key, of, relu):
        """What the first layer makes of the pairs (B, D, K2, P), without the table."""
        delta = self.extra["delta"]
        around = reference.neighbours(key, self.window)
        centre = query.flatten(2).unsqueeze(2)
        if delta == CONCATENATION:
            return (centre - around)[:, :self.widths["hidden"]]
        if delta == SUBTRACTION:
            relation = centre - around
        else:
            relation = centre * around
            relation = relation.sum(1, keepdim=True) if delta == DOT else relation
            relation = relation + of(self.offset)[:, None, None]
        return torch.einsum("mr,brjp->bmjp", of(self.w1), relu(relation))


class Patchwise(Case):
    """One patchwise case."""

    names = ("qkv", "key_scale", "key_shift", "w1", "b1", "w2", "b2", "scale", "shift", "grad")
    transposed = {"w1": "w1t", "w2": "w2t"}
    written = {"y": "grad", **WRITTEN}
    args, function = PatchwiseArgs, "sanrobust_patchwise"

    def __init__(self, *, images=2, height=5, width=6, relation=4, hidden=2, groups=2, channels=16,
                 footprint=3, padding="reflect", epilogue=True, seed=0):
        draw = drawing(seed)
        self.window = Window(footprint, padding_mode=padding)
        self.size = (images, height, width)
        self.widths = dict(relation=relation, hidden=hidden, groups=groups, channels=channels)
        self.extra = {}
        neighbours = footprint ** 2
        inner = (1 + neighbours) * relation
        self.qkv = draw(images * height * width, 2 * relation + channels)
        self.key_scale = draw(neighbours, relation)
        self.key_shift = draw(neighbours, relation)
        self.w1 = draw(hidden, inner) / inner ** 0.5
        self.b1 = draw(hidden)
        self.w2 = draw(neighbours * groups, hidden) / hidden ** 0.5
        self.b2 = draw(neighbours * groups)
        self.scale, self.shift = epilogue_of(draw, channels, epilogue)
        self.grad = draw(images * height * width, channels)

    def attended(self, qkv, of, relu):
        """Return the attended maps for ``qkv`` with the other tensors as ``of`` gives them."""
        query, key, value = maps_of(self, qkv)
        patch = reference.neighbours(key, self.window).transpose(1, 2)
        patch = patch * of(self.key_scale)[..., None] + of(self.key_shift)[..., None]
        patch = relu(torch.cat((query.flatten(2), patch.flatten(1, 2)), 1))
        hidden = torch.einsum("mi,bip->bmp", of(self.w1), patch) + of(self.b1)[:, None]
        weight = torch.einsum("om,bmp->bop", of(self.w2), relu(hidden)) + of(self.b2)[:, None]
        weight = weight.unflatten(1, (self.window.neighbours, -1)).transpose(1, 2)
        return reference.aggregation(value, weight, self.window)


class Local(Case):
    """One case of scalar attention."""

    names = ("qkv", "embedding", "scale", "shift", "grad")
    transposed = {}
    written = WRITTEN
    args, function = LocalArgs, "sanrobust_local"

    def __init__(self, *, images=2, height=5, width=6, relation=4, groups=1, channels=6,
                 footprint=3, padding="reflect", content=True, embedded=False, epilogue=True,
                 seed=0):
        draw = drawing(seed)
        self.window = Window(footprint, padding_mode=padding)
        self.size = (images, height, width)
        keys = relation if content else 0
        self.widths = dict(relation=relation, keys=keys, groups=groups, channels=channels)
        self.extra = {}
        self.qkv = draw(images * height * width, relation + keys + channels)
        self.qkv[:, :relation] /= (relation / groups) ** 0.5
        self.embedding = draw(2, footprint, relation // 2) if embedded else None
        self.scale, self.shift = epilogue_of(draw, channels, epilogue)
        self.grad = draw(images * height * width, channels)

    def attended(self, qkv, of, relu):
        """Return the attended maps for ``qkv`` with the other tensors as ``of`` gives them."""
        query, key, value = maps_of(self, qkv)
        embedding = None if self.embedding is None else of(self.embedding)
        return reference.local_attention(
            query, key if self.widths["keys"] else None, value, embedding, self.widths["groups"],
            self.window)


def drawing(seed):
    """Return a function that draws normal tensors in float64."""
    random = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)


def epilogue_of(draw, channels, epilogue):
    return (draw(channels), draw(channels)) if epilogue else (None, None)


def maps_of(case, qkv):
    """Split rows (P, 2R + O) into maps of queries, keys and values."""
    images, height, width = case.size
    relation, channels = case.widths["relation"], case.widths["channels"]
    keys = case.widths.get("keys", relation)
    maps = qkv.unflatten(0, (images, height * width)).transpose(1, 2)
    return maps.unflatten(2, (height, width)).split((relation, keys, channels), 1)


def displacements(case):
    """Row of the table by neighbour and pixel (K2, P): where the neighbour really lies."""
    _, height, width = case.size
    reach, side = case.window.padding, case.window.footprint
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((down, across, torch.ones_like(down))).double().unsqueeze(0)
    found = reference.neighbours(places, case.window)[0]
    step = found[:2] - places[0, :2].flatten(1).unsqueeze(1) + reach
    return torch.where(found[2] > 0, step[0] * side + step[1], side ** 2)


def places(case):
    """Row of the table by neighbour and pixel (K2, P): the pixel that the neighbour really is."""
    _, height, width = case.size
    pixels = torch.arange(height * width).view(1, 1, height, width).double()
    found = reference.neighbours(torch.cat((pixels, torch.ones_like(pixels)), 1), case.window)[0]
    return torch.where(found[1] > 0, found[0], height * width)


def rows_of(maps):
    """Rows (P, C) of maps (B, C, H, W), or of the positions (B, C, L)."""
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)


def truths(case, dtype=torch.float64):
    """Return y, out and the gradient of qkv by name, by torch in ``dtype``, as float64."""
    qkv = case.qkv.to(dtype).requires_grad_()
    y, out = case.outputs(qkv, lambda tensor: tensor.to(dtype))
    grad, = torch.autograd.grad(out, qkv, case.grad.to(dtype))
    return {"y": y.detach().double(), "out": out.detach().double(), "grad_qkv": grad.double()}


def results(case, dtype=torch.float64, *, threads=1, level=None):
    """Return the same by the native kernels, of what the operator writes."""
    kernels = require_library() if level is None else require_level(level)
    args, held = arguments(case, dtype, threads)
    kernels.call(case.function + "_forward", args)
    kernels.call(case.function + "_backward", args)
    return {name: held[name].double() for name in case.written}


def expected(case, dtype=torch.float64):
    """Return the output and the gradient of `truths`."""
    found = truths(case, dtype)
    return found["out"], found["grad_qkv"]


def computed(case, dtype=torch.float64, **how):
    """Return the output and the gradient of `results`."""
    found = results(case, dtype, **how)
    return found["out"], found["grad_qkv"]


def san_case(kind, relation, footprint, height, width, **settings):
    """Return a pairwise or patchwise case as wide as the attention of a SAN."""
    made = {"pairwise": Pairwise, "patchwise": Patchwise}[kind]
    return made(relation=relation, hidden=relation if kind == "pairwise" else relation // 2,
                groups=relation // 2, channels=4 * relation, footprint=footprint, height=height,
                width=width, **settings)


def smooth(make, *args, **settings):
    """Return the case of the first seed without a pre-activation next to zero."""
    return next(case for case in (make(*args, **settings, seed=seed) for seed in count())
                if case.distance_to_kink() > KINK)


def require_library():
    """Return the compiled kernels or skip the test saying why there are none."""
    found = library.load()
    if found is None:
        pytest.skip(f"no native kernels: {library.refusal()}")
    return found


def require_level(name):
    """Return the library of one level of instructions or skip the test saying why not."""
    require_library()
    try:
        return library.load_level(name)
    except BackendError as refused:
        pytest.skip(str(refused))


def kernel_of(case):
    """Return which kernels take a case in float32: TUNED, PLANAR or 0, the generic ones."""
    args, _ = arguments(case, torch.float32, 1)
    return require_library().query(f"{case.function}_tuned", args)


def assert_exact(case, level=None):
    """Hold the kernels to at most twice the error that torch's float32 makes to the truth."""
    ours, torchs, exact = results(case, torch.float32, level=level), truths(case, torch.float32), \
        truths(case)
    for name in case.written:
        assert not ours[name].isnan().any(), name
        made, allowed = (float((each[name] - exact[name]).norm() / exact[name].norm())
                         for each in (ours, torchs))
        assert made <= 2 * allowed + ROUNDING, (
            f"{name}: error {made:.1e}, torch in float32 makes {allowed:.1e}")


def assert_alike(case, others, **how):
    """Hold a case, computed as ``how`` says, and the cases that its images are to the same bits."""
    whole, parts = results(case, torch.float32), [results(each, torch.float32, **how)
                                                  for each in others]
    for name in case.written:
        assert torch.equal(whole[name], torch.cat([each[name] for each in parts])), name


def arguments(case, dtype, threads):
    """Return the struct of a case and the tensors that it points to."""
    held: dict[str, Tensor] = {}
    for name in case.names:
        tensor = getattr(case, name)
        if tensor is not None:
            held[name] = tensor.to(dtype).contiguous()
    for name, other in case.transposed.items():
        if name in held:
            held[other] = held[name].t().contiguous()
    # NaN wherever a kernel forgets to write.
    for name, like in case.written.items():
        held[name] = torch.full_like(held[like], torch.nan)
    images, height, width = case.size
    if dtype == torch.float32:
        held.update(kept(case))
    args = case.args(images=images, height=height, width=width, **case.widths, **case.extra,
                     footprint=case.window.footprint, threads=threads,
                     padding=PADDING[case.window.padding_mode], element=ELEMENT[dtype],
                     **held)
    return args, held


def kept(case):
    """Room for what the forward pass keeps for the backward pass."""
    if case.args is PatchwiseArgs:
        return {"h": torch.empty(len(case.qkv), case.widths["hidden"])}
    if case.args is LocalArgs:
        return {}
    pairs = len(case.qkv) * case.window.neighbours
    words = pair_words(case.widths["hidden"], case.extra["delta"], case.extra["mapping"])
    return {"alpha": torch.empty(pairs, case.widths["groups"]),
            "signs": torch.empty(pairs, words, dtype=torch.int16)}


def error(found, wanted):
    """Largest difference relative to the largest value wanted (or to 1e-30 where all are 0)."""
    return ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()
