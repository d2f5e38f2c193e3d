"""Whether a module does what its class says, and nobody watches: what fused kernels must know."""

from __future__ import annotations

import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_altered(module: nn.Module) -> bool:
    """Whether ``module`` has a hook, or a ``forward`` of its own."""
    return "forward" in vars(module) or any(getattr(module, hooks) for hooks in HOOKS)


def is_watched(module: nn.Module) -> bool:
    """Whether ``module`` is altered, or every module has a hook."""
    everywhere = (getattr(torch.nn.modules.module, f"_global{hooks}") for hooks in HOOKS)
    return any(everywhere) or is_altered(module)


def is_pointwise(module: nn.Module) -> bool:
    """Whether ``module`` is torch's own convolution of each pixel by itself, and unwatched."""
    return (type(module) is nn.Conv2d
            and module.kernel_size == module.stride == (1, 1) and module.groups == 1
            and module.padding == (0, 0) and not is_watched(module))
