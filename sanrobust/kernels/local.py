"""Scalar self-attention over local footprints, with heads, and SASA, which embeds the offsets.

Letters: B images, C channels, Q query channels, O value channels, N heads, K the footprint's
side, K2 = K * K neighbours (row by row), H and W map pixels, L = H' * W' output positions. Head n
holds the channels c with c % N = n, as everywhere in this package; heads of consecutive channels
are the same layer under other channel numbers.

Sources: Zhao, Jia and Koltun, CVPR 2020, equation 6; Ramachandran et al., NeurIPS 2019 (SASA);
Vaswani et al., NIPS 2017 (sinusoids). Logits are not scaled, as in both vision papers.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from sanrobust.design import SCALAR, AttentionConfig
from sanrobust.errors import UsageError
from sanrobust.kernels import functional
from sanrobust.kernels.plain import PaddingMode

LONGEST_WAVE = 10_000.0


class LocalAttention(nn.Module):
    """Scalar attention: y_i is the sum of value_j under softmax over the neighbours j.

    A head's logit of neighbour j is q_i.k_j; with relative position q_i.k_j + q_i.r, where r
    joins an embedding of j's row offset and one of its column offset, half of the head's channels
    each; without content q_i.r alone. Absolute position adds sinusoids of the coordinates to what
    queries and keys are projected from, and leaves the values alone.

    Names of parameters: conv1, conv2 and conv3 are the transforms of queries, keys and values
    (phi, psi and beta), rows and columns (Q / 2, K) the embeddings.

    Args:
        channels: C of the input.
        query_channels: Q of queries and keys.
        value_channels: O of the output.
        design: a scalar or sasa design.
        footprint: side of the square footprint, odd.
        stride: distance between output positions in pixels.
        bias: whether the transforms add one.
        padding_mode: how keys and values continue past the border of the map. Zeros take part in
            the softmax, as in the public reimplementations of SASA.

    Raises UsageError when the settings do not fit together.
    """

    def __init__(self, channels: int, *, query_channels: int, value_channels: int,
                 design: AttentionConfig, footprint: int, stride: int = 1, bias: bool = True,
                 padding_mode: PaddingMode = "reflect") -> None:
        super().__init__()
        _require_scalar(design)
        _require_heads(design, query_channels, value_channels)
        if design.position == "absolute":
            _require_multiple("channels of the input", channels, 4, "sines and cosines of "
                              "rows and of columns")
        self.design = design
        self.window = functional.make_window(footprint, stride, padding_mode=padding_mode)
        self.conv1 = nn.Conv2d(channels, query_channels, 1, bias=bias)
        self.conv2 = nn.Conv2d(channels, query_channels, 1, bias=bias) if design.content else None
        self.conv3 = nn.Conv2d(channels, value_channels, 1, bias=bias)
        relative = design.position == "relative"
        self.rows = self._initial(query_channels) if relative else None
        self.columns = self._initial(query_channels) if relative else None

    def forward(self, features: Tensor) -> Tensor:
        """Return the attended values (B, O, H', W') of ``features`` (B, C, H, W)."""
        query, key, embedding = self._compared(features)
        return functional.local_attention(query, key, self.conv3(features), embedding,
                                          **self._settings())

    def attention_weights(self, features: Tensor) -> Tensor:
        """Return the weights (B, N, K2, L) that ``forward`` uses for ``features`` (B, C, H, W)."""
        return functional.local_weights(*self._compared(features), **self._settings())

    def projections(self) -> tuple[nn.Conv2d, ...]:
        """Return what makes queries, keys, where content is compared, and values."""
        return tuple(each for each in (self.conv1, self.conv2, self.conv3) if each is not None)

    def embedding(self) -> Tensor | None:
        """Return what row and column offsets add to keys, (2, K, Q / 2); None for nothing."""
        if self.rows is None or self.columns is None:
            return None
        return torch.stack((self.rows.t(), self.columns.t()))

    def extra_repr(self) -> str:
        """What the transforms do not show when the module is printed."""
        return (f"heads={self.design.heads}, footprint={self.window.footprint}, "
                f"stride={self.window.stride}, position={self.design.position}, "
                f"padding_mode={self.window.padding_mode}")

    def _initial(self, query_channels: int) -> nn.Parameter:
        # So q.r starts with the variance of one query channel, whatever the head's width.
        scale = (query_channels // self.design.heads) ** -0.5
        return nn.Parameter(torch.randn(query_channels // 2, self.window.footprint) * scale)

    def _compared(self, features: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The queries, where content is compared the keys, and the embedding if there is one."""
        if self.design.position == "absolute":
            features = features + sinusoids(features)
        query, embedding = self.conv1(features), self.embedding()
        return (query, None if self.conv2 is None else self.conv2(features),
                None if embedding is None else embedding.to(query.dtype))

    def _settings(self) -> _Settings:
        return {"heads": self.design.heads, "footprint": self.window.footprint,
                "stride": self.window.stride, "padding_mode": self.window.padding_mode}


