"""A whole SAN by the native kernels: for evaluation, where weights are frozen and BN is fixed.

Normalisations are folded into their neighbours, the three projections of a block are one matrix
product, ReLUs, residual additions and poolings happen inside the products, and maps are rows of
pixels, channels last. The logits are the plain network's within float32 rounding. Every output is
summed in an order that neither the batch nor the number of threads changes.

Letters: B images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from sanrobust.design import DEFAULTS, AttentionConfig
from sanrobust.errors import BackendError, UsageError
from sanrobust.kernels import backends
from sanrobust.kernels.foldcache import Unchanging
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.native import library, pairwise_designs
from sanrobust.kernels.native.arguments import dense
from sanrobust.kernels.native.attention_rows import (PRODUCTS, LocalRows, PairwiseRows,
                                                     PatchwiseRows, ProductRows, fold_patchwise,
                                                     projections)
from sanrobust.kernels.native.deep_rows import DEEP, DeepRows
from sanrobust.kernels.native.layers import (AttentionLayer, Block, Head, Layer, Stem,
                                             Transition)
from sanrobust.kernels.native.tape import Buffers, Program, Tape
from sanrobust.kernels.plain import differentiates_forwards
from sanrobust.zoo.san import San, SanBlock, require_large_enough


class FoldedSan(nn.Module):
    """A frozen `San` in eval mode, folded; normalised images (B, 3, H, W) to logits (B, K).

    Gradients reach the images alone, and later changes of the network's weights are not seen.

    Args:
        network: what to fold; it is only read.

    Raises BackendError when `refusal` has a reason.
    """

    def __init__(self, network: San) -> None:
        super().__init__()
        reason = refusal(network, torch.device("cpu"))
        if reason is not None:
            raise BackendError("a network must be one that can be folded", seen=reason,
                               hint="use it as it is written, with --no-fold")
        config = network.config
        self._smallest = network.smallest_input
        self._stem = Stem(network.conv_in, network.bn_in, pooled=config.pools[0])
        self._layers = list(_layers(network))
        self._head = Head(_norm(network, len(config.layers) - 1), network.fc)
        self.classes = network.fc.out_features
        self.memory = _Memory()
        self.eval()

    @property
    def buffer_bytes(self) -> int:
        """Bytes that the batch last seen has taken."""
        return self.memory.buffers.bytes

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised ``images`` (B, 3, H, W), float32 on the CPU.

        Raises UsageError for images that are anything else, ModelError for images smaller than the
        attention footprints allow, and BackendError for forward-mode derivatives.
        """
        _require_images(images)
        if differentiates_forwards():
            raise BackendError("derivatives of a folded SAN must be taken in reverse mode",
                               seen="they are taken in forward mode",
                               hint="use the network as it is written, with --no-fold")
        require_large_enough(images, self._smallest)
        if not len(images):
            return images.flatten(1)[:, :1].expand(-1, self.classes)
        if torch.is_grad_enabled() and images.requires_grad:
            logits: Tensor = _Folded.apply(images, self)
            return logits
        return _Pass(self, images, keep=False).logits()

    def logits(self, images: Tensor, tape: Tape) -> Tensor:
        """Return the logits (B, K) of dense ``images``, leaving what `pixel_gradient` reads."""
        rows = self._stem.forward(images, tape)
        for layer in self._layers:
            rows = layer.forward(rows, tape)
        return self._head.forward(rows, tape)

    def pixel_gradient(self, grad: Tensor, tape: Tape) -> Tensor:
        """Return the gradient of the images (B, 3, H, W) for ``grad`` (B, K) of the logits."""
        rows = self._head.backward(grad, tape)
        for layer in reversed(self._layers):
            rows = layer.backward(rows, tape)
        return self._stem.backward(rows, tape).values


class _Memory:
    """A network's memory, for one pass at a time over batches of one shape.

    A copy of it is empty.

    Attributes:
        buffers: the memory.
        programs: the legs of passes that came all the way, by number of threads and `keep`.
    """

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._lent = Lock()
        self.buffers = Buffers()
        self.programs: dict[tuple[int, bool], list[Program]] = {}

    def lend(self, shape: tuple[int, ...]) -> _Memory:
        """Return this memory for a pass; while another pass has it, memory for this pass alone."""
        if not self._lent.acquire(blocking=False):
            return _Memory().lend(shape)
        if shape != self._shape:
            self._shape, self.buffers, self.programs = shape, Buffers(), {}
        return self

    def give_back(self) -> None:
        """Say that the pass is over."""
        self._lent.release()

    def __reduce__(self) -> tuple[type[_Memory], tuple[()]]:
        return _Memory, ()


