"""Whether somebody watches what passes through a module, which fused kernels would not show."""

from __future__ import annotations

import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_watched(module: nn.Module) -> bool:
    """Whether ``module``, or every module, has a hook."""
    everywhere = (getattr(torch.nn.modules.module, f"_global{hooks}") for hooks in HOOKS)
    return any(everywhere) or any(getattr(module, hooks) for hooks in HOOKS)
