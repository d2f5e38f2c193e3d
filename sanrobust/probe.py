"""TEMPORARY."""
from torch import Tensor, nn


def probe(model: nn.Module, pixels: Tensor, *, gradient: bool) -> tuple[str, ...]:
    return ()
