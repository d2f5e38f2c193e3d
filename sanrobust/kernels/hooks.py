"""Whether a module does what its class says, and nobody watches: what fused kernels must know."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

from sanrobust.kernels.pointwise import PointwiseConv2d

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_altered(module: nn.Module) -> bool:
    """Whether ``module`` has a hook, or a ``forward`` of its own."""
    return "forward" in vars(module) or any(getattr(module, hooks) for hooks in HOOKS)


def is_watched(module: nn.Module) -> bool:
    """Whether ``module`` is altered, or every module has a hook."""
    everywhere = (getattr(torch.nn.modules.module, f"_global{hooks}") for hooks in HOOKS)
    return any(everywhere) or is_altered(module)


def is_linear(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether the class of ``module`` is a convolution's, and it is one of each pixel by itself."""
    return (isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, PointwiseConv2d)
            and module.kernel_size == module.stride == (1, 1) and module.groups == 1
            and module.padding == (0, 0))


def is_pointwise(module: nn.Module) -> bool:
    """Whether ``module`` `is_linear`, and unwatched."""
    return is_linear(module) and not is_watched(module)
