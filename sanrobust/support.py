"""Which kernels compute the operators of the design space here, seen from what a network calls.

Each network in its small form makes one attack step and one training step while the operators it
calls are listed; nothing is declared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sanrobust import paper
from sanrobust.kernels import reference
from sanrobust.zoo import folded
from sanrobust.zoo.build import build
from sanrobust.zoo.forms import small_config

NETWORK, FUSED, ELEMENTARY, TORCH, NONE = "network", "fused", "elementary", "torch", "-"
MEANINGS = {
    NETWORK: "kernels for the whole network",
    FUSED: "kernels for all of an attention",
    ELEMENTARY: "kernels for its sums and differences, the rest by torch",
    TORCH: "torch alone",
    NONE: "not at all",
}
"""How an operator can be computed, the fastest first."""
ATTACK, TRAINING = "attack", "training"
STEPS = (ATTACK, TRAINING)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NAMESPACE, _FUSED = "sanrobust", (
    "pairwise_attention", "patchwise_attention", "local_attention",
    "learned_pairwise", "pair_moments", "patch_hidden", "patch_weighted")
_SUM = "patch_weighted"  # of any patchwise relation; alone it is not all of an attention
_BESIDE = ("norm_relu", "learned_stem")  # between attention layers too
_CLASSES, _SIDE = 3, 32
_WIDTH = max(map(len, MEANINGS)) + 2


@dataclass(frozen=True)
class Support:
    """How one network is computed in one element type.

    Attributes:
        model: its name.
        step: ``attack``, forward and back to the pixels in eval mode, or ``training``, back to all
            parameters with batch statistics.
        device, dtype: as torch spells them.
        by: a word of `MEANINGS`.
    """

    model: str
    step: str
    device: str
    dtype: str
    by: str


def networks() -> tuple[str, ...]:
    """Return a network of each operator in the paper's Tables 4 to 8 and SASA, and a scalar one."""
    table = paper.complexity()
    named = [*table[table["table"] != "3"]["model"], "san10-scalar"]
    found: dict[object, str] = {}
    for name in named:
        config: Any = small_config(name, _CLASSES)
        if hasattr(config, "design"):
            found.setdefault((config.kind, config.design, getattr(config, "stem", "")), name)
    return tuple(found.values())


def supported(models: Sequence[str], devices: Sequence[torch.device],
              dtypes: Sequence[torch.dtype] = DTYPES,
              steps: Sequence[str] = STEPS) -> Iterator[Support]:
    """Yield how each network is computed; backends asked for are asked here too.

    Raises UnknownNameError for a name that is no architecture's.
    """
    for name in models:
        config: Any = small_config(name, _CLASSES)
        config = replace(config, layers=(1,) * len(config.layers))  # all blocks are alike
        for device, dtype, step in itertools.product(devices, dtypes, steps):
            network = build(config).to(device, dtype)
            by = _computed_by(network, device, dtype, is_training=step == TRAINING)
            yield Support(name, step, str(device), str(dtype).removeprefix("torch."), by)


class _Calls(TorchDispatchMode):
    """Lists which of our operators are called of a backend that has kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == _NAMESPACE and reference.NAME not in args:
            self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def _computed_by(network: nn.Module, device: torch.device, dtype: torch.dtype, *,
                 is_training: bool) -> str:
    network.train(is_training).requires_grad_(is_training)
    if not is_training and folded.refusal(network, device) is None:
        return NETWORK
    images = torch.rand(2, 3, _SIDE, _SIDE, device=device, dtype=dtype,
                        requires_grad=not is_training)
    try:
        with _Calls() as calls:
            loss: Tensor = network(images).float().square().sum()
            torch.autograd.backward(loss)
    except NotImplementedError:  # torch lacks an element type here and there
        return NONE
    attention = [name for name in calls.names if not name.startswith(_BESIDE)]
    if not attention:
        return TORCH
    fused = [name for name in attention if name.startswith(_FUSED)]
    whole = len(fused) == len(attention) and any(not name.startswith(_SUM) for name in fused)
    return FUSED if whole else ELEMENTARY


def shown(rows: Sequence[Support]) -> list[str]:
    """Return the lines of a table, a part for each device and step, and what its words mean."""
    width = max(len(each) for row in rows for each in (row.model, _heading(row))) + 2
    lines = []
    for heading, part in itertools.groupby(
            sorted(rows, key=lambda row: (row.device, STEPS.index(row.step))), _heading):
        models: dict[str, dict[str, str]] = {}
        for row in part:
            models.setdefault(row.model, {})[row.dtype] = row.by
        names = list(next(iter(models.values())))
        lines += [f"{heading:<{width}}" + "".join(
            f"{name:<{_WIDTH}}" for name in names).rstrip()]
        lines += [f"{model:<{width}}" + "".join(
            f"{found[name]:<{_WIDTH}}" for name in names).rstrip()
            for model, found in models.items()] + [""]
    lines.append("Seen of what small networks call:")
    return [*lines, *(f"{word:<{_WIDTH}}{meaning}" for word, meaning in MEANINGS.items())]


def _heading(row: Support) -> str:
    return f"{row.step} step, {row.device}"
