"""The two attentions of a SAN on rows, with the block's second normalisation folded in.

A row holds [query | key | value] of one pixel: (P, 2R + O) float32. Letters: P pixels of all
images, R relation channels, O value channels, K2 neighbours, M weight groups, D hidden channels
of the mapping, C channels of the block, H and W sides of a map.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sanrobust.kernels import folding
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention, position_grid
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import REFLECT, ZEROS, PairwiseArgs, PatchwiseArgs
from sanrobust.kernels.native.layers import Affine, Pointwise, take_signs
from sanrobust.kernels.native.tape import Rows, Tape
from sanrobust.kernels.plain import Window
from sanrobust.kernels.position import position_table

# Answers of ``sanrobust_*_tuned``: only the tuned kernels read the forward pass's state.
_TUNED = 1
# On maps of more pixels the attention weights are computed again for the backward pass: there
# they are most of the memory and little of the time.
RECOMPUTED_PIXELS = 40 * 40
# ... for a few images at a time. Images are independent, so that no number depends on it.
RECOMPUTED_BYTES = 20 << 20


class PairwiseRows:
    """Pairwise attention on rows, then normalisation and ReLU.

    Args:
        attention: the layer, frozen and in eval mode.
        norm: the normalisation behind it.
    """

    def __init__(self, attention: PairwiseAttention, norm: nn.BatchNorm2d) -> None:
        self._window, self._position = attention.window, attention.conv_p
        self._folded = _fold_pairwise(attention)
        self._affine = Affine(norm)
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._outputs = attention.conv3.out_channels

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Return the values (P, O) behind the ReLU and keep ``rows``."""
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
        return Rows(result, grad.images, grad.height, grad.width)

    def _parts(self, rows: Rows) -> Iterator[slice]:
        """Cut the batch so that the attention weights of a part stay small."""
        per_image = rows.height * rows.width * self._window.neighbours * len(self._folded.w2) * 4
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
        """Return memory for attention weights (P, K2, M) and signs (P, K2, D / 16)."""
        groups, hidden = self._folded.w2.shape
        around = rows.pixels * self._window.neighbours
        signs = take_signs(tape, around, hidden)
        assert signs is not None
        return tape.buffers.take(around, groups), signs

    def _args(self, rows: Rows, **tensors: Tensor | None) -> PairwiseArgs:
        matrices = self._folded
        return PairwiseArgs(
            images=rows.images, height=rows.height, width=rows.width,
            relation=matrices.w1.shape[1], hidden=matrices.w1.shape[0],
            groups=matrices.w2.shape[0], channels=self._outputs, table_per_pixel=0,
            threads=torch.get_num_threads(), w1=matrices.w1, w1t=matrices.w1t, w2=matrices.w2,
            w2t=matrices.w2t, table=self._table(rows.height, rows.width),
            **_common(self._window, self._affine, tensors))

    def _table(self, height: int, width: int) -> Tensor:
        """Return what the position adds to the hidden layer, (1, K2 + 1, D)."""
        if (height, width) not in self._tables:
            with torch.no_grad():
                grid = position_grid(height, width)
                table = position_table(self._position(grid), self._folded.code, self._window,
                                       torch.float32)
            self._tables[height, width] = table
        return self._tables[height, width]


class PatchwiseRows:
    """Patchwise attention on rows, then normalisation and ReLU; arguments as `PairwiseRows`."""

    def __init__(self, attention: PatchwiseAttention, norm: nn.BatchNorm2d) -> None:
        self._window = attention.window
        self._folded = _fold_patchwise(attention)
        self._affine = Affine(norm)
        self._outputs = attention.conv3.out_channels

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
            images=rows.images, height=rows.height, width=rows.width,
            relation=matrices.key_scale.shape[1], hidden=len(matrices.b1),
            groups=len(matrices.b2) // self._window.neighbours, channels=self._outputs,
            threads=torch.get_num_threads(),
            **{name: getattr(matrices, name) for name in names},
            **_common(self._window, self._affine, tensors))


def _common(window: Window, affine: Affine,
            tensors: dict[str, Tensor | None]) -> dict[str, int | Tensor | None]:
    return {"footprint": window.footprint,
            "padding": REFLECT if window.padding_mode == "reflect" else ZEROS,
            "scale": affine.scale, "shift": affine.shift, **tensors}


def projections(attention: PairwiseAttention | PatchwiseAttention) -> Pointwise:
    """Return what makes the rows (P, 2R + O) of an attention layer from its input (P, C)."""
    folded: folding.FoldedPairwise | folding.FoldedPatchwise
    if isinstance(attention, PairwiseAttention):
        folded = _fold_pairwise(attention)
        key_scale = folded.query_scale.double()
    else:
        folded = _fold_patchwise(attention)
        key_scale = torch.ones_like(folded.query_scale, dtype=torch.float64)
    scale, shift = folded.query_scale.double(), folded.query_shift.double()
    query, key = _scaled(attention.conv1, scale), _scaled(attention.conv2, key_scale)
    value = _scaled(attention.conv3, torch.ones(attention.conv3.out_channels,
                                                dtype=torch.float64))
    weight = torch.cat((query[0], key[0], value[0]))
    return Pointwise(weight, torch.cat((query[1] + shift, key[1], value[1])))


def _scaled(convolution: nn.Conv2d, scale: Tensor) -> tuple[Tensor, Tensor]:
    assert convolution.bias is not None
    weight = convolution.weight.detach().flatten(1).double()
    return weight * scale.unsqueeze(1), convolution.bias.detach().double() * scale


def _fold_pairwise(attention: PairwiseAttention) -> folding.FoldedPairwise:
    return folding.fold_pairwise(attention.conv_w, attention.conv1.out_channels, torch.float32)


def _fold_patchwise(attention: PatchwiseAttention) -> folding.FoldedPatchwise:
    return folding.fold_patchwise(attention.conv_w, attention.conv1.out_channels, torch.float32)
