"""Counting one network with torch's own counter, stage by stage.

The counter sees every operator that runs; hooks on the network's parts say where. On the meta
device nothing is computed and nothing but shapes is needed. Where values are needed, torch's fused
paths are switched off, which would hide products from the counter: both ways count the same.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sanrobust.complexity.conventions import POOLS, Formula, Rules, rules
from sanrobust.complexity.settings import Convention
from sanrobust.complexity.uncounted import Uncounted, operator_name
from sanrobust.kernels.mappings import RelationLayer
from sanrobust.kernels.pointwise import PointwiseConv2d
from sanrobust.zoo.san import San

STEM, HEAD, OTHER = "stem", "head", "other"


@dataclass(frozen=True)
class StageCost:
    """The share of one stage.

    Attributes:
        name: ``stem``, ``stage N`` and ``head``, or a part's own name.
        output: shape of what leaves it, without the batch; None where no part gave a tensor.
        parameters: trainable values first registered in it.
        flops: in the convention of the count.
    """

    name: str
    output: tuple[int, ...] | None
    parameters: int
    flops: int


@dataclass(frozen=True)
class Cost:
    """What a network costs for one image.

    Attributes:
        parameters: trainable values.
        flops: of one forward pass, in the convention counted.
        stages: the shares, which sum up to both.
        uncounted: names of the operators that computed something and counted nothing.
    """

    parameters: int
    flops: int
    stages: tuple[StageCost, ...]
    uncounted: tuple[str, ...] = ()


def count(network: nn.Module, *, img_size: int | tuple[int, int], channels: int = 3,
          convention: Convention = "paper") -> Cost:
    """Count ``network`` in eval mode for one image (1, channels, height, width).

    ``img_size`` is its side, or height and width, in pixels. It runs where its parameters are, on
    whatever backend computes there; every backend counts the same. What happens between the
    network's parts belongs to the part before it, a pooling to the part behind it.
    """
    ledger = _Ledger(network, rules(convention))
    counter = FlopCounterMode(display=False)
    counter.flop_registry = {operator: ledger.recorded(operator, formula)
                             for operator, formula in ledger.rules.formulas.items()}
    first = next(network.parameters(), torch.empty(0))
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    images = torch.zeros(1, channels, *sides, device=first.device, dtype=first.dtype)
    uncounted = Uncounted(ledger.has_formula)
    with _evaluating(network), torch.no_grad(), ledger.listening(), _unfused(), uncounted, counter:
        network(images)
    return Cost(parameters=sum(each.numel() for each in network.parameters()),
                flops=counter.get_total_flops() + ledger.unseen, stages=ledger.stages(),
                uncounted=tuple(sorted(uncounted.names | ledger.refused)))


@contextmanager
def _unfused() -> Iterator[None]:
    """Have recurrent and attention layers computed by operators that have formulas."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on switches of other devices, set back on the way
            with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, before in training.items():
            module.training = before


