"""The fused operators of the compiled library: maps into the rows it reads, and back.

Letters: B images, H and W map pixels, R relation channels, O value channels, D hidden channels,
M weight groups, K2 neighbours. A row holds [query | key | value] of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices, tensors
from sanrobust.kernels.native.arguments import (CONCATENATION, DELTAS, DOT, HADAMARD, LRL,
                                                LocalArgs, PairwiseArgs, PatchwiseArgs, dense,
                                                pair_words)
from sanrobust.kernels.native.checks import PADDINGS, element_of, require, require_window
from sanrobust.kernels.native.library import Library
from sanrobust.kernels.plain import Window

# Bytes that a backward pass may keep of the forward pass it repeats. Images are independent, so
# that no number depends on how many of them are taken together.
KEPT_BYTES = 64 << 20
# Answers of the sanrobust_*_tuned functions: how much backward reads of the forward pass.
_NOTHING, _EVERYTHING = 0, 1
# Matrices of pairwise attention with gradients.
_LEARNED = ("w1t", "w2t", "table")

Shape = tuple[int, ...]


class AttentionCall:
    """One call of a fused operator.

    Args:
        found: the compiled library.
        matrices: those of the mapping by the names of ``api.h``.
        window: the neighbours of a position.
    """

    operator: str
    struct: type[PairwiseArgs | PatchwiseArgs]

    def __init__(self, found: Library, matrices: dict[str, Tensor], window: Window) -> None:
        self._library = found
        self._window = window
        element_of(*matrices.values())
        # The arguments hold addresses: the tensors must outlive the calls.
        self._matrices = {name: dense(each) for name, each in matrices.items()}

    def settings(self) -> dict[str, int]:
        """Return what the matrices tell besides their addresses."""
        raise NotImplementedError

    def shapes(self, relation: int) -> dict[str, Shape]:
        """Return the shapes that the matrices must have."""
        raise NotImplementedError

    def kept(self, kind: int, pixels: int, channels: int) -> dict[str, tuple[Shape, torch.dtype]]:
        """Return shape and dtype of what the backward pass of that ``kind`` of kernels reads."""
        raise NotImplementedError

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values (B, O, H, W)."""
        self._require_maps(query, key, value)
        attended = value.new_empty(value.shape)
        if value.numel():
            rows = rows_of(query, key, value)
            out = value.new_empty(len(rows), value.shape[1])
            self._run("forward", self._args(query, value), qkv=rows, out=out)
            planar(out, attended)
        return attended

    def backward(self, grad: Tensor, query: Tensor, key: Tensor,
                 value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value for that of the attended values."""
        self._require_maps(query, key, value)
        element_of(grad, value)
        require(grad.shape == value.shape, grad, value)
        grads = (query.new_zeros(query.shape), key.new_zeros(key.shape),
                 value.new_empty(value.shape))
        if value.numel():
            args = self._args(query, value)
            kind = self._library.query(f"sanrobust_{self.operator}_tuned", self.struct(**args))
            for part in self._parts(args, kind):
                maps = [each[part] for each in (query, key, value)]
                self._backward(kind, grad[part], maps, [each[part] for each in grads])
        return grads

    def _backward(self, kind: int, grad: Tensor, maps: list[Tensor],
                  grads: list[Tensor]) -> None:
        """Repeat the forward pass of a few images as far as needed, and go back through it."""
        query, _, value = maps
        args = self._args(query, value)
        rows = rows_of(*maps)
        kept = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype)
                in self.kept(kind, len(rows), value.shape[1]).items()}
        if kept:
            self._run("forward", args, qkv=rows, **kept)
        grad_rows = torch.empty_like(rows)
        self._run("backward", args, qkv=rows, grad=rows_of(grad), grad_qkv=grad_rows, **kept)
        planar(grad_rows, *grads)

    def _parts(self, args: dict[str, int], kind: int) -> Iterator[slice]:
        """Cut the batch so that what is kept of one part stays small."""
        images = args["images"]
        per_image = sum(dtype.itemsize * prod(shape) for shape, dtype in self.kept(
            kind, args["height"] * args["width"], args["channels"]).values())
        step = max(1, KEPT_BYTES // per_image) if kind == _EVERYTHING else images
        for first in range(0, images, step):
            yield slice(first, first + step)

    def _args(self, query: Tensor, value: Tensor) -> dict[str, int]:
        images, channels, height, width = value.shape
        return dict(images=images, height=height, width=width, relation=query.shape[1],
                    channels=channels, footprint=self._window.footprint,
                    padding=PADDINGS[self._window.padding_mode],
                    element=element_of(query, value),
                    threads=torch.get_num_threads(), **self.settings())

    def _run(self, direction: str, args: dict[str, int], **tensors: Tensor) -> None:
        self._library.call(f"sanrobust_{self.operator}_{direction}",
                           self.struct(**args, **self._matrices, **tensors))

    def _require_maps(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        element_of(query, key, value, *self._matrices.values())
        require_window(self._window, query, key, value)
        require((self._window.stride, self._window.dilation) == (1, 1)
                and query.shape == key.shape and query.shape[::2] == value.shape[::2]
                and query.shape[3] == value.shape[3], query, key, value)
        require(self._matrices["w2"].dim() == 2 and self.settings()["groups"] >= 1
                and value.shape[1] % self.settings()["groups"] == 0, value, self._matrices["w2"])
        shapes = self.shapes(query.shape[1])
        require(self._matrices.keys() == {*shapes, "w2"}, *self._matrices.values())
        for name, shape in shapes.items():
            require(self._matrices[name].shape == shape, self._matrices[name], query)


class PairwiseCall(AttentionCall):
    """A call of pairwise attention."""

    operator = "pairwise"
    struct = PairwiseArgs

    def __init__(self, found: Library, matrices: PairwiseMatrices, window: Window) -> None:
        super().__init__(found, tensors(matrices), window)
        self._delta, self._by_place = DELTAS[matrices.delta], matrices.by_place

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return the attended values and y, alpha and signs (``PairwiseArgs``) for `learn`.

        Of shapes whose backward pass computes everything anew, the last three are empty.
        """
        self._require_maps(query, key, value)
        kept = {name: value.new_empty(shape, dtype=dtype)
                for name, (shape, dtype) in self._kept_for(query, value).items()}
        if not kept["y"].numel():
            return (self.forward(query, key, value), *kept.values())
        self._run("forward", self._args(query, value), qkv=rows_of(query, key, value), **kept)
        attended = value.new_empty(value.shape)
        planar(kept["y"], attended)
        return (attended, *kept.values())

    def learn(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
              *kept: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of query, key, value, w1, w2 and the table."""
        self._require_maps(query, key, value)
        wanted = self._kept_for(query, value)
        require(grad.shape == value.shape and [(tuple(each.shape), each.dtype) for each in kept]
                == list(wanted.values()), grad, value, *kept)
        held = {name: dense(each) for name, each in zip(wanted, kept) if each.numel()}
        grads = [torch.empty_like(each, memory_format=torch.contiguous_format)
                 for each in (query, key, value)]
        learned = {f"grad_{name}": torch.zeros_like(self._matrices[name]) for name in _LEARNED}
        if value.numel():
            rows = rows_of(query, key, value)
            grad_rows = torch.empty_like(rows)
            self._run("backward", self._args(query, value), qkv=rows, grad=rows_of(grad),
                      grad_qkv=grad_rows, **held, **learned)
            planar(grad_rows, *grads)
        of_w1t, of_w2t, of_table = learned.values()
        return (*grads, of_w1t.t().contiguous(), of_w2t.t().contiguous(), of_table)

    def _kept_for(self, query: Tensor, value: Tensor) -> dict[str, tuple[Shape, torch.dtype]]:
        """Shape and dtype of what `learn` reads of the forward pass, by its names."""
        # Any address tells that the matrices will be learned.
        asked = {f"grad_{name}": self._matrices[name] for name in _LEARNED}
        kind = self._library.query(f"sanrobust_{self.operator}_tuned",
                                   self.struct(**self._args(query, value), **asked))
        return self.kept(kind, query[:, 0].numel(), value.shape[1]) or dict(
            y=((0,), value.dtype), alpha=((0,), value.dtype), signs=((0,), torch.int16))

    def settings(self) -> dict[str, int]:
        """Return M and D, how pairs are compared, and which table there is."""
        groups, hidden = self._matrices["w2"].shape
        per_pixel = not self._by_place and len(self._matrices["table"]) > 1
        return dict(groups=groups, hidden=hidden, delta=self._delta,
                    table_by_place=int(self._by_place), table_per_pixel=int(per_pixel))

    def shapes(self, relation: int) -> dict[str, Shape]:
        """Return the shapes that the matrices must have."""
        groups, hidden = self._matrices["w2"].shape
        rows = len(self._matrices["table"])
        found = dict[str, Shape](w2t=(hidden, groups), table=(
            (rows, hidden) if self._by_place else (rows, self._window.neighbours + 1, hidden)))
        compared = 1 if self._delta == DOT else relation
        if self._delta != CONCATENATION:
            found.update(w1=(hidden, compared), w1t=(compared, hidden))
        if self._delta in (HADAMARD, DOT):
            found.update(offset=(compared,))
        return found

    def kept(self, kind: int, pixels: int, channels: int) -> dict[str, tuple[Shape, torch.dtype]]:
        """Return shape and dtype of the output, the weights and the hidden layer's signs."""
        output: dict[str, tuple[Shape, torch.dtype]] = dict(y=((pixels, channels), torch.float32))
        if kind != _EVERYTHING:
            return {} if kind == _NOTHING else output
        around = self._window.neighbours
        groups, hidden = self._matrices["w2"].shape
        return dict(**output, alpha=((pixels, around, groups), torch.float32),
                    signs=((pixels, around, pair_words(hidden, self._delta, LRL)), torch.int16))

    def _require_maps(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        super()._require_maps(query, key, value)
        table, pixels = self._matrices["table"], query.shape[2] * query.shape[3]
        require(len(table) == pixels + 1 if self._by_place else len(table) in (1, pixels), table,
                query)
        require(self._delta != CONCATENATION or query.shape[1] == self._matrices["w2"].shape[1],
                query, self._matrices["w2"])


class PatchwiseCall(AttentionCall):
    """A call of patchwise attention."""

    operator = "patchwise"
    struct = PatchwiseArgs

    def __init__(self, found: Library, matrices: PatchwiseMatrices, window: Window) -> None:
        super().__init__(found, tensors(matrices), window)

    def settings(self) -> dict[str, int]:
        """Return M and D."""
        weights, hidden = self._matrices["w2"].shape
        return dict(groups=weights // self._window.neighbours, hidden=hidden)

    def shapes(self, relation: int) -> dict[str, Shape]:
        """Return the shapes that the matrices must have."""
        around = self._window.neighbours
        groups, hidden = self.settings().values()
        patch, weights = (1 + around) * relation, around * groups
        return dict(key_scale=(around, relation), key_shift=(around, relation),
                    w1=(hidden, patch), w1t=(patch, hidden), b1=(hidden,),
                    w2=(weights, hidden), w2t=(hidden, weights), b2=(weights,))

    def kept(self, kind: int, pixels: int, channels: int) -> dict[str, tuple[Shape, torch.dtype]]:
        """Return shape and dtype of the hidden layer."""
        hidden = (pixels, self._matrices["w2"].shape[1])
        return dict(h=(hidden, torch.float32)) if kind == _EVERYTHING else {}


class LocalCall:
    """One call of scalar attention.

    Args:
        found: the compiled library.
        embedding: (2, K, R / 2), those of row and of column offsets; None without.
        heads: M, groups of channels with weights of their own.
        window: the neighbours of a position.
    """

    def __init__(self, found: Library, embedding: Tensor | None, heads: int,
                 window: Window) -> None:
        self._library, self._heads, self._window = found, heads, window
        self._embedding = None if embedding is None else dense(embedding)

    def forward(self, query: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
        """Return the attended values (B, O, H, W)."""
        self._require(query, key, value)
        attended = value.new_empty(value.shape)
        if value.numel():
            rows = rows_of(*_present(query, key, value))
            out = value.new_empty(len(rows), value.shape[1])
            self._run("forward", query, key, value, qkv=rows, out=out)
            planar(out, attended)
        return attended

    def backward(self, grad: Tensor, query: Tensor, key: Tensor | None,
                 value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of query, key (empty without one), value and embedding.

        The last is empty without one.
        """
        self._require(query, key, value)
        element_of(grad, value)
        require(grad.shape == value.shape, grad, value)
        to_query, to_key, to_value = (query.new_zeros(0 if each is None else each.shape)
                                      for each in (query, key, value))
        to_embedding = query.new_zeros(0 if self._embedding is None else self._embedding.shape)
        if value.numel():
            rows = rows_of(*_present(query, key, value))
            result = torch.empty_like(rows)
            offset = None if self._embedding is None else rows.new_empty(
                len(rows), 2, self._window.footprint, self._heads)
            self._run("backward", query, key, value, qkv=rows, grad=rows_of(grad), grad_qkv=result,
                      grad_offset=offset)
            planar(result, *_present(to_query, None if key is None else to_key, to_value))
            if offset is not None:
                to_embedding = self._embedded(offset, rows[:, :query.shape[1]])
        return to_query, to_key, to_value, to_embedding

    def _embedded(self, offset: Tensor, queries: Tensor) -> Tensor:
        """The gradient (2, K, R / 2) of the embedding from that of its logits (P, 2, K, M)."""
        halves = torch.unflatten(queries, 1, (2, -1, self._heads))
        return torch.einsum("ptkn,ptcn->tkcn", offset, halves).flatten(2).contiguous()

    def _run(self, direction: str, query: Tensor, key: Tensor | None, value: Tensor,
             **tensors: Tensor | None) -> None:
        images, channels, height, width = value.shape
        self._library.call(f"sanrobust_local_{direction}", LocalArgs(
            images=images, height=height, width=width, relation=query.shape[1],
            keys=0 if key is None else key.shape[1], groups=self._heads, channels=channels,
            footprint=self._window.footprint, padding=PADDINGS[self._window.padding_mode],
            element=element_of(query, value), threads=torch.get_num_threads(),
            embedding=self._embedding, **tensors))

    def _require(self, query: Tensor, key: Tensor | None, value: Tensor) -> None:
        given = _present(query, key, value, self._embedding)
        element_of(*given)
        require_window(self._window, *_present(query, key, value))
        relation, heads = query.shape[1], self._heads
        require((self._window.stride, self._window.dilation) == (1, 1) and heads >= 1
                and (key is None or query.shape == key.shape)
                and (key is not None or self._embedding is not None)
                and query.shape[::2] == value.shape[::2] and query.shape[3] == value.shape[3]
                and relation % heads == 0 and value.shape[1] % heads == 0, *given)
        if self._embedding is not None:
            require(relation % (2 * heads) == 0 and self._embedding.shape == (
                2, self._window.footprint, relation // 2), *given)


def _present(*tensors: Tensor | None) -> list[Tensor]:
    return [each for each in tensors if each is not None]


def rows_of(*maps: Tensor, out: Tensor | None = None) -> Tensor:
    """Return maps (B, C, H, W) side by side as rows (B * H * W, sum of C)."""
    images, _, height, width = maps[0].shape
    channels = [each.shape[1] for each in maps]
    rows = maps[0].new_empty(images * height * width, sum(channels)) if out is None else out
    for part, each in zip(_as_maps(rows, channels, maps[0]), maps):
        part.copy_(each)
    return rows


def planar(rows: Tensor, *maps: Tensor) -> None:
    """Write rows (B * H * W, sum of C) into the maps (B, C, H, W) that lie in them side by side."""
    for part, each in zip(_as_maps(rows, [each.shape[1] for each in maps], maps[0]), maps):
        each.copy_(part)


def _as_maps(rows: Tensor, channels: list[int], like: Tensor) -> tuple[Tensor, ...]:
    """View rows as maps (B, C, H, W) of the given channels."""
    images, _, height, width = like.shape
    maps = torch.unflatten(rows, 0, (images, height, width)).permute(0, 3, 1, 2)
    return torch.split(maps, channels, 1)
