"""Convolution networks with frozen weights: batch norms inside their convolutions, channels last.

So are ResNets whose convolutions are scalar attention (SASA), on the CPU.

In eval mode a batch norm is a scale and a shift of each channel, which the convolution before it
can make: the weights are folded in float64 and rounded once. Which convolution feeds which norm is
seen in a pass over random pixels, so that every network's own forward stays as it is; the folded
network must then give the same logits for these pixels, but for rounding.

Letters: B images, H and W pixels, K classes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sanrobust.errors import first_line
from sanrobust.kernels.folding import affine
from sanrobust.kernels.hooks import HOOKS
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.modules import VectorAttention
from sanrobust.kernels.native.attention_rows import scalar_refusal
from sanrobust.kernels.native.channels_last import PointwiseLayer, ScalarLayer
from sanrobust.steady import pass_size
from sanrobust.trouble import out_of_memory
from sanrobust.zoo.code import origin
from sanrobust.zoo.digest import LIBRARIES, MODULE_ATTRIBUTES

ROUNDING = 2e-5
"""How far logits may move, as a part of their norm.

Folding moved them by 1e-7 to 2e-6 in networks of torchvision and timm of 18 to 200 layers; a norm
folded wrongly moves them by more than 1e-3.
"""
_PROBED = 2

Pair = tuple[str, str]  # names of a convolution and of the norm behind it


class Rewritten(NamedTuple):
    """What a network was made into.

    Attributes:
        network: normalised images (B, 3, H, W) to logits (B, K); the one given where it stays.
        computed_by: what was done, in words; empty where nothing was.
        reason: why nothing was, as a clause; None where something was.
    """

    network: nn.Module
    computed_by: str
    reason: str | None


class ChannelsLast(nn.Module):
    """A network in eval mode that is given its images channels last, and gives gradients back as
    planes.

    Args:
        network: its weights are turned too.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised ``images`` (B, 3, H, W)."""
        logits: Tensor = self.network(_Turned.apply(images))
        return logits


class _Turned(torch.autograd.Function):
    """Images channels last, their gradient in planes, as attacks have their images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.to(memory_format=torch.channels_last, copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


class FilledLinear(nn.Module):
    """A linear layer whose input (B, C) is filled up with zeros to at least ``rows``.

    Libraries sum in another order where rows are few. So no pass that is smaller than a full one
    differs from it here, and none does at all where all convolutions sum alike.

    Args:
        linear: whose parameters it has.
        rows: of a full pass.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.linear = linear
        self.rows = rows

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, K)."""
        missing = self.rows - len(features)
        if features.ndim != 2 or missing <= 0:
            return self.linear(features)  # type: ignore[no-any-return]
        filled = nn.functional.pad(features, (0, 0, 0, missing))
        return self.linear(filled)[:len(features)]  # type: ignore[no-any-return]


def rewrite(network: nn.Module, img_size: int, device: torch.device, *, fold: bool,
            channels_last: bool) -> Rewritten:
    """Return a network with its norms folded, channels last, or as it is with the reason.

    The network given is only read, and shares no memory with one that is returned in its place.

    Args:
        network: in eval mode, on ``device``, its weights frozen.
        img_size: side of its images in pixels.
        device: where it computes.
        fold: whether norms are to be folded.
        channels_last: whether it is to be computed channels last.
    """
    on_rows = fold and channels_last and device.type == "cpu"
    reason = refusal(network, on_rows=on_rows)
    if reason is not None:
        return Rewritten(network, "", reason)
    try:
        with torch.no_grad():
            return _rewritten(network, _images(img_size, device), fold, channels_last)
    # A library's network may stop anywhere in another form than its own.
    except Exception as error:
        if out_of_memory(error):
            return Rewritten(network, "", "two copies of it do not fit into memory")
        return Rewritten(network, "", f"it stopped with: {first_line(error)}")


def refusal(network: nn.Module, *, on_rows: bool = False) -> str | None:
    """Return why a network must stay as it is written, as a clause; None when it may change.

    Args:
        network: is only read.
        on_rows: whether scalar attention may go onto rows, see `ScalarLayer`.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return "it has no batch norms"
    for module in network.modules():
        reason = _attention_refusal(module, on_rows)
        if reason is not None:
            return reason
    if any(module.training for module in network.modules()):
        return "it is in train mode, where normalisation depends on the batch"
    for name, module in network.named_modules():
        foreign = _foreign(module)
        if foreign is not None:
            return (f"its code is not all torch's, torchvision's, timm's or ours: {foreign} in "
                    f"{name or 'the network itself'}")
    others = {each.dtype for each in network.parameters()} - {torch.float32}
    return f"its weights are {others.pop()}, not float32" if others else None


def _attention_refusal(module: nn.Module, on_rows: bool) -> str | None:
    """Return why a module is attention that must stay; None for any other module."""
    stays = "it has attention in place of convolutions"
    if isinstance(module, LocalAttention) and on_rows:
        reason = scalar_refusal(module)
        return None if reason is None else f"{stays}, and {reason}"
    return stays if isinstance(module, (LocalAttention, VectorAttention)) else None


def _foreign(module: nn.Module) -> str | None:
    """Return what of a module is of unknown code: its class, a hook, or a function put on it."""
    kind = type(module)
    if not _is_known(kind) or isinstance(module, torch.jit.ScriptModule):
        return f"{kind.__name__} of {kind.__module__}"
    if any(getattr(module, hooks, None) for hooks in HOOKS):
        return "a hook"
    for name, value in vars(module).items():
        if name not in MODULE_ATTRIBUTES and callable(value) and not isinstance(value, nn.Module) \
                and not _is_known(value):
            return f"a function {name}"
    return None


def _is_known(value: object) -> bool:
    """Return whether a class or function is of a library whose networks are known; some are C's."""
    top = origin(getattr(value, "func", value)).partition(".")[0]
    return top in (*LIBRARIES, "functools", "builtins", "_operator", "")


def _images(img_size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_PROBED, 3, img_size, img_size, generator=generator).to(device)


def _rewritten(network: nn.Module, images: Tensor, fold: bool, channels_last: bool) -> Rewritten:
    plain, pairs = _watched(network, images)
    if not pairs:
        return Rewritten(network, "", "no batch norm is right behind a convolution")
    words = []
    other = deepcopy(network)
    if fold:
        for convolution, norm in pairs:
            _fold(other, convolution, norm)
        words.append(f"{len(pairs)} batch norms folded")
    if channels_last:
        if any(isinstance(module, LocalAttention) for module in other.modules()):
            _put_on_rows(other)
            words.append("attention on rows")
        other = ChannelsLast(other)
        words.append("channels last")
    rows = pass_size(images.shape[-1], images.device)
    if rows is not None:
        for name, module in list(other.named_modules()):
            if type(module) is nn.Linear:
                _put(other, name, FilledLinear(module, rows))
    error, size = float((other.eval()(images) - plain).norm()), float(plain.norm())
    if not error <= ROUNDING * size:  # nor where either is no number
        return Rewritten(network, "", f"its logits, of norm {size:.2g}, would move by {error:.2g}")
    return Rewritten(other.requires_grad_(False), ", ".join(words), None)


def _put_on_rows(network: nn.Module) -> None:
    """Give scalar attention, and the products beside it, their form for maps channels last."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LocalAttention):
            _put(network, name, ScalarLayer(module))
    for name, module in list(network.named_modules()):
        if type(module) is nn.Conv2d and module.groups == 1 and module.padding == (0, 0) \
                and module.kernel_size == module.stride == (1, 1):
            _put(network, name, PointwiseLayer(module))


def _watched(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Pair]]:
    """Return the logits of images and which convolution's result goes into which norm unchanged."""
    made: dict[int, tuple[str, Tensor, int]] = {}
    found: list[Pair] = []
    calls: Counter[str] = Counter()

    def after(name: str, module: nn.Module, given: object, result: Tensor) -> None:
        calls[name] += 1
        # The tensor is kept, so that no other one gets its id.
        made[id(result)] = name, result, result._version

    def before(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        calls[name] += 1
        convolution, result, version = made.get(id(given[0]), ("", given[0], 0))
        if convolution and result._version == version:
            found.append((convolution, name))

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if type(module) in (nn.Conv2d, *_of_timm("Conv2dSame")):
                hooks.callback(module.register_forward_hook(partial(after, name)).remove)
            elif _is_folded(module):
                hooks.callback(module.register_forward_pre_hook(partial(before, name)).remove)
        logits: Tensor = network(images)
    uses = Counter(convolution for convolution, _ in found)
    return logits, [(convolution, norm) for convolution, norm in found
                    if calls[convolution] == calls[norm] == uses[convolution] == 1]


def _is_folded(module: nn.Module) -> bool:
    return (isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
            and type(module) in (nn.BatchNorm2d, *_of_timm("BatchNormAct2d")))


def _of_timm(name: str) -> Iterator[type]:
    """Yield a class of timm's layers, where timm is loaded and has it."""
    found = getattr(sys.modules.get("timm.layers"), name, None)
    if isinstance(found, type):
        yield found


def _fold(network: nn.Module, convolution_name: str, norm_name: str) -> None:
    """Give a convolution the scale and shift of the norm behind it, and take that one out."""
    convolution, norm = map(network.get_submodule, (convolution_name, norm_name))
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    scale, shift = affine(norm)
    weight = convolution.weight.double() * scale.view(-1, 1, 1, 1)
    if convolution.bias is not None:
        shift = shift + convolution.bias.double() * scale
    convolution.weight, convolution.bias = (nn.Parameter(each.float(), requires_grad=False)
                                            for each in (weight, shift))
    # Those of timm end with an activation.
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    _put(network, norm_name, nn.Sequential(*rest) if rest else nn.Identity())


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    place, _, own = name.rpartition(".")
    setattr(network.get_submodule(place), own, module)
