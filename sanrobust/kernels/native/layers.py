"""Layers on rows by the native kernels: frozen, normalisations folded in, nothing copied twice.

Rows are the pixels of a batch in the order (image, y, x), channels last: (P, C) float32, dense.
Letters: B images, H and W pixels of a map, P = B * H * W, C channels, O channels of the output,
R relation channels, K2 neighbours. A layer's ``forward`` leaves on the tape what its
``backward`` reads; both may write into the rows that they are given. Sums run in one fixed
order, whatever the batch and the number of threads.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from sanrobust.kernels.folding import affine
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import (GemmArgs, HeadArgs, PackArgs, RepeatArgs, StemArgs,
                                                UnpoolArgs, sign_words)
from sanrobust.kernels.native.tape import Rows, Tape


class Layer(Protocol):
    """One step of a folded network."""

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Return the layer's output; may overwrite ``rows``."""
        ...

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Return the gradient of the input for that of the output; may overwrite ``grad``."""
        ...


class Affine:
    """A normalisation by stored statistics, or its scale and shift, as the kernels read it.

    Attributes:
        scale, shift: (C,) float32.
    """

    def __init__(self, norm: nn.BatchNorm2d | None = None, *, scale: Tensor | None = None,
                 shift: Tensor | None = None) -> None:
        if norm is not None:
            scale, shift = affine(norm)
        assert scale is not None and shift is not None
        self.scale, self.shift = _frozen(scale), _frozen(shift)


class Pointwise:
    """A 1x1 convolution of rows, with what stands before and after it folded in.

    Args:
        weight: (O, C).
        bias: (O,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        weight = _frozen(weight)
        self.outputs, self.inputs = weight.shape
        self._bias = None if bias is None else _frozen(bias)
        self._forward = _pack(weight, self.inputs, self.outputs, transposed=True)
        self._backward = _pack(weight, self.outputs, self.inputs, transposed=False)

    def forward(self, rows: Rows, out: Tensor, tape: Tape, *, affine: Affine | None = None,
                signs: Tensor | None = None, pooled: bool = False, codes: Tensor | None = None,
                add: bool = False, beside: int = 0) -> None:
        """Write into ``out`` (P, O), or with ``add`` add to it, the product for ``rows`` (., C).

        Args:
            affine: a normalisation and ReLU before the product.
            signs: (P, C / 16) receives where that ReLU was open, one bit each.
            pooled: whether a maximum over 2x2 pixels follows the ReLU; P counts pooled pixels.
            codes: (P, C) receives which of the four pixels won.
            beside: floats that stand in each of the ``rows``, and of ``out``, behind those of the
                product; ``out`` may then be the rows' own values where O is C.
        """
        tape.call("sanrobust_gemm", GemmArgs(
            rows=len(out), inner=self.inputs, columns=self.outputs, accumulate=int(add),
            threads=torch.get_num_threads(), a=rows.values, packed=self._forward,
            bias=self._bias, out=out, in_scale=affine.scale if affine else None,
            in_shift=affine.shift if affine else None, in_signs=signs, pool_codes=codes,
            beside=beside,
            pool_height=rows.height if pooled else 0, pool_width=rows.width if pooled else 0))

    def backward(self, grad: Tensor, out: Tensor, tape: Tape, *, affine: Affine | None = None,
                 signs: Tensor | None = None, add: bool = False, beside: int = 0) -> None:
        """Write into ``out`` (P, C), or add to it, the gradient of the input.

        With ``affine`` and ``signs`` it is that of what stood before the normalisation and ReLU.
        """
        tape.call("sanrobust_gemm", GemmArgs(
            rows=len(grad), inner=self.outputs, columns=self.inputs, accumulate=int(add),
            threads=torch.get_num_threads(), a=grad, packed=self._backward, out=out, beside=beside,
            out_scale=affine.scale if affine else None, out_signs=signs))


class Projections(Protocol):
    """What makes the rows [query | key | value] of a block: as `Pointwise`."""

    inputs: int
    outputs: int

    def forward(self, rows: Rows, out: Tensor, tape: Tape, *, affine: Affine,
                signs: Tensor | None) -> None:
        """Write the rows (P, 2R + O) for normalised ``rows`` (P, C) into ``out``."""
        ...

    def backward(self, grad: Tensor, out: Tensor, tape: Tape, *, affine: Affine,
                 signs: Tensor | None, add: bool) -> None:
        """Add the gradient of what stood before the normalisation to ``out`` (P, C)."""
        ...


class Repeated:
    """One projection as query, key and value, each with a scale and a shift of its own.

    Args:
        product: the projection, to R = O channels.
        scale, shift: (3, O).
    """

    def __init__(self, product: Pointwise, scale: Tensor, shift: Tensor) -> None:
        self.inputs, self.outputs = product.inputs, 3 * product.outputs
        self._product, self._scale, self._shift = product, _frozen(scale), _frozen(shift)

    def forward(self, rows: Rows, out: Tensor, tape: Tape, *, affine: Affine,
                signs: Tensor | None) -> None:
        """Write as `Projections` says."""
        once = tape.buffers.take(len(out), self._product.outputs)
        self._product.forward(rows, once, tape, affine=affine, signs=signs)
        tape.call("sanrobust_repeat_forward", self._args(once, x=once, out=out))
        tape.buffers.give(once)

    def backward(self, grad: Tensor, out: Tensor, tape: Tape, *, affine: Affine,
                 signs: Tensor | None, add: bool) -> None:
        """Write as `Projections` says."""
        once = tape.buffers.take(len(grad), self._product.outputs)
        tape.call("sanrobust_repeat_backward", self._args(once, grad=grad, grad_x=once))
        self._product.backward(once, out, tape, affine=affine, signs=signs, add=add)
        tape.buffers.give(once)

    def _args(self, once: Tensor, **tensors: Tensor) -> RepeatArgs:
        return RepeatArgs(pixels=len(once), channels=self._product.outputs,
                          threads=torch.get_num_threads(), scale=self._scale, shift=self._shift,
                          **tensors)


class Stem:
    """The first convolution, normalisation, ReLU and, perhaps, pooling; pixels to rows."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, *, pooled: bool) -> None:
        affine = Affine(norm)
        weight = convolution.weight.double().flatten(1) * affine.scale.double().unsqueeze(1)
        self._weight, self._bias = _frozen(weight.t()), affine.shift
        self._pooled = pooled

    def forward(self, images: Tensor, tape: Tape) -> Rows:
        """Return rows (P, C) of ``images`` (B, 3, H, W)."""
        whole = Rows(images, len(images), *images.shape[-2:])
        rows = _empty_rows(tape, whole, self._weight.shape[1], pooled=self._pooled)
        codes = tape.take(*rows.values.shape, dtype=torch.uint8)
        tape.call("sanrobust_stem_forward", self._args(
            whole, pixels=images, out=rows.values, codes=codes))
        tape.write(self, whole, codes)
        return rows

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Return the gradient of the images, whose values are (B, 3, H, W)."""
        sides = tape.sides(self)
        pixels = Rows(torch.empty(grad.images, 3, *sides), grad.images, *sides)
        with tape.read(self) as (codes,):
            tape.call("sanrobust_stem_backward", self._args(
                pixels, grad=grad.values, codes=codes, grad_pixels=pixels.values))
        tape.buffers.give(grad.values)
        return pixels

    def _args(self, whole: Rows, **tensors: Tensor | None) -> StemArgs:
        return StemArgs(images=whole.images, height=whole.height, width=whole.width,
                        channels=self._weight.shape[1], pooled=int(self._pooled),
                        threads=torch.get_num_threads(), weight=self._weight,
                        bias=self._bias, **tensors)


class Transition:
    """Between stages: normalisation, ReLU and perhaps pooling, then a 1x1 convolution.

    Args:
        convolution: of the next stage, without a bias.
        norm: of the stage before; None when the stem has done it, and the pooling.
        pooled: whether to take the maximum over 2x2 pixels after ``norm``.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, *,
                 pooled: bool) -> None:
        self._product = Pointwise(convolution.weight.flatten(1))
        self._affine = Affine(norm) if norm is not None else None
        self._pooled = pooled and norm is not None

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Return rows of the next stage's width."""
        out = _empty_rows(tape, rows, self._product.outputs, pooled=self._pooled)
        signs = codes = None
        if self._pooled:
            codes = tape.take(out.pixels, self._product.inputs, dtype=torch.uint8)
        elif self._affine is not None:
            signs = take_signs(tape, out.pixels, self._product.inputs)
        self._product.forward(rows, out.values, tape, affine=self._affine, signs=signs,
                              pooled=self._pooled, codes=codes)
        tape.write(self, rows, signs, codes)
        tape.buffers.give(rows.values)
        return out

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Return the gradient of the rows of the stage before."""
        with tape.read(self) as (signs, codes):
            product = tape.buffers.take(grad.pixels, self._product.inputs)
            self._product.backward(grad.values, product, tape, signs=signs,
                                   affine=self._affine if signs is not None else None)
            tape.buffers.give(grad.values)
            result = Rows(product, grad.images, *tape.sides(self))
            return self._unpool(result, codes, tape) if self._pooled else result

    def _unpool(self, pooled: Rows, codes: Tensor | None, tape: Tape) -> Rows:
        assert self._affine is not None
        values = tape.buffers.take(pooled.pixels, self._product.inputs)
        tape.call("sanrobust_unpool", UnpoolArgs(
            images=pooled.images, height=pooled.height, width=pooled.width,
            channels=self._product.inputs, threads=torch.get_num_threads(),
            grad=pooled.values, codes=codes, scale=self._affine.scale, out=values))
        tape.buffers.give(pooled.values)
        return Rows(values, pooled.images, pooled.height, pooled.width)


class AttentionLayer(Protocol):
    """Attention on rows [query | key | value] with the normalisation and ReLU behind it."""

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Return the attended values (P, O) and keep ``rows``, perhaps the values too."""
        ...

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Return the gradient (P, 2R + O) of the rows."""
        ...


class Block:
    """A pre-activation residual block around attention; works in place.

    Args:
        norm: the normalisation in front.
        projections: makes the attention's rows.
        attention: the attention, with the normalisation behind it.
        output: the convolution behind that.
    """

    def __init__(self, norm: nn.BatchNorm2d, projections: Projections, attention: AttentionLayer,
                 output: nn.Conv2d) -> None:
        self._affine = Affine(norm)
        self._attention = attention
        self._projections = projections
        self._output = Pointwise(output.weight.flatten(1), output.bias)

    def forward(self, rows: Rows, tape: Tape) -> Rows:
        """Add the block's residual to ``rows`` (P, C)."""
        signs = take_signs(tape, rows.pixels, self._projections.inputs)
        projected = _empty_rows(tape, rows, self._projections.outputs)
        self._projections.forward(rows, projected.values, tape, affine=self._affine,
                                  signs=signs)
        attended = self._attention.forward(projected, tape)
        self._output.forward(attended, rows.values, tape, add=True)
        tape.give(attended.values)
        tape.write(self, rows, signs)
        return rows

    def backward(self, grad: Rows, tape: Tape) -> Rows:
        """Add the residual's share to ``grad`` (P, C)."""
        attended = _empty_rows(tape, grad, self._output.inputs)
        self._output.backward(grad.values, attended.values, tape)
        projected = self._attention.backward(attended, tape)
        with tape.read(self) as (signs,):
            self._projections.backward(projected.values, grad.values, tape, affine=self._affine,
                                       signs=signs, add=True)
        tape.buffers.give(projected.values)
        return grad


class Head:
    """Normalisation, ReLU, the mean over each image's pixels and a linear layer."""

    def __init__(self, norm: nn.BatchNorm2d, linear: nn.Linear) -> None:
        self._affine = Affine(norm)
        self._linear = Pointwise(linear.weight, linear.bias)

    def forward(self, rows: Rows, tape: Tape) -> Tensor:
        """Return the logits (B, K) of ``rows`` (P, C)."""
        signs = take_signs(tape, rows.pixels, self._linear.inputs)
        pooled = tape.buffers.take(rows.images, self._linear.inputs)
        tape.call("sanrobust_head_forward", self._args(
            rows, x=rows.values, pooled=pooled, signs=signs))
        logits = torch.empty(rows.images, self._linear.outputs)
        self._linear.forward(Rows(pooled, rows.images, 1, 1), logits, tape)
        tape.write(self, rows, signs)
        tape.buffers.give(rows.values, pooled)
        return logits

    def backward(self, grad: Tensor, tape: Tape) -> Rows:
        """Return the gradient of the rows for ``grad`` (B, K) of the logits, dense."""
        pooled = tape.buffers.take(len(grad), self._linear.inputs)
        self._linear.backward(grad, pooled, tape)
        like = Rows(grad, len(grad), *tape.sides(self))
        rows = _empty_rows(tape, like, self._linear.inputs)
        with tape.read(self) as (signs,):
            tape.call("sanrobust_head_backward", self._args(
                rows, grad=pooled, signs=signs, grad_x=rows.values))
        tape.buffers.give(pooled)
        return rows

    def _args(self, rows: Rows, **tensors: Tensor | None) -> HeadArgs:
        return HeadArgs(images=rows.images, pixels=rows.height * rows.width,
                        channels=self._linear.inputs, threads=torch.get_num_threads(),
                        scale=self._affine.scale, shift=self._affine.shift, **tensors)


def take_signs(tape: Tape, pixels: int, channels: int) -> Tensor | None:
    """Return memory for one bit per pixel and channel; None without a backward pass."""
    return tape.take(pixels, sign_words(channels), dtype=torch.int16)


def _empty_rows(tape: Tape, like: Rows, channels: int, *, pooled: bool = False) -> Rows:
    height, width = ((like.height // 2, like.width // 2) if pooled
                     else (like.height, like.width))
    values = tape.buffers.take(like.images * height * width, channels)
    return Rows(values, like.images, height, width)


def _frozen(values: Tensor) -> Tensor:
    return values.detach().to(torch.float32).contiguous().clone()


def _pack(weight: Tensor, inner: int, columns: int, *, transposed: bool) -> Tensor:
    """Bring the right factor (inner, columns) of a product into the order the kernel reads."""
    kernels = library.require()
    packed = torch.empty(kernels.packed_size(inner, columns))
    row_stride, column_stride = (1, inner) if transposed else (columns, 1)
    kernels.call("sanrobust_pack", PackArgs(
        inner=inner, columns=columns, b=weight, row_stride=row_stride,
        column_stride=column_stride, packed=packed))
    return packed
