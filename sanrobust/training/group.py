"""The processes that train one network together, as torchrun starts them.

Batch statistics and gradients are those of the whole pass: the weights are those that one process
makes of the same batches, to rounding. Letters: B images of one process, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sanrobust.errors import MachineError, UsageError, first_line
from sanrobust.training.feed import Share


@dataclass(frozen=True)
class Group:
    """This process among those that train together.

    Attributes:
        share: which part of every pass it computes.
    """

    share: Share = Share()

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes files and speaks."""
        return self.share.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.share.count == 1

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return values if self.is_alone else _over_all(values)

    def joined(self, model: nn.Module) -> nn.Module:
        """Return the model with statistics of batch normalisation over all processes."""
        return model if self.is_alone else _converted(model)

    def average_gradients(self, model: nn.Module) -> None:
        """Sum the gradients of all processes, whose losses are parts of one."""
        if self.is_alone:
            return
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        parts = torch.split(flat, [grad.numel() for grad in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))

    def wait(self) -> None:
        """Wait until every process is here."""
        if not self.is_alone:
            dist.barrier()


@contextmanager
def group(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started with this one; alone without it.

    Raises MachineError when another one has died.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Group()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(Share(dist.get_rank(), count))
    except (dist.DistError, RuntimeError) as error:
        if not _is_of_others(error):
            raise
        raise MachineError("every process of a training must stay alive",
                           seen=f"another one is gone ({first_line(error)})",
                           hint="type the same command again, which goes on from the last state"
                           ) from error
    finally:
        dist.destroy_process_group()


def require_equal_shares(batch: int, share: Share, option: str, *, pairs: bool = False) -> None:
    """Raise UsageError unless every process gets as many images, or pairs, of a pass."""
    parts = share.count * 2 if pairs and share.count > 1 else share.count
    if batch % parts:
        words = f"the {share.count} processes" if parts == share.count else \
            f"twice the {share.count} processes where images are mixed in pairs"
        raise UsageError(f"{option} must be a multiple of {words}", seen=f"it is {batch}",
                         hint=f"type for example {option} {-(-batch // parts) * parts}")


def _is_of_others(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("connection", "peer", "gloo", "nccl", "timed out"))


def _converted(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        kind = type(module)
        module.__class__ = type(f"Synchronised{kind.__name__}", (_SynchronisedNorm, kind), {})
    return module


class _SynchronisedNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the images of all processes, on any device.

    torch's own is for GPUs alone.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the normalised features (B, C, ...)."""
        if not self.training:
            return super().forward(features)
        axes, channels = [0, *range(2, features.ndim)], features.shape[1]
        shape = (1, -1, *[1] * (features.ndim - 2))
        wide = features.float()
        count = wide.new_tensor([float(features.numel() // channels)])
        sums = _Summed.apply(torch.cat([wide.sum(axes), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = wide - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(axes)) / total
        self._move(mean.detach(), variance.detach() * total / (total - 1))
        scale = (variance + self.eps).rsqrt()
        normalised: Tensor = (centred * (scale * self.weight).view(shape) + self.bias.view(shape)
                              if self.affine else centred * scale.view(shape))
        return normalised.to(features.dtype)

    def _move(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = (1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Summed(torch.autograd.Function):
    """The sum over all processes, of values and of the gradients that come back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the sum."""
        return _over_all(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the sum of what came back to each process."""
        return _over_all(gradient)


def _over_all(values: Tensor) -> Tensor:
    summed = values.clone()
    dist.all_reduce(summed)
    return summed