class _Settings(TypedDict):
    heads: int
    footprint: int
    stride: int
    padding_mode: PaddingMode


def sinusoids(features: Tensor) -> Tensor:
    """Return encoded coordinates (1, C, H, W) for ``features`` (B, C, H, W), C a multiple of 4.

    The first half of the channels encodes the row y, the second the column x: a channel pair is
    the sine and cosine of the coordinate in pixels over wavelengths from 2 pi on, in geometric
    steps towards 10 000 times as much (Vaswani et al., 2017, Section 3.5).
    """
    channels, height, width = features.shape[1:]
    down, across = (_waves(side, channels // 2, features) for side in (height, width))
    grid = (down.unsqueeze(2).expand(-1, -1, width), across.unsqueeze(1).expand(-1, height, -1))
    return torch.cat(grid).unsqueeze(0)


def _waves(side: int, channels: int, like: Tensor) -> Tensor:
    """Encode 0 ... side - 1 as (channels, side), in the precision that counts pixels exactly."""
    pixels = torch.arange(side, dtype=torch.float64, device=like.device)
    steps = torch.arange(channels // 2, dtype=torch.float64, device=like.device)
    angles = pixels * (LONGEST_WAVE ** (-2 * steps / channels)).unsqueeze(1)
    return torch.stack((angles.sin(), angles.cos()), 1).flatten(0, 1).to(like.dtype)


def _require_scalar(design: AttentionConfig) -> None:
    wanted = (SCALAR.relation, SCALAR.mapping, SCALAR.transforms)
    if design.attention not in ("scalar", "sasa") or (
            design.relation, design.mapping, design.transforms) != wanted:
        raise UsageError("scalar attention must compare by dot products with transforms of their "
                         "own and no mapping", seen=f"the design is {design}",
                         hint="start from sanrobust.design.SCALAR or SASA")
    if not design.content and design.position != "relative":
        raise UsageError("attention without content must have relative position",
                         seen=f"its position is {design.position}",
                         hint="use position=relative or content=yes")


def _require_heads(design: AttentionConfig, query_channels: int, value_channels: int) -> None:
    if design.heads < 1:
        raise UsageError("the heads must be at least 1", seen=f"there are {design.heads}",
                         hint="use heads=1")
    _require_multiple("value channels", value_channels, design.heads, "the heads")
    if design.position == "relative":
        _require_multiple("query channels", query_channels, 2 * design.heads,
                          "twice the heads, rows and columns for each")
    else:
        _require_multiple("query channels", query_channels, design.heads, "the heads")


def _require_multiple(name: str, seen: int, unit: int, meaning: str) -> None:
    if seen < unit or seen % unit:
        raise UsageError(f"{name} must be a multiple of {unit} ({meaning})", seen=f"it is {seen}",
                         hint="use fewer heads or wider layers")
