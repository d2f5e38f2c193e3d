"""Names of the operators that a count leaves out.

A convention says in words what counts nothing, but only the operators that ran show what that was
for one network, and whether one of them has no formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# What makes, moves or measures tensors and computes no value of them.
_NO_ARITHMETIC = frozenset({
    "alias", "alias_copy", "arange", "as_strided", "broadcast_tensors", "cat", "clone",
    "constant_pad_nd", "contiguous", "copy", "channel_shuffle", "detach", "diag_embed",
    "embedding", "empty", "empty_like", "empty_strided", "expand", "eye", "fill", "flip", "full",
    "full_like", "fused_sdp_choice", "gather", "im2col", "index", "index_copy", "index_put",
    "index_select", "is_same_size", "item", "lift", "lift_fresh", "linspace", "local_scalar_dense",
    "masked_fill", "masked_select", "meshgrid", "native_dropout", "new_empty",
    "new_empty_strided", "new_full", "new_ones", "new_zeros", "nonzero", "one_hot", "ones",
    "ones_like", "permute", "pixel_shuffle", "pixel_unshuffle", "rand", "rand_like", "randn",
    "randn_like", "reflection_pad1d", "reflection_pad2d", "repeat", "repeat_interleave",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "reshape", "resize", "roll",
    "rot90", "scalar_tensor", "scatter", "select_scatter", "slice_scatter", "split",
    "split_with_sizes", "stack", "sym_size", "t", "to_copy", "tril", "triu", "unbind", "unfold",
    "unsafe_index", "unsafe_view", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest_exact2d", "view", "where", "zero", "zeros", "zeros_like",
})


class Uncounted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remember which operators ran that compute with tensors and have no formula.

    Args:
        is_counted: whether an operator has one, or counts as part of something that has.

    Attributes:
        names: of the operators, each once.
    """

    def __init__(self, is_counted: Callable[[Any], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self._is_counted = is_counted

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[object, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> object:
        packet = getattr(func, "overloadpacket", func)
        if not self._is_counted(packet) and not _is_free(func, args):
            self.names.add(operator_name(packet))
        return func(*args, **(kwargs or {}))


def operator_name(packet: Any) -> str:
    """Return an operator's name without what torch puts around it; another library's in full."""
    library, _, name = str(packet).rpartition(".")
    name = name.strip("_") or name
    return name if library in ("aten", "prims", "prim") else f"{library}.{name}"


def _is_free(func: Any, args: tuple[object, ...]) -> bool:
    if operator_name(getattr(func, "overloadpacket", func)) in _NO_ARITHMETIC:
        return True
    if not any(isinstance(value, Tensor) for value in tree_iter(args)):
        return True
    returns = getattr(getattr(func, "_schema", None), "returns", ())
    # A view shares its memory with an argument and writes nothing into it.
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
