"""Patchwise attention by a mapping of two hidden layers (L-R-L-R-L) on rows, as `attention_rows`.

Letters: P pixels of all images, R relation channels, O value channels, K2 neighbours, M weight
groups, D channels of the first hidden layer; the second has M.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sanrobust.kernels import folding
from sanrobust.kernels.modules import PatchwiseAttention
from sanrobust.kernels.native.arguments import PatchwiseArgs
from sanrobust.kernels.native.checks import PADDINGS
from sanrobust.kernels.native.layers import Affine, Pointwise, take_signs
from sanrobust.kernels.native.tape import Rows, Tape


DEEP = "LRLRL"  # a mapping of three linear layers


@dataclass(frozen=True)
class _Part:
    """Some channels of the first hidden layer.

    Attributes:
        matrices: what the patchwise kernel reads to make them of patches.
        product: what they add to the second hidden layer behind a ReLU.
    """

    matrices: dict[str, Tensor]
    product: Pointwise


class DeepRows:
    """The attention with the normalisation and ReLU behind it.

    The first hidden layer is made M channels at a time, as wide as the kernels know it.

    Args:
        attention: the layer, frozen and in eval mode.
        folded: its first two linear layers.
        norm: the normalisation behind it.
    """

    def __init__(self, attention: PatchwiseAttention, folded: folding.FoldedPatchwise,
                 norm: nn.BatchNorm2d) -> None:
        self._window, self._affine = attention.window, Affine(norm)
        self._compared, self._outputs = (each.out_channels for each in
                                         attention.projections()[::2])
        *_, third, _, last = attention.conv_w
        assert isinstance(third, nn.BatchNorm2d) and isinstance(last, nn.Conv2d)
        w2, b2 = (each.float().contiguous()
                  for each in folding.weights_of(last, self._window.neighbours))
        self._last = dict(w2=w2, w2t=w2.t().contiguous(), b2=b2)
        self._parts = list(_parts(folded.matrices, *folding.affine(third)))
        self._width = self._parts[0].product.inputs
        self._groups = self._parts[0].product.outputs
        self._open = Affine(scale=torch.ones(self._width), shift=torch.zeros(self._width))

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Return the values (P, O) behind the ReLU; keep them and ``rows``."""
        second = tape.buffers.take(rows.pixels, self._groups)
        signs = [take_signs(tape, rows.pixels, self._width) for _ in self._parts]
        for part, open_ in zip(self._parts, signs):
            first = tape.buffers.take(rows.pixels, self._width)
            tape.call("sanrobust_patchwise_forward", self._half(
                rows, part, qkv=rows.values, h=first))
            part.product.forward(replace(rows, values=first), second, tape, affine=self._open,
                                 signs=open_, add=part is not self._parts[0])
            tape.buffers.give(first)
        out = tape.buffers.take(rows.pixels, self._outputs)
        tape.call("sanrobust_patchwise_forward", self._other_half(
            rows, qkv=rows.values, out=out, h=second))
        tape.write(self, rows, rows.values, out if tape.keep else None, second, *signs)
        return replace(rows, values=out)

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Return the gradient (P, 2R + O) of the rows."""
        with tape.read(self) as (qkv, out, second, *signs):
            assert qkv is not None and second is not None
            result, to_second = (tape.buffers.take(*each.shape) for each in (qkv, second))
            tape.call("sanrobust_patchwise_backward", self._other_half(
                grad, qkv=qkv, out=out, h=second, grad=grad.values, grad_qkv=result,
                grad_h=to_second))
            for part, open_ in zip(self._parts, signs):
                to_first = tape.buffers.take(grad.pixels, self._width)
                part.product.backward(to_second, to_first, tape, affine=self._open, signs=open_)
                tape.call("sanrobust_patchwise_backward", self._half(
                    grad, part, adds=1, qkv=qkv, grad=to_first, grad_qkv=result))
                tape.buffers.give(to_first)
        tape.buffers.give(grad.values, to_second)
        return replace(grad, values=result)

    def _half(self, rows: Rows, part: _Part, *, adds: int = 0, **tensors: Tensor) -> PatchwiseArgs:
        return self._args(rows, hidden=self._width, hidden_alone=1, adds=adds, **part.matrices,
                          **tensors)

    def _other_half(self, rows: Rows, **tensors: Tensor | None) -> PatchwiseArgs:
        return self._args(rows, hidden=self._groups, scale=self._affine.scale,
                          shift=self._affine.shift, **self._last, **tensors)

    def _args(self, rows: Rows, **given: int | Tensor | None) -> PatchwiseArgs:
        return PatchwiseArgs(
            images=rows.images, height=rows.height, width=rows.width, relation=self._compared,
            groups=self._groups, channels=self._outputs, footprint=self._window.footprint,
            padding=PADDINGS[self._window.padding_mode], threads=torch.get_num_threads(), **given)


def _parts(read: folding.PatchwiseMatrices, scale: Tensor, shift: Tensor) -> list[_Part]:
    """Cut the first hidden layer; ``scale`` and ``shift`` (M,) normalise the second."""
    w2, b2 = read.w2.double() * scale[:, None], read.b2.double() * scale + shift
    groups, hidden = w2.shape
    width = groups if hidden % groups == 0 else hidden
    parts = []
    for at in range(0, hidden, width):
        w1 = read.w1[at:at + width].contiguous()
        matrices = dict(key_scale=read.key_scale, key_shift=read.key_shift, w1=w1,
                        w1t=w1.t().contiguous(), b1=read.b1[at:at + width].contiguous())
        parts.append(_Part(matrices, Pointwise(w2[:, at:at + width], None if at else b2)))
    return parts
