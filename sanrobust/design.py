"""The design space of local self-attention, as frozen values that name one point of it; no torch.

Sources: Zhao, Jia and Koltun, CVPR 2020, Sections 3.1, 3.2, 4 and 5.3 (pairwise, patchwise and
scalar attention); Ramachandran et al., NeurIPS 2019 (SASA).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Attention = Literal["pairwise", "patchwise", "scalar", "sasa"]
Mapping = Literal["L", "LRL", "LRLRL"]
Position = Literal["none", "absolute", "relative"]


@dataclass(frozen=True)
class AttentionConfig:
    """One self-attention operator.

    Attributes:
        attention: ``pairwise`` (equation 2), ``patchwise`` (equation 4), ``scalar`` (equation 6)
            or ``sasa`` (scalar attention with embedded offsets).
        relation: how features are compared, a name of `sanrobust.kernels.relations`.
        mapping: layers of gamma between relation and weights, L linear and R ReLU.
        transforms: how many of phi (query), psi (key) and beta (value) are distinct: 3; 2, where
            phi is psi; 1, where all are one.
        position: what attention knows of places: nothing, coordinates, or their differences.
        heads: groups of channels with a weight of their own in ``scalar`` and ``sasa``.
        content: whether ``sasa`` compares features (q.k) beside embedded offsets (q.r).
    """

    attention: Attention = "pairwise"
    relation: str = "subtraction"
    mapping: Mapping = "LRL"
    transforms: int = 3
    position: Position = "relative"
    heads: int = 1
    content: bool = True


PAIRWISE = AttentionConfig()
PATCHWISE = AttentionConfig(attention="patchwise", relation="concatenation", position="none")
SCALAR = AttentionConfig(attention="scalar", relation="dot", mapping="L", position="none")
SASA = replace(SCALAR, attention="sasa", position="relative", heads=8)
DEFAULTS: dict[Attention, AttentionConfig] = {
    "pairwise": PAIRWISE, "patchwise": PATCHWISE, "scalar": SCALAR, "sasa": SASA}