class _Ledger:
    """Who did how much: filled by the counter's formulas, told by hooks where the pass is.

    Attributes:
        rules: what counts.
        unseen: what the counter itself did not see, the declared cost of relations.
        refused: names of operators with a formula that the convention does not count here.
    """

    def __init__(self, network: nn.Module, counted: Rules) -> None:
        self.rules = counted
        self.unseen = 0
        self.refused: set[str] = set()
        self._network = network
        self._stage_of = stage_names(network)
        names = dict.fromkeys(self._stage_of.values()) or {OTHER: None}
        self._flops = dict.fromkeys(names, 0)
        self._outputs: dict[str, tuple[int, ...]] = {}
        self._inside: str | None = None
        self._last = next(iter(names))
        self._waiting = 0
        self._in_layer = self._in_relation = False

    def recorded(self, operator: Any, formula: Formula) -> Formula:
        """Return ``formula`` such that what it counts is also entered here."""
        def counted(*args: Any, **kwargs: Any) -> int:
            if self._in_relation:
                return 0
            if operator in self.rules.layer_products and not self._in_layer:
                self.refused.add(operator_name(operator))
                return 0
            flops = formula(*args, **kwargs)
            self._enter(flops, ahead=operator in POOLS)
            return flops
        return counted

    def has_formula(self, operator: Any) -> bool:
        """Return whether an operator counts, by itself or within a relation."""
        return self._in_relation or operator in self.rules.formulas

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Follow the forward pass through the network's parts."""
        handles = []
        for name, part in _parts(self._network):
            stage = self._stage_of[name]
            handles += [part.register_forward_pre_hook(self._arriving(stage)),
                        part.register_forward_hook(self._leaving(stage))]
        for module in self._network.modules():
            if isinstance(module, PointwiseConv2d):
                handles += [module.register_forward_pre_hook(self._layer(True)),
                            module.register_forward_hook(self._layer(False))]
            elif isinstance(module, RelationLayer) and self.rules.relations:
                handles += [module.register_forward_pre_hook(self._comparing),
                            module.register_forward_hook(self._compared)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._flops[self._last] += self._waiting

    def stages(self) -> tuple[StageCost, ...]:
        """Return what each stage cost, in order, without those that cost nothing."""
        parameters = dict.fromkeys(self._flops, 0)
        for name, parameter in self._network.named_parameters():
            stage = self._stage_of.get(name.partition(".")[0], OTHER)
            parameters[stage] = parameters.get(stage, 0) + parameter.numel()
        return tuple(StageCost(stage, self._outputs.get(stage), own, self._flops.get(stage, 0))
                     for stage, own in parameters.items() if own or self._flops.get(stage, 0))

    def _enter(self, flops: int, *, ahead: bool) -> None:
        if self._inside is None and ahead:
            self._waiting += flops
        else:
            self._flops[self._inside or self._last] += flops

    def _arriving(self, stage: str) -> Any:
        def hook(*_: object) -> None:
            self._flops[stage] += self._waiting
            self._waiting, self._inside, self._last = 0, stage, stage
        return hook

    def _leaving(self, stage: str) -> Any:
        def hook(module: nn.Module, args: object, output: object) -> None:
            self._inside = None
            if isinstance(output, Tensor):
                self._outputs[stage] = tuple(output.shape[1:])
        return hook

    def _comparing(self, module: nn.Module, args: object) -> None:
        self._in_relation = True

    def _compared(self, module: nn.Module, maps: tuple[Tensor, ...], output: object) -> None:
        assert isinstance(module, RelationLayer)
        self._in_relation = False
        images, _, height, width = maps[0].shape
        flops = module.relation.counted(module.sizes) * images * height * width
        self.unseen += flops
        self._enter(flops, ahead=False)

    def _layer(self, inside: bool) -> Any:
        def hook(*_: object) -> None:
            self._in_layer = inside
        return hook


def stage_names(network: nn.Module) -> dict[str, str]:
    """Return the stage of each of the network's parts by the part's name.

    A SAN's stages are those of its configuration, from 0; elsewhere ``layerN`` is stage N, what
    comes before the first of them the stem and what comes after the head. A network of another
    build has its parts as stages.
    """
    names = [name for name, _ in network.named_children()]
    if isinstance(network, San):
        return {name: _san_stage(name) for name in names}
    layers = [place for place, name in enumerate(names) if re.fullmatch(r"layer\d+", name)]
    if not layers:
        return {name: name for name in names}
    return {name: STEM if place < layers[0] else HEAD if place > layers[-1]
            else f"stage {name.removeprefix('layer')}" for place, name in enumerate(names)}


def _san_stage(name: str) -> str:
    matched = re.fullmatch(r"(?:conv|bn|layer)(\d+)", name)
    return f"stage {matched[1]}" if matched else HEAD if name == "fc" else STEM


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what the network calls itself: its children, and the items of plain containers."""
    for name, child in network.named_children():
        containers = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        for part in child.children() if containers else (child,):
            yield name, part
