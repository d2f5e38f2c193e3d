"""Families of CUDA kernels against each other, at the shapes of a SAN: ``make gpu-check``.

``python tests/measure_cuda.py OUT.csv`` times every family that takes a shape, by name, alternated
with the others on the same maps: ``narrow`` (one thread for a pixel), ``tuned`` (one block for a
tile) and ``general`` (scratch in device memory). Gradients are those of query, key and value. The
first family of a shape is what calls get; ``ratio`` is a family's time over that one's. ``error``
is the largest difference to the general family in float64, over the largest value there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from cuda_cases import Case, make
from torch import Tensor

from sanrobust.bench.machine import seconds_of
from sanrobust.kernels.cuda import compiler
from sanrobust.kernels.cuda.general import GeneralPairwise, GeneralPatchwise
from sanrobust.kernels.cuda.narrow import NarrowPairwise, NarrowPatchwise
from sanrobust.kernels.cuda.tuned import TunedPairwise, TunedPatchwise
from sanrobust.kernels.folding import tensors
from sanrobust.kernels.relations import Delta

# Channels of a stage's maps, footprint, side of the maps of images of 224 pixels.
STAGES = ((64, 3, 112), (256, 7, 56), (512, 7, 28), (1024, 7, 14), (2048, 7, 7))
KINDS = {"pairwise": (NarrowPairwise, TunedPairwise, GeneralPairwise),
         "patchwise": (NarrowPatchwise, TunedPatchwise, GeneralPatchwise)}
OPERATORS = ("pairwise", "pairwise concatenation", "pairwise hadamard", "pairwise dot", "patchwise")
DEVICE = torch.device("cuda", 0)
SAMPLES = 5
SAMPLE_SECONDS = 0.02

Steps = dict[str, Callable[[], tuple[Tensor, ...]]]


class Maps:
    """A case on the device in one element type."""

    def __init__(self, case: Case, dtype: torch.dtype, batch: int) -> None:
        repeats = -(-batch // len(case.grad))
        maps = [each.to(DEVICE, dtype).repeat(repeats, 1, 1, 1)[:batch]
                .contiguous(memory_format=torch.channels_last)
                for each in (*case.maps, case.grad)]
        self.maps, self.grad = (maps[0], maps[1], maps[2]), maps[3]
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        matrices = case.matrices_of(accumulator)
        self.matrices: Any = replace(matrices, **{name: each.to(DEVICE)
                                                  for name, each in tensors(matrices).items()})
        self.kind, self.window = case.kind, case.window
        self.device = compiler.device(DEVICE.index)

    def families(self) -> dict[str, Steps]:
        """Every family that takes these maps, the one that calls get first."""
        narrow, tuned, general = KINDS[self.kind]
        found: dict[str, Any] = {}
        if narrow.takes(self.maps, self.matrices, self.window):
            found["narrow"] = narrow(*self._given())
        if tuned.takes(self.device, self.maps, self.matrices, self.window):
            found["tuned"] = tuned(*self._given())
        found["general"] = general(*self._given())
        return {name: self._steps(attention) for name, attention in found.items()}

    def _given(self) -> tuple[Any, ...]:
        return self.device, self.maps, self.matrices, self.window

    def _steps(self, attention: Any) -> Steps:
        def forward() -> tuple[Tensor, ...]:
            out = torch.empty_like(self.maps[2])
            attention.forward(self.maps, out)
            return (out,)

        def gradients() -> tuple[Tensor, ...]:
            query, key, value = (torch.empty_like(each) for each in self.maps)
            attention.backward(self.grad, self.maps, (query, key, value))
            return query, key, value

        return {"forward": forward, "gradients": gradients}


def truth(case: Case) -> dict[str, tuple[Tensor, ...]]:
    """Result and gradients of the case's own images in float64, by the general family."""
    steps = Maps(case, torch.float64, len(case.grad)).families()["general"]
    return {name: step() for name, step in steps.items()}


def error(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The largest difference over the largest value, of the images that ``exact`` has."""
    return max(float((one[:len(two)].double() - two).abs().max() / two.abs().max())
               for one, two in zip(found, exact, strict=True))


def alternated(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each call, taken in turn."""
    times = {name: max(1, int(SAMPLE_SECONDS / seconds_of(call, DEVICE)))
             for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(SAMPLES):
        for name, call in calls.items():
            samples[name].append(seconds_of(call, DEVICE, times[name]))
    return {name: 1000 * statistics.median(each) for name, each in samples.items()}


def rows(operator: str, stage: tuple[int, int, int], dtype: str, batch: int
         ) -> Iterator[dict[str, object]]:
    """Measure one operator at one stage in one element type."""
    channels, footprint, side = stage
    relation, (kind, _, delta) = channels // 16, operator.partition(" ")
    case = make(kind, relation, relation if kind == "pairwise" else relation // 2, relation // 2,
                4 * relation, footprint, "reflect", side, side,
                delta=cast(Delta, delta or "subtraction"))
    exact, maps = truth(case), Maps(case, getattr(torch, dtype), batch)
    families = maps.families()
    for step in ("forward", "gradients"):
        calls = {name: steps[step] for name, steps in families.items()}
        errors = {name: error(call(), exact[step]) for name, call in calls.items()}
        taken = alternated(calls)
        first = next(iter(taken.values()))
        for name in calls:
            yield {"operator": operator, "channels": channels, "side": side, "footprint": footprint,
                   "batch": batch, "dtype": dtype, "step": step, "family": name,
                   "ms": round(taken[name], 4), "ratio": round(taken[name] / first, 2),
                   "error": f"{errors[name]:.1e}"}
    torch.cuda.empty_cache()


def main() -> None:
    """Measure every shape and write the table after each."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("out", type=Path)
    words.add_argument("--batch", type=int, default=128)
    words.add_argument("--dtype", action="append", choices=("float32", "float16", "bfloat16"))
    asked = words.parse_args()
    found: list[dict[str, object]] = []
    for dtype in asked.dtype or ("float32", "float16", "bfloat16"):
        for operator in OPERATORS:
            for stage in STAGES:
                found += rows(operator, stage, dtype, asked.batch)
                pd.DataFrame(found).to_csv(asked.out, index=False)
    print(pd.DataFrame(found).to_string(index=False))


if __name__ == "__main__":
    main()
