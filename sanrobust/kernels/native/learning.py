"""What the compiled library does for mappings that are trained, besides attention itself.

Letters are those of ``fused``; R channels of queries and of keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanrobust.kernels.native.arguments import PairwiseArgs, PatchwiseArgs, dense
from sanrobust.kernels.native.checks import PADDINGS, element_of, require, require_window
from sanrobust.kernels.native.fused import planar, rows_of
from sanrobust.kernels.native.library import Library
from sanrobust.kernels.plain import Window

# Value channels that share a weight in the tuned kernels.
_SHARING = 8


class MomentsCall:
    """The moments of the first layer of pairwise attention over all pairs.

    Args:
        found: the compiled library.
        w1: (D, R) from relations to the layer.
        table: (K2 + 1, D), what it starts from by displacement.
        window: the neighbours of a position.
    """

    def __init__(self, found: Library, w1: Tensor, table: Tensor, window: Window) -> None:
        self._library, self._window = found, window
        self._w1, self._w1t, self._table = dense(w1), dense(w1.t()), dense(table)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the mean and the biased variance (2, D) in float64; of no pairs they are NaN."""
        moments = query.new_full((2, len(self._w1)), torch.nan, dtype=torch.float64)
        self._run("forward", query, key, moments=moments)
        return moments

    def backward(self, slope: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of query, key, w1 and the table.

        That of each pair's layer is slope[0] + slope[1] * (layer - slope[2]), ``slope`` (3, D).
        """
        of_query, of_key = query.new_zeros(query.shape), key.new_zeros(key.shape)
        of_w1t, of_table = torch.zeros_like(self._w1t), torch.zeros_like(self._table)
        rows, slope = query.new_empty(query[:, 0].numel(), 2 * query.shape[1]), dense(slope)
        self._run("backward", query, key, slope=slope, grad_qkv=rows, grad_w1t=of_w1t,
                  grad_table=of_table)
        if query.numel():
            planar(rows, of_query, of_key)
        return of_query, of_key, of_w1t.t().contiguous(), of_table

    def _run(self, direction: str, query: Tensor, key: Tensor, **tensors: Tensor) -> None:
        require_window(self._window, query, key)
        images, relation, height, width = query.shape
        hidden = len(self._w1)
        require((self._window.stride, self._window.dilation) == (1, 1)
                and query.shape == key.shape and self._w1.shape == (hidden, relation)
                and self._table.shape == (self._window.neighbours + 1, hidden),
                query, key, self._w1, self._table)
        if query.numel():
            rows = rows_of(query, key)
            # Groups of weights, which nobody asks for here, tell the width of the tuned kernels.
            self._library.call(f"sanrobust_moments_{direction}", PairwiseArgs(
                images=images, height=height, width=width, relation=relation, hidden=hidden,
                groups=max(1, hidden // 2), channels=0, footprint=self._window.footprint,
                padding=PADDINGS[self._window.padding_mode],
                element=element_of(query, key, self._w1, self._table),
                threads=torch.get_num_threads(), qkv=rows, w1=self._w1,
                w1t=self._w1t, table=self._table, **tensors))


class HiddenCall:
    """The hidden layer of a patchwise mapping before its normalisation, of each patch.

    It is w1 [relu(query_i), relu(key_j * key_scale[j] + key_shift[j]) for every neighbour j].

    Args:
        found: the compiled library.
        key_scale, key_shift: (K2, R).
        w1: (D, (1 + K2) * R), the query, then neighbour by neighbour.
        window: the neighbours of a position.
    """

    def __init__(self, found: Library, key_scale: Tensor, key_shift: Tensor, w1: Tensor,
                 window: Window) -> None:
        self._library, self._window = found, window
        self._matrices = dict(key_scale=dense(key_scale), key_shift=dense(key_shift),
                              w1=dense(w1), w1t=dense(w1.t()), b1=w1.new_zeros(len(w1)))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the layer (B, D, H, W)."""
        self._require(query, key)
        made = query.new_empty(len(query), len(self._matrices["w1"]), *query.shape[2:])
        if query.numel():
            rows = rows_of(made)
            self._run("forward", query, key, h=rows)
            planar(rows, made)
        return made

    def backward(self, grad: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of query, key, key_scale, key_shift and w1."""
        self._require(query, key)
        require(grad.shape == (len(query), len(self._matrices["w1"]), *query.shape[2:]), grad)
        of_query, of_key = query.new_zeros(query.shape), key.new_zeros(key.shape)
        sums = {f"grad_{name}": torch.zeros_like(self._matrices[name])
                for name in ("key_scale", "key_shift", "w1t")}
        if query.numel():
            given, result = rows_of(grad), self._rows(query)
            self._run("backward", query, key, grad=given, grad_qkv=result, **sums)
            planar(result[:, :2 * query.shape[1]], of_query, of_key)
        of_scale, of_shift, of_w1t = sums.values()
        return of_query, of_key, of_scale, of_shift, of_w1t.t().contiguous()

    def _rows(self, query: Tensor) -> Tensor:
        """Rows of query, key and of values that nobody reads."""
        return query.new_empty(query[:, 0].numel(), 2 * query.shape[1] + self._channels)

    @property
    def _channels(self) -> int:
        return _SHARING * len(self._matrices["w1"])

    def _run(self, direction: str, query: Tensor, key: Tensor, **tensors: Tensor) -> None:
        images, relation, height, width = query.shape
        hidden = len(self._matrices["w1"])
        rows = self._rows(query)
        rows_of(query, key, out=rows[:, :2 * relation])
        self._library.call(f"sanrobust_patchwise_{direction}", PatchwiseArgs(
            images=images, height=height, width=width, relation=relation, hidden=hidden,
            groups=hidden, channels=self._channels, footprint=self._window.footprint,
            padding=PADDINGS[self._window.padding_mode], element=element_of(query, key),
            threads=torch.get_num_threads(), hidden_alone=1, qkv=rows, **self._matrices,
            **tensors))

    def _require(self, query: Tensor, key: Tensor) -> None:
        require_window(self._window, query, key)
        element_of(query, key, *self._matrices.values())
        relation, around, w1 = query.shape[1], self._window.neighbours, self._matrices["w1"]
        require((self._window.stride, self._window.dilation) == (1, 1)
                and query.shape == key.shape and len(w1) > 0
                and w1.shape[1:] == ((1 + around) * relation,)
                and all(self._matrices[name].shape == (around, relation)
                        for name in ("key_scale", "key_shift")), query, key, w1)


class WeightsCall:
    """Patchwise attention from a hidden layer that is given behind its relu.

    Args:
        found: the compiled library.
        w2: (K2 * M, D) and b2 (K2 * M,), neighbour by neighbour.
        window: the neighbours of a position.
    """

    def __init__(self, found: Library, w2: Tensor, b2: Tensor, window: Window) -> None:
        self._library, self._window = found, window
        self._matrices = dict(w2=dense(w2), w2t=dense(w2.t()), b2=dense(b2))

    def forward(self, hidden: Tensor, value: Tensor) -> Tensor:
        """Return the attended values (B, O, H, W)."""
        self._require(hidden, value)
        attended = value.new_empty(value.shape)
        if value.numel():
            out = rows_of(attended)
            self._run("forward", hidden, value, out=out)
            planar(out, attended)
        return attended

    def backward(self, grad: Tensor, hidden: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the hidden layer, the values, w2 and b2."""
        self._require(hidden, value)
        require(grad.shape == value.shape, grad, value)
        of_hidden, of_value = hidden.new_zeros(hidden.shape), value.new_zeros(value.shape)
        sums = {f"grad_{name}": torch.zeros_like(self._matrices[name]) for name in ("w2t", "b2")}
        if value.numel():
            given, of_h, result = rows_of(grad), rows_of(hidden), self._rows(hidden, value)
            self._run("backward", hidden, value, grad=given, grad_h=of_h, grad_qkv=result, **sums)
            planar(of_h, of_hidden)
            planar(result[:, -value.shape[1]:], of_value)
        of_w2t, of_b2 = sums.values()
        return of_hidden, of_value, of_w2t.t().contiguous(), of_b2

    def _rows(self, hidden: Tensor, value: Tensor) -> Tensor:
        """Rows of queries and keys that nobody reads, and of values."""
        return value.new_empty(value[:, 0].numel(), 4 * hidden.shape[1] + value.shape[1])

    def _run(self, direction: str, hidden: Tensor, value: Tensor, **tensors: Tensor) -> None:
        images, channels, height, width = value.shape
        rows, h = self._rows(hidden, value), rows_of(hidden)
        rows_of(value, out=rows[:, -channels:])
        self._library.call(f"sanrobust_patchwise_{direction}", PatchwiseArgs(
            images=images, height=height, width=width, relation=2 * hidden.shape[1],
            hidden=hidden.shape[1], groups=len(self._matrices["b2"]) // self._window.neighbours,
            channels=channels, footprint=self._window.footprint,
            padding=PADDINGS[self._window.padding_mode], element=element_of(hidden, value),
            threads=torch.get_num_threads(), qkv=rows, h=h, **self._matrices, **tensors))

    def _require(self, hidden: Tensor, value: Tensor) -> None:
        require_window(self._window, hidden, value)
        element_of(hidden, value, *self._matrices.values())
        w2, groups = self._matrices["w2"], len(self._matrices["b2"]) // self._window.neighbours
        require((self._window.stride, self._window.dilation) == (1, 1)
                and hidden.shape[::2] == value.shape[::2] and hidden.shape[3] == value.shape[3]
                and hidden.shape[1] > 0 and groups > 0 and value.shape[1] % groups == 0
                and self._matrices["b2"].shape == (groups * self._window.neighbours,)
                and w2.shape == (groups * self._window.neighbours, hidden.shape[1]),
                hidden, value, w2)