class _Pass:
    """One batch on its way through a network: forward and, with ``keep``, back.

    Args:
        network: whose layers are asked when no pass of this kind has been recorded.
        images: the batch.
        keep: whether a leg back will follow.
    """

    def __init__(self, network: FoldedSan, images: Tensor, *, keep: bool) -> None:
        self._network, self._keep = network, keep
        self._pixels = dense(images.detach())
        self._memory: _Memory | None = network.memory.lend(tuple(images.shape))
        self._tape = Tape(self._memory.buffers, keep=keep)
        self._kind = torch.get_num_threads(), keep
        self._known = iter(self._memory.programs.get(self._kind, ()))
        self._recorded: list[Program] = []

    def logits(self) -> Tensor:
        """Return the logits (B, K)."""
        logits = self._leg(self._network.logits, self._pixels, len(self._pixels),
                           self._network.classes)
        if not self._keep:
            self._end()
        return logits

    def pixel_gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient of the images (B, 3, H, W) for ``grad`` (B, K) of the logits."""
        pixels = self._leg(self._network.pixel_gradient, dense(grad), *self._pixels.shape)
        self._end()
        return pixels

    def _leg(self, layers: Callable[[Tensor, Tape], Tensor], given: Tensor,
             *shape: int) -> Tensor:
        """Make a leg of the pass as it was recorded, or by the ``layers``, and record it."""
        program = next(self._known, None)
        if program is not None:
            result = torch.empty(shape)
            program.run(given, result)
            return result
        result = layers(given, self._tape)
        self._recorded.append(self._tape.program(given, result))
        return result

    def _end(self) -> None:
        assert self._memory is not None
        if self._recorded:
            self._memory.programs[self._kind] = self._recorded
        self._release()

    def _release(self) -> None:
        if self._memory is not None:
            self._memory.give_back()
            self._memory = None

    def __del__(self) -> None:
        self._release()


class _Folded(torch.autograd.Function):
    """The folded network as one step of autograd."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, network: FoldedSan) -> Tensor:
        passed = _Pass(network, images, keep=True)
        ctx.network, ctx.passed = network, passed
        ctx.save_for_backward(images)
        return passed.logits()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        passed: _Pass | None = ctx.passed
        ctx.passed = None
        if passed is None:  # The graph was retained, and a first pass back has used up the memory.
            images, = ctx.saved_tensors
            passed = _Pass(ctx.network, images, keep=True)
            passed.logits()
        return passed.pixel_gradient(grad), None


class UnchangingSan(nn.Module):
    """A frozen `San` whose mappings are folded once; later changes of them are not seen."""

    def __init__(self, network: San) -> None:
        super().__init__()
        self.network = network
        self._mappings = Unchanging()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised ``images`` (B, 3, H, W)."""
        with self._mappings.assumed():
            logits: Tensor = self.network(images)
        return logits


def refusal(network: nn.Module, device: torch.device) -> str | None:
    """Return why ``network`` cannot be folded for ``device``, as a clause; None when it can."""
    if not isinstance(network, San):
        return "it is no SAN"
    unfused = _unfused(network.config.design)
    if unfused is not None:
        return unfused
    if network.training:
        return "it is in train mode, where normalisation depends on the batch"
    if device.type != "cpu":
        return f"the folded network runs on the CPU, not on {device.type}"
    for each in (*network.parameters(), *network.buffers()):
        if each.device.type != "cpu":
            return f"its weights are on {each.device.type}"
        if each.is_floating_point() and each.dtype != torch.float32:
            return f"its weights are {each.dtype}, not float32"
    if backends.requested() not in (backends.AUTO, "native"):
        return f"backend {backends.requested()} was asked for"
    return library.refusal()


def _unfused(design: AttentionConfig) -> str | None:
    """Return why no fused kernels compute a design; None: they do."""
    if design.attention == "pairwise":
        return pairwise_designs.refusal(design)
    if design.attention in ("scalar", "sasa"):
        return "its queries have absolute positions" if design.position == "absolute" else None
    released = DEFAULTS[design.attention]
    deep = design.mapping == DEEP and design.relation not in PRODUCTS
    unlike = [f"{each.name}={getattr(design, each.name)}" for each in fields(AttentionConfig)
              if each.name != "transforms" and not (deep and each.name == "mapping")
              and getattr(design, each.name) not in (getattr(released, each.name), *PRODUCTS)]
    if unlike:
        return f"its {design.attention} attention has no fused kernels: {', '.join(unlike)}"
    return None


def _require_images(images: Tensor) -> None:
    """Raise UsageError unless the kernels can read ``images`` as they are."""
    if not isinstance(images, Tensor):
        raise UsageError("a folded SAN must be given a tensor of images",
                         seen=f"it is given a {type(images).__name__}",
                         hint="stack them into (B, 3, H, W)")
    if (images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.float32
            or images.device.type != "cpu" or images.layout != torch.strided):
        raise UsageError(
            "a folded SAN must be given float32 images (B, 3, H, W) on the CPU",
            seen=f"they are {images.dtype} {tuple(images.shape)} on {images.device}",
            hint="convert them with images.float().cpu(), or use the network as it is written")


def _layers(network: San) -> Iterator[Layer]:
    norm = None
    for stage, pooled in enumerate(network.config.pools):
        convolution = network.get_submodule(f"conv{stage}")
        assert isinstance(convolution, nn.Conv2d)
        yield Transition(convolution, norm, pooled=pooled)
        for block in network.get_submodule(f"layer{stage}").children():
            assert isinstance(block, SanBlock)
            sam = block.sam
            assert isinstance(sam, (PairwiseAttention, PatchwiseAttention, LocalAttention))
            yield Block(block.bn1, projections(sam), _rows(sam, block.bn2), block.conv)
        norm = _norm(network, stage)


def _rows(sam: PairwiseAttention | PatchwiseAttention | LocalAttention,
          norm: nn.BatchNorm2d) -> AttentionLayer:
    if isinstance(sam, LocalAttention):
        return LocalRows(sam, norm)
    if isinstance(sam, PairwiseAttention):
        return PairwiseRows(sam, norm)
    if sam.design.relation in PRODUCTS:
        return ProductRows(sam, norm)
    if sam.design.mapping == DEEP:
        return DeepRows(sam, fold_patchwise(sam), norm)
    return PatchwiseRows(sam, norm)


def _norm(network: San, stage: int) -> nn.BatchNorm2d:
    norm = network.get_submodule(f"bn{stage}")
    assert isinstance(norm, nn.BatchNorm2d)
    return norm
