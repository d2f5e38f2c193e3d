"""The position-aware attention of SASA's stem: each pixel attends within its block of the image.

Letters: B images, C image channels, O output channels, N heads, D = O / N, S block side, T
transforms of the values, H and W image pixels, P blocks. Head n holds the channels c with
c % N = n.

Source: Ramachandran et al., NeurIPS 2019, Section 3.2 and its appendix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.errors import UsageError
from sanrobust.kernels.reference import SLICE_VALUES, SLICE_VALUES_ELSEWHERE


class BlockAttention(nn.Module):
    """Attention within blocks whose values know their place: between attention and convolution.

    The value of the pixel in row a and column b of its block is the sum over m of
    p(a, b, m) * V_m x, with p the softmax over the T transforms m of rows[a, m] + columns[b, m];
    the products of embeddings that make up these logits in the paper are learned as they are.
    Weights are the softmax of q.k over the S * S pixels of the block.

    Args:
        channels: C of the images.
        out_channels: O of queries, keys, values and output.
        heads: N; O is a multiple of it.
        block: S.
        transforms: T.

    Raises UsageError when the settings do not fit together.
    """

    def __init__(self, channels: int, *, out_channels: int, heads: int, block: int = 4,
                 transforms: int = 4) -> None:
        super().__init__()
        if heads < 1 or out_channels % heads:
            raise UsageError(f"output channels ({out_channels}) must be a multiple of the heads",
                             seen=f"there are {heads}", hint="change one of the two")
        self.heads, self.block = heads, block
        self.conv1 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, out_channels, 1, bias=False)
        reach = channels ** -0.5
        self.values = nn.Parameter(torch.empty(transforms, out_channels, channels)
                                   .uniform_(-reach, reach))
        self.rows = nn.Parameter(torch.randn(block, transforms))
        self.columns = nn.Parameter(torch.randn(block, transforms))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, O, H', W') for ``images`` (B, C, H, W), sides rounded up to whole blocks.

        The last row and column of the images are repeated to fill the last blocks.
        """
        height, width = images.shape[-2:]
        filled = F.pad(images, (0, -width % self.block, 0, -height % self.block),
                       mode="replicate")
        slices = torch.split(filled, self._at_once(filled))
        attended = [self._attend(each) for each in slices]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def mixture(self) -> Tensor:
        """Return p (S * S, T), how much each place of a block takes of each transform."""
        places = self.rows.unsqueeze(1) + self.columns.unsqueeze(0)
        return torch.softmax(places, dim=-1).flatten(0, 1)

    def _attend(self, images: Tensor) -> Tensor:
        query, key = (_by_head(self._blocks(conv(images)), self.heads)
                      for conv in (self.conv1, self.conv2))
        # Mixing the matrices and not the values saves T - 1 of T transforms of every pixel.
        transforms = torch.einsum("st,toc->soc", self.mixture(), self.values)
        value = torch.einsum("bpsc,soc->bpso", self._blocks(images), transforms)
        weight = torch.softmax(query @ key.transpose(-1, -2), dim=-1)
        attended = weight @ _by_head(value, self.heads)
        return self._map(attended, images.shape[-2] // self.block)

    def _blocks(self, maps: Tensor) -> Tensor:
        """Cut (B, C, H, W) into (B, P, S * S, C)."""
        cut = torch.unflatten(torch.unflatten(maps, 3, (-1, self.block)), 2, (-1, self.block))
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)

    def _map(self, attended: Tensor, blocks_down: int) -> Tensor:
        """Lay (B, N, P, S * S, D) out as a map (B, O, H, W)."""
        pixels = torch.unflatten(attended, 3, (self.block, self.block))
        grid = torch.unflatten(pixels, 2, (blocks_down, -1))
        return grid.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4).flatten(1, 2)

    def _at_once(self, images: Tensor) -> int:
        bound = SLICE_VALUES.get(images.device.type, SLICE_VALUES_ELSEWHERE)
        per_image = self.heads * self.block ** 2 * images.shape[-2] * images.shape[-1]
        return max(1, bound // per_image)


def _by_head(blocks: Tensor, heads: int) -> Tensor:
    """Split (B, P, S * S, O) into (B, N, P, S * S, D)."""
    return torch.unflatten(blocks, 3, (-1, heads)).permute(0, 4, 1, 2, 3)
