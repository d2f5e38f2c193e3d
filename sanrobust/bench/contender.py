"""A thing to be timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sanrobust.bench.machine import seconds_of

# A sample lasts at least this long; shorter calls are repeated within it.
SAMPLE_SECONDS = 0.1
_MOST_CALLS = 1000


@dataclass(frozen=True)
class Contender:
    """One way to compute something.

    Attributes:
        name: one of `sanrobust.bench.settings.CONTENDERS`.
        calls: a function for each step that it is timed in, which takes it once.
        computed_by: what computes it here, in words.
        model: pixels to logits, where it is a model whose memory can be estimated.
    """

    name: str
    calls: Mapping[str, Callable[[], object]]
    computed_by: str
    model: nn.Module | None = None

    def timer(self, step: str, device: torch.device) -> Callable[[], float]:
        """Warm up and return a function that returns the seconds of one call."""
        call = self.calls[step]
        call()
        estimate = seconds_of(call, device)
        times = min(_MOST_CALLS, max(1, math.ceil(SAMPLE_SECONDS / max(estimate, 1e-9))))
        return lambda: seconds_of(call, device, times)
