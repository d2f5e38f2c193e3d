"""What every backend with kernels of its own shares: when it is asked, and how it attends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sanrobust.kernels import batch_mapping, folding, ops, reference
from sanrobust.kernels.calls import Call, Comparison
from sanrobust.kernels.pairs import gathered
from sanrobust.kernels.plain import Window, differentiates_forwards, pad
from sanrobust.kernels.relations import Delta


class FusedBackend:
    """A backend of elementary and fused kernels, those of the kernel set of its ``name``.

    Attention runs fused, forward and backward with respect to the maps, where its mapping can be
    folded; in training, where a kernel set learns mappings, with the gradients of these too. Where
    neither is so, attention is composed of the elementary kernels with the mapping in torch
    between them.

    Attributes:
        name: what users type to ask for it.
        device_type: the only kind of device whose tensors it takes.
        dtypes: the only dtypes it takes.
        has_local_attention: whether scalar attention is among its fused operators.
    """

    name: str
    device_type: str
    dtypes: tuple[torch.dtype, ...]
    has_local_attention = False

    def unavailable(self) -> str | None:
        """Return why this machine has no such kernels, as a clause; None when it has."""
        raise NotImplementedError

    def limits(self, call: Call) -> str | None:
        """Return why these kernels cannot compute a call on their device; None when they can."""
        if any(each.layout != torch.strided for each in call.tensors):
            return "the maps are not dense"
        if call.operation == "patchwise_attention" \
                and call.tensors[0].shape[1] != call.tensors[1].shape[1]:
            return "query and key have different numbers of channels"
        return None

    def refusal(self, call: Call) -> str | None:
        """Return why this backend cannot compute ``call``, as a clause; None when it can."""
        maps, window = call.tensors[0], call.window
        # What is being compiled asks only of its own device: looking for others cannot be traced.
        elsewhere = maps.device.type != self.device_type
        if not (elsewhere and torch.compiler.is_compiling()):
            reason = self.unavailable()
            if reason is not None:
                return reason
        if elsewhere:
            return f"the maps are on {maps.device}"
        if differentiates_forwards():
            return "its derivatives are taken in forward mode"
        if maps.dtype not in self.dtypes:
            return f"the maps are of {maps.dtype}"
        if call.mapping is not None and (window.stride, window.dilation) != (1, 1):
            return "fused attention has neither stride nor dilation"
        return self.limits(call)

    def aggregation(self, value: Tensor, weight: Tensor, window: Window) -> Tensor:
        """Compute as ``reference.aggregation``."""
        return ops.aggregation(value, weight, window, backend=self.name)

    def subtraction(self, query: Tensor, key: Tensor, window: Window) -> Tensor:
        """Compute as ``reference.subtraction``."""
        return ops.subtraction(query, key, window, backend=self.name)

    def dot_product(self, query: Tensor, key: Tensor, groups: int, window: Window) -> Tensor:
        """Compute as ``reference.dot_product``."""
        return ops.dot_product(query, key, groups, window, backend=self.name)

    def neighbours(self, maps: Tensor, window: Window) -> Tensor:
        """Gather by torch itself: there is nothing to compute."""
        return reference.neighbours(maps, window)

    def pair_products(self, query: Tensor, key: Tensor, window: Window) -> Tensor:
        """Compute as ``reference.pair_products``, each product once for all patches that have it.
        """
        if torch.compiler.is_compiling():
            return reference.pair_products(query, key, window)
        query, key = (pad(each, window) for each in (query, key))
        # No patch has a pixel that is compared with one outside the margin.
        around = Window(2 * window.footprint - 1, padding_mode="zeros")
        products = self.dot_product(query, key, 1, around).view(len(query), -1, *query.shape[2:])
        return gathered(products, window.footprint).flatten(2).unsqueeze(2)

    def pairwise_attention(self, query: Tensor, key: Tensor, value: Tensor, position: Tensor,
                           mapping: nn.Module, window: Window, *, affine: bool = False,
                           compare: Comparison | None = None, absolute: bool = False) -> Tensor:
        """Compute as ``reference.pairwise_attention``, fused where the mapping can be folded.

        In training it is fused where it subtracts, and the position is ``affine``.
        """
        subtracts = compare is None and not absolute
        steps = batch_mapping.affine_steps(mapping, query, position, window,
                                           self.name) if affine and subtracts else None
        if steps is not None and folding.shares(mapping, value, 1):
            return batch_mapping.pairwise_attention(query, key, value, steps, mapping, window,
                                                    backend=self.name)
        tracked = torch.is_grad_enabled() and position.requires_grad
        relation = query.shape[1] if compare is None else compare.width
        if (tracked or (compare is not None and compare.fused is None)
                or folding.refusal(mapping, query, relation + position.shape[1]) is not None
                or not folding.shares(mapping, value, 1)):
            return reference.pairwise_attention(query, key, value, position, mapping, window,
                                                compare=compare, absolute=absolute,
                                                backend=self.name)
        delta: Delta = "subtraction"
        if compare is not None and compare.fused is not None:
            delta, key = compare.relation.delta, compare.fused(key)
        folded = folding.fold_pairwise(mapping, query.shape[1],
                                       folding.accumulator(query.dtype), delta)
        return ops.pairwise_attention(query, key, value, position, folded, window,
                                      absolute=absolute, backend=self.name)

    def patchwise_attention(self, query: Tensor, key: Tensor, value: Tensor, mapping: nn.Module,
                            window: Window) -> Tensor:
        """Compute as ``reference.patchwise_attention``, fused where the mapping can be folded."""
        relation = query.shape[1]
        if batch_mapping.takes_patchwise(mapping, query, window, self.name) \
                and folding.shares(mapping, value, window.neighbours):
            return batch_mapping.patchwise_attention(query, key, value, mapping, window,
                                                     backend=self.name)
        if (folding.refusal(mapping, query, relation * (1 + window.neighbours)) is not None
                or not folding.shares(mapping, value, window.neighbours)):
            return reference.patchwise_attention(query, key, value, mapping, window,
                                                 summed=self.patchwise_sum)
        folded = folding.fold_patchwise(mapping, relation, folding.accumulator(query.dtype))
        return ops.patchwise_attention(query, key, value, folded, window, backend=self.name)

    def patchwise_sum(self, relation: Tensor, value: Tensor, mapping: nn.Module,
                      window: Window) -> Tensor:
        """Compute as ``reference.patchwise_sum``; in training without storing the weights."""
        if batch_mapping.takes_sum(mapping, relation, value, window, self.name):
            return batch_mapping.patchwise_sum(relation, value, mapping, window,
                                               backend=self.name)
        return reference.patchwise_sum(relation, value, mapping, window, backend=self.name)

    def local_attention(self, query: Tensor, key: Tensor | None, value: Tensor,
                        embedding: Tensor | None, heads: int, window: Window) -> Tensor:
        """Compute as ``reference.local_attention``, fused where there are such kernels."""
        if self.has_local_attention and (window.stride, window.dilation) == (1, 1):
            return ops.local_attention(query, key, value, embedding, heads, window,
                                       backend=self.name)
        return reference.local_attention(query, key, value, embedding, heads, window,
                                         backend=self.name)
