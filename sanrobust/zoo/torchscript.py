"""What a traced or scripted network computes with, as values that a digest can follow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Counters that keep classes of one name apart, and the line of the source behind each operation.
_ACCIDENTAL = re.compile(r"___torch_mangle_\d+\.|\s+#.*$", re.MULTILINE)


def program(module: nn.Module) -> object:
    """Return the operations of a module that carries them, and what it holds besides its weights.

    Such are modules of ``torch.jit``, ``torch.fx`` and ``torch.export``; an empty text for others
    and for those that are only called through another.
    """
    if not isinstance(module, torch.jit.ScriptModule):
        text = getattr(module, "code", "")
        return text if isinstance(text, str) else ""
    try:
        graph: Any = module.inlined_graph
    except RuntimeError:  # no forward of its own
        return ""
    constants = [node.output().toIValue() for node in graph.findAllNodes("prim::Constant", True)]
    tensors = [value for value in constants if isinstance(value, Tensor)]
    read = sorted({node.s("name") for node in graph.findAllNodes("prim::GetAttr", True)})
    return _ACCIDENTAL.sub("", str(graph)), tensors, [*_attributes(module, read)]


def _attributes(module: torch.jit.ScriptModule, names: list[str]) -> Iterator[object]:
    """Yield paths and values of the attributes that are neither weights nor modules."""
    for path, part in module.named_modules():
        state = {key for kept in (part._parameters, part._buffers, part._modules)
                 for key, _ in kept.items()}
        for name in names:
            if name not in state and part._c.hasattr(name):
                yield f"{path}.{name}", part._c.getattr(name)
