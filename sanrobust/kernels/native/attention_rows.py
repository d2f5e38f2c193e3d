"""The attentions of a SAN on rows, with the block's second normalisation folded in.

A row holds [query | key | value] of one pixel: (P, 2R + O) float32; scalar attention of offsets
alone has no key. Letters: P pixels of all
images, R relation channels, O value channels, K2 neighbours, M weight groups, D hidden channels
of the mapping, C channels of the block, H and W sides of a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from sanrobust.kernels import backends, folding
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.native import library, pairwise_designs
from sanrobust.kernels.native.arguments import (DotsArgs, LocalArgs, PairwiseArgs, PatchwiseArgs,
                                                pair_words)
from sanrobust.kernels.native.checks import PADDINGS
from sanrobust.kernels.native.layers import (Affine, Pointwise, Projections, Repeated,
                                             take_signs)
from sanrobust.kernels.native.tape import Rows, Tape
from sanrobust.kernels.plain import Window

# Answers of ``sanrobust_*_tuned``: only the tuned kernels read the forward pass's state.
_TUNED = 1
# On maps of more pixels the attention weights are computed again for the backward pass: there
# they are most of the memory and little of the time.
RECOMPUTED_PIXELS = 40 * 40
# ... for a few images at a time. Images are independent, so that no number depends on it.
RECOMPUTED_BYTES = 20 << 20


# Patchwise relations that are products of queries and keys.
PRODUCTS = ("star", "clique")


class PairwiseRows:
    """Pairwise attention on rows, then normalisation and ReLU.

    Args:
        attention: the layer, frozen and in eval mode.
        norm: the normalisation behind it.
    """

    def __init__(self, attention: PairwiseAttention, norm: nn.BatchNorm2d) -> None:
        self._window = attention.window
        self._folded = pairwise_designs.fold(attention)
        halves = self._folded.halves
        self._halves = None if halves is None else HalvesRows(halves, self._folded.outputs)
        self._affine = Affine(norm)
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._outputs = self._folded.outputs

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Return the values (P, O) behind the ReLU and keep ``rows``."""
        if self._halves is not None:
            self._halves.forward(rows, tape)
        out = tape.buffers.take(rows.pixels, self._outputs)
        y = tape.take(rows.pixels, self._outputs)
        alpha = signs = None
        if tape.keep and not self._recomputes(rows):
            alpha, signs = self._state(rows, tape)
        tape.call("sanrobust_pairwise_forward", self._args(
            rows, qkv=rows.values, y=y, out=out, alpha=alpha, signs=signs))
        tape.write(self, rows, rows.values, y, alpha, signs)
        return Rows(out, rows.images, rows.height, rows.width)

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Return the gradient (P, 2R + O) of the rows."""
        with tape.read(self) as (qkv, y, alpha, signs):
            assert qkv is not None and y is not None
            result = tape.buffers.take(*qkv.shape)
            if alpha is None and self._is_tuned(grad):
                for part in self._parts(grad):
                    self._backward_again(tape, part, qkv, y, grad, result)
            else:
                tape.call("sanrobust_pairwise_backward", self._args(
                    grad, qkv=qkv, y=y, alpha=alpha, signs=signs, grad=grad.values,
                    grad_qkv=result))
            tape.buffers.give(grad.values)
        rows = Rows(result, grad.images, grad.height, grad.width)
        if self._halves is not None:
            self._halves.backward(rows, tape)
        return rows

    def _parts(self, rows: Rows) -> Iterator[slice]:
        """Cut the batch so that the attention weights of a part stay small."""
        per_image = rows.height * rows.width * self._window.neighbours \
            * self._folded.settings["groups"] * 4
        step = max(1, RECOMPUTED_BYTES // per_image)
        for first in range(0, rows.images, step):
            yield slice(first, min(first + step, rows.images))

    def _backward_again(self, tape: Tape, images: slice, qkv: Tensor, y: Tensor, grad: Rows,
                        result: Tensor) -> None:
        """Compute the attention weights of a few ``images`` again and the gradients from them."""
        pixels = grad.height * grad.width
        part = slice(images.start * pixels, images.stop * pixels)
        rows = Rows(grad.values[part], images.stop - images.start, grad.height, grad.width)
        alpha, signs = self._state(rows, tape)
        kept = dict(qkv=qkv[part], y=y[part], alpha=alpha, signs=signs)
        tape.call("sanrobust_pairwise_forward", self._args(rows, **kept))
        tape.call("sanrobust_pairwise_backward", self._args(
            rows, **kept, grad=rows.values, grad_qkv=result[part]))
        tape.buffers.give(alpha, signs)

    def _recomputes(self, rows: Rows) -> bool:
        return rows.height * rows.width > RECOMPUTED_PIXELS or not self._is_tuned(rows)

    def _is_tuned(self, rows: Rows) -> bool:
        return library.require().query("sanrobust_pairwise_tuned", self._args(rows)) == _TUNED

    def _state(self, rows: Rows, tape: Tape) -> tuple[Tensor, Tensor]:
        """Return memory for attention weights (P, K2, M) and for the signs of pairs."""
        settings = self._folded.settings
        around = rows.pixels * self._window.neighbours
        words = pair_words(settings["hidden"], settings["delta"], settings["mapping"])
        return (tape.buffers.take(around, settings["groups"]),
                tape.buffers.take(around, words, dtype=torch.int16))

    def _args(self, rows: Rows, **tensors: Tensor | None) -> PairwiseArgs:
        return PairwiseArgs(
            table_per_pixel=0, table=self._table(rows.height, rows.width),
            **self._folded.settings, **self._folded.matrices,
            **_common(rows, self._window, self._affine, tensors))

    def _table(self, height: int, width: int) -> Tensor:
        if (height, width) not in self._tables:
            self._tables[height, width] = self._folded.table(height, width)
        return self._tables[height, width]


class HalvesRows:
    """What a concatenation does to every pixel of rows [query | key | value], in place.

    Args:
        halves: of the folded attention.
        values: O.
    """

    def __init__(self, halves: pairwise_designs.Halves, values: int) -> None:
        self._product = Pointwise(halves.weight)
        self._affine = Affine(scale=halves.scale, shift=halves.shift)
        self._values = values

    def forward(self, rows: Rows, tape: Tape) -> None:
        """Replace query and key by their parts of the first layer."""
        signs = take_signs(tape, rows.pixels, self._product.inputs)
        self._product.forward(rows, rows.values, tape, affine=self._affine, signs=signs,
                              beside=self._values)
        tape.write(self, rows, signs)

    def backward(self, grad: Rows, tape: Tape) -> None:
        """Replace the gradient of those parts by that of query and key."""
        with tape.read(self) as (signs,):
            self._product.backward(grad.values, grad.values, tape, affine=self._affine,
                                   signs=signs, beside=self._values)


class PatchwiseRows:
    """Patchwise attention on rows, then normalisation and ReLU; arguments as `PairwiseRows`."""

    def __init__(self, attention: PatchwiseAttention, norm: nn.BatchNorm2d) -> None:
        self._window = attention.window
        self._folded = fold_patchwise(attention)
        self._affine = Affine(norm)
        self._outputs = attention.projections()[-1].out_channels

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Return the values (P, O) behind the ReLU; keep them and ``rows``."""
        out = tape.buffers.take(rows.pixels, self._outputs)
        hidden = tape.take(rows.pixels, len(self._folded.matrices.b1))
        tape.call("sanrobust_patchwise_forward", self._args(
            rows, qkv=rows.values, out=out, h=hidden))
        tape.write(self, rows, rows.values, out if tape.keep else None, hidden)
        return Rows(out, rows.images, rows.height, rows.width)

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Return the gradient (P, 2R + O) of the rows."""
        with tape.read(self) as (qkv, out, hidden):
            assert qkv is not None
            result = tape.buffers.take(*qkv.shape)
            tape.call("sanrobust_patchwise_backward", self._args(
                grad, qkv=qkv, out=out, h=hidden, grad=grad.values, grad_qkv=result))
        tape.buffers.give(grad.values)
        return Rows(result, grad.images, grad.height, grad.width)

    def _args(self, rows: Rows, **tensors: Tensor | None) -> PatchwiseArgs:
        matrices = self._folded.matrices
        names = ("key_scale", "key_shift", "w1", "w1t", "b1", "w2", "w2t", "b2")
        return PatchwiseArgs(
            relation=matrices.key_scale.shape[1], hidden=len(matrices.b1),
            groups=len(matrices.b2) // self._window.neighbours, channels=self._outputs,
            **{name: getattr(matrices, name) for name in names},
            **_common(rows, self._window, self._affine, tensors))


class ProductRows:
    """Patchwise attention of products on rows, then normalisation and ReLU; as `PairwiseRows`.

    The products (P, N) of a star, N = K2, or of a clique, N = K2 * K2, go through the first layer
    as pixels go through a projection; its result (P, D) is what the patchwise kernel has from its
    own first layer elsewhere. Products are kept of a few images alone.
    """

    def __init__(self, attention: PatchwiseAttention, norm: nn.BatchNorm2d) -> None:
        self._window, self._is_clique = attention.window, attention.design.relation == "clique"
        self._folded = folding.fold_products(attention.conv_w, self._window.neighbours,
                                             torch.float32)
        self._first = Affine(scale=self._folded.scale, shift=self._folded.shift)
        self._hidden = Pointwise(self._folded.w1, self._folded.b1)
        self._affine = Affine(norm)
        query, _, value = attention.projections()
        self._compared, self._outputs = query.out_channels, value.out_channels

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Return the values (P, O) behind the ReLU; keep them and ``rows``."""
        signs = take_signs(tape, rows.pixels, self._hidden.inputs)
        hidden = tape.buffers.take(rows.pixels, self._hidden.outputs)
        for part, images in self._parts(rows):
            products = tape.buffers.take(part.stop - part.start, self._hidden.inputs)
            some = replace(rows, values=products, images=images)
            tape.call("sanrobust_dots_forward", self._dots(some, qkv=rows.values[part],
                                                           out=products))
            self._hidden.forward(some, hidden[part], tape, affine=self._first,
                                 signs=None if signs is None else signs[part])
            tape.buffers.give(products)
        out = tape.buffers.take(rows.pixels, self._outputs)
        tape.call("sanrobust_patchwise_forward", self._args(
            rows, qkv=rows.values, out=out, h=hidden))
        tape.write(self, rows, rows.values, out if tape.keep else None, hidden, signs)
        return replace(rows, values=out)

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Return the gradient (P, 2R + O) of the rows."""
        with tape.read(self) as (qkv, out, hidden, signs):
            assert qkv is not None and hidden is not None and signs is not None
            result, to_hidden = (tape.buffers.take(*each.shape) for each in (qkv, hidden))
            tape.call("sanrobust_patchwise_backward", self._args(
                grad, qkv=qkv, out=out, h=hidden, grad=grad.values, grad_qkv=result,
                grad_h=to_hidden))
            for part, images in self._parts(grad):
                products = tape.buffers.take(part.stop - part.start, self._hidden.inputs)
                self._hidden.backward(to_hidden[part], products, tape, affine=self._first,
                                      signs=signs[part])
                some = replace(grad, values=products, images=images)
                tape.call("sanrobust_dots_backward", self._dots(
                    some, qkv=qkv[part], grad=products, grad_qkv=result[part]))
                tape.buffers.give(products)
        tape.buffers.give(grad.values, to_hidden)
        return replace(grad, values=result)

    def _parts(self, rows: Rows) -> Iterator[tuple[slice, int]]:
        """Cut the batch so that the products of a part stay small: its rows and images."""
        pixels = rows.height * rows.width
        step = max(1, RECOMPUTED_BYTES // (pixels * self._hidden.inputs * 4))
        for first in range(0, rows.images, step):
            images = min(step, rows.images - first)
            yield slice(first * pixels, (first + images) * pixels), images

    def _dots(self, rows: Rows, **tensors: Tensor) -> DotsArgs:
        return DotsArgs(images=rows.images, height=rows.height, width=rows.width,
                        relation=self._compared, beside=self._outputs,
                        footprint=self._window.footprint,
                        padding=PADDINGS[self._window.padding_mode],
                        threads=torch.get_num_threads(), clique=int(self._is_clique), **tensors)

    def _args(self, rows: Rows, **tensors: Tensor | None) -> PatchwiseArgs:
        folded = self._folded
        return PatchwiseArgs(
            relation=self._compared, hidden=self._hidden.outputs,
            groups=len(folded.b2) // self._window.neighbours, channels=self._outputs,
            w2=folded.w2, w2t=folded.w2t, b2=folded.b2,
            **_common(rows, self._window, self._affine, tensors))


def scalar_refusal(attention: LocalAttention) -> str | None:
    """Return why no kernel computes a layer of scalar attention on rows, as a clause."""
    if attention.design.position == "absolute":
        return "its queries have absolute positions"
    if attention.window.stride != 1:
        return "its attention has a stride"
    if backends.requested() not in (backends.AUTO, "native"):
        return f"backend {backends.requested()} was asked for"
    return library.refusal()


class ScalarRows:
    """What the kernels are told of a layer of scalar attention.

    Args:
        attention: the layer, frozen, without absolute position and with stride 1.
    """

    def __init__(self, attention: LocalAttention) -> None:
        self._window, self._heads = attention.window, attention.design.heads
        embedding = attention.embedding()
        self._embedding = None if embedding is None else embedding.detach().contiguous()
        self._compared = attention.conv1.out_channels
        self._keys = 0 if attention.conv2 is None else self._compared
        self.outputs = attention.conv3.out_channels

    def args(self, images: int, height: int, width: int, **tensors: Tensor | None) -> LocalArgs:
        """Return the arguments of a call for maps of this size."""
        return LocalArgs(
            images=images, height=height, width=width, relation=self._compared,
            keys=self._keys, groups=self._heads, channels=self.outputs,
            footprint=self._window.footprint, padding=PADDINGS[self._window.padding_mode],
            threads=torch.get_num_threads(), embedding=self._embedding, **tensors)


class LocalRows:
    """Scalar attention on rows, then normalisation and ReLU.

    Args:
        attention: as `ScalarRows` takes it.
        norm: the normalisation behind it.
    """

    def __init__(self, attention: LocalAttention, norm: nn.BatchNorm2d) -> None:
        self._layer, self._affine = ScalarRows(attention), Affine(norm)

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Return the values (P, O) behind the ReLU; keep them and ``rows``."""
        out = tape.buffers.take(rows.pixels, self._layer.outputs)
        tape.call("sanrobust_local_forward", self._args(rows, qkv=rows.values, out=out))
        tape.write(self, rows, rows.values, out if tape.keep else None)
        return Rows(out, rows.images, rows.height, rows.width)

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Return the gradient of the rows."""
        with tape.read(self) as (qkv, out):
            assert qkv is not None
            result = tape.buffers.take(*qkv.shape)
            tape.call("sanrobust_local_backward", self._args(
                grad, qkv=qkv, out=out, grad=grad.values, grad_qkv=result))
        tape.buffers.give(grad.values)
        return Rows(result, grad.images, grad.height, grad.width)

    def _args(self, rows: Rows, **tensors: Tensor | None) -> LocalArgs:
        return self._layer.args(rows.images, rows.height, rows.width, scale=self._affine.scale,
                                shift=self._affine.shift, **tensors)


def _common(rows: Rows, window: Window, affine: Affine,
            tensors: dict[str, Tensor | None]) -> dict[str, int | Tensor | None]:
    return {"images": rows.images, "height": rows.height, "width": rows.width,
            "threads": torch.get_num_threads(), "footprint": window.footprint,
            "padding": PADDINGS[window.padding_mode],
            "scale": affine.scale, "shift": affine.shift, **tensors}


def projections(attention: PairwiseAttention | PatchwiseAttention | LocalAttention) -> Projections:
    """Return what makes the rows of an attention layer from its input (P, C)."""
    parts: tuple[pairwise_designs.Projection, ...]
    if isinstance(attention, LocalAttention):
        parts = tuple(map(pairwise_designs.projection, attention.projections()))
    elif isinstance(attention, PairwiseAttention):
        parts = pairwise_designs.fold(attention).projections
    elif attention.design.relation in PRODUCTS:
        parts = tuple(map(pairwise_designs.projection, attention.projections()))
    else:
        folded = fold_patchwise(attention)
        scale, shift = folded.query_scale.double(), folded.query_shift.double()
        query, *others = attention.projections()
        parts = (pairwise_designs.projection(query, scale, shift),
                 *map(pairwise_designs.projection, others))
    if attention.design.transforms == 1:
        once = pairwise_designs.projection(attention.conv1)
        return Repeated(Pointwise(once.weight, once.bias),
                        torch.stack([each.scale for each in parts]),
                        torch.stack([each.shift for each in parts]))
    return Pointwise(torch.cat([each.weight for each in parts]),
                     torch.cat([each.bias for each in parts]))


def fold_patchwise(attention: PatchwiseAttention) -> folding.FoldedPatchwise:
    """Fold the first two linear layers of its mapping; of most there are no others."""
    mapping = attention.conv_w
    return folding.fold_patchwise(mapping if len(mapping) == 6 else mapping[:6],
                                  attention.conv1.out_channels, torch.float32,
                                  with_query=not attention.relation.sizes.shared,
                                  to_weights=len(mapping) == 6)
